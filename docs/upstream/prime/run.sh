#!/usr/bin/env bash
# PRIME (arXiv 2502.01456) on verl 0.9.1: in place of verl-recipe's prime/, which needs verl < 0.8.
#
#   prime/run.sh [key=value ...]                  # Qwen2.5-7B on the mathematics of Eurus-2-RL
#   CONTROL=kl_cov prime/run.sh                   # with KL-Cov
#   prime/run.sh --dry-run                        # check, and print the trainer's command
#
# It needs `pip install 'verl-cov[all]'` on every node and the data of `verl-cov data prepare`. MODEL and TASK are names
# of `verl-cov recipes list`. How far it is the paper's and its released code: `verl-cov docs prime`.
set -euo pipefail
case ${1:-} in -h | --help) awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; exit 0 ;; esac
exec verl-cov recipes run "${MODEL:-qwen2.5-7b}" prime "${CONTROL:-none}" "${TASK:-eurus_math}" "$@"
