#!/usr/bin/env bash
# All runs of an experiment, one after the other. A run that fails does not stop the others; finished ones are left alone.
#
#   recipes/sweep.sh fig12-kl_cov
#   recipes/sweep.sh sec4-7b trainer.total_training_steps=100
#   SEEDS="0 1 2" recipes/sweep.sh sec4-7b                              # three seeds of each
#
# The experiment comes first; `verl-cov recipes list` has them all. The other words go to each `verl-cov recipes run`.
set -uo pipefail
source "$(dirname "$0")/common.sh"
need verl-cov
experiment=$1
shift
case $experiment in -* | *=*) die "the experiment comes first, before $experiment" ;; esac
read -r -a seeds <<< "${SEEDS:-0}"
case "${seeds[*]}" in "" | *[!0-9\ ]*) die "SEEDS=\"$SEEDS\" must be whole numbers, such as SEEDS=\"0 1 2\"" ;; esac
trap 'exit 130' INT
list=$(verl-cov recipes commands -- "$experiment") || exit 2
mapfile -t runs <<< "$list"
# What is wrong with the words is said once, not for every run.
verl-cov recipes run "${runs[0]}" "$@" --dry-run > /dev/null || exit 2

failed=0
for seed in "${seeds[@]}"; do
  for run in "${runs[@]}"; do
    name=${run//\//-}-seed$seed
    echo "== $name"
    verl-cov recipes run "$run" --skip-finished "recipe.seed=$seed" "recipe.name=$name" "$@" || { echo "== $name failed"; failed=1; }
  done
done
exit $failed
