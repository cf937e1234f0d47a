#!/usr/bin/env bash
# Clip-Cov and KL-Cov as in arXiv 2505.22617 on verl 0.9.1: in place of verl-recipe's entropy/, which needs verl < 0.8.
#
#   entropy/run.sh 7b kl_cov [key=value ...]      # 7b or 32b; kl_cov, clip_cov, clip_higher or none
#   entropy/run.sh 7b kl_cov --dry-run            # check, and print the trainer's command
#
# It needs `pip install 'verl-cov[all]'` on every node and the data of `verl-cov data prepare`. The 32B runs need a Ray
# cluster of four nodes with 8 GPUs. `verl-cov recipes show sec4-7b/kl_cov` has each number and its source.
set -euo pipefail
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }
for word in "$@"; do
  case $word in -h | --help) usage; exit 0 ;; esac
done
if [ $# -lt 2 ] || [[ ! $1 =~ ^(7b|32b)$ ]] || [[ ! $2 =~ ^(kl_cov|clip_cov|clip_higher|none)$ ]]; then
  usage >&2
  exit 2
fi
exec verl-cov recipes run "sec4-$1/$2" "${@:3}"
