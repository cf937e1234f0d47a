#!/usr/bin/env bash
# Train one recipe: check what this machine lacks, then verl's trainer. The same command goes on with a stopped run.
#
#   recipes/run.sh qwen2.5-7b grpo kl_cov math                          # MODEL ALGORITHM ENTROPY TASK
#   recipes/run.sh sec4-7b/kl_cov                                       # EXPERIMENT/RUN
#   recipes/run.sh qwen2.5-1.5b grpo clip_cov gsm8k --scale gpu1 trainer.total_training_steps=50
#   recipes/run.sh tiny grpo kl_cov toy                                 # on a laptop
#
# Words with = go to verl, words with -- to `verl-cov recipes run` (its own --help says which; --dry-run prints the
# command). `verl-cov recipes list` has all names.
set -euo pipefail
source "$(dirname "$0")/common.sh"
need verl-cov
exec verl-cov recipes run "$@"
