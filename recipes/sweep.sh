#!/usr/bin/env bash
# All runs of an experiment, one after the other. A run that fails does not stop the others; finished ones are left alone.
#
#   recipes/sweep.sh fig12-kl_cov
#   recipes/sweep.sh sec4-7b trainer.total_training_steps=100
#   SEEDS="0 1 2" recipes/sweep.sh sec4-7b                              # three seeds of each
set -uo pipefail
experiment=${1:?"which experiment? verl-cov recipes list"}
shift
trap 'exit 130' INT
runs=$(verl-cov recipes commands "$experiment") || exit 2

failed=0
for seed in ${SEEDS:-0}; do
  for run in $runs; do
    name=${run//\//-}-seed$seed
    echo "== $name"
    verl-cov recipes run "$run" --skip-finished "recipe.seed=$seed" "recipe.name=$name" "$@" || { echo "== $name failed"; failed=1; }
  done
done
exit $failed
