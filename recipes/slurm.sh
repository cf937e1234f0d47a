#!/usr/bin/env bash
# One recipe as a Slurm job: a Ray cluster of the job's nodes, then `verl-cov recipes run` on the first. From the top of
# the checkout, or any folder that all nodes see; verl and verl-cov must be installed on every node.
#
#   sbatch --nodes 1 --gpus-per-node 8 recipes/slurm.sh sec4-7b/kl_cov
#   sbatch --nodes 4 --gpus-per-node 8 recipes/slurm.sh sec4-32b/kl_cov trainer.save_freq=20
#   SETUP="source /shared/venv/bin/activate" sbatch ... recipes/slurm.sh RECIPE     # run on each node first
#
# scancel stops the run with SIGTERM; the same sbatch resumes it. PORT (6379) is Ray's.
#SBATCH --job-name=verl-cov
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:TERM@120
set -euo pipefail
case ${1:-none} in none | -h | --help) awk 'NR > 1 { if (!/^# ?/ || /^#SBATCH/) exit; sub(/^# ?/, ""); print }' "$0"; exit $(($# ? 0 : 2)) ;; esac
[ -n "${SLURM_JOB_NODELIST:-}" ] || { echo "recipes/slurm.sh: this is for sbatch: sbatch --nodes N recipes/slurm.sh $*" >&2; exit 2; }
port=${PORT:-6379} setup=${SETUP:-true}
nodes=$SLURM_JOB_NUM_NODES
if [ "$nodes" -gt 1 ]; then
  hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  head=${hosts%%$'\n'*} # not by head: it closes the pipe, which ends this script where scontrol still writes
  # Every node stays in its cluster as long as the job lasts (--block).
  srun --nodes 1 --ntasks 1 --nodelist "$head" --overlap \
    bash -c "$setup && ray start --head --port $port --block" &
  sleep "${HEAD_SECONDS:-20}"
  srun --nodes "$((nodes - 1))" --ntasks "$((nodes - 1))" --exclude "$head" --overlap \
    bash -c "$setup && ray start --address $head:$port --block" &
  sleep "${HEAD_SECONDS:-20}"
  export RAY_ADDRESS=$head:$port
fi
eval "$setup"
# In the background, so that Slurm's signal to this script is passed on at once.
verl-cov recipes run "$@" &
run=$!
trap 'kill -TERM "$run" 2> /dev/null || true' TERM INT
code=0
wait "$run" || code=$?
if kill -0 "$run" 2> /dev/null; then # that wait ended at a signal; this one ends with the run
  code=0
  wait "$run" || code=$?
fi
exit "$code"
