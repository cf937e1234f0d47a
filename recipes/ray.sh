#!/usr/bin/env bash
# A Ray cluster for runs on several nodes, and a run on it. verl-cov must be installed on every node.
#
#   recipes/ray.sh head                                  # on the first node; prints what the others need
#   recipes/ray.sh worker 10.0.0.1                       # on each other node
#   recipes/ray.sh submit sec4-32b/kl_cov [overrides]    # on the head, from a folder that all nodes see
#   recipes/ray.sh stop                                  # on each node; ends all of Ray there, other clusters too
#
# PORT (6379) is Ray's, DASHBOARD (8265) is where jobs are submitted; the dashboard listens on the head only. Who can
# reach a Ray cluster can run code on it, so it asks for a token: the one in ~/.ray/auth_token, the same on all nodes.
# RAY_AUTH_MODE=disabled goes without, and so do versions of Ray that have no tokens.
set -euo pipefail
source "$(dirname "$0")/common.sh"
port=${PORT:-6379} dashboard=${DASHBOARD:-8265}
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
answers() { timeout 10 bash -c '> "/dev/tcp/$0/$1"' "$1" "$2" 2> /dev/null; }
# Ray's own errors of a port that is another program's are tracebacks, after minutes.
is_head() { timeout 60 ray health-check --address "$1:$2" > /dev/null 2>&1; }
is_dashboard() { # it knows Ray's version, or asks for Ray's token
  local ask='exec 3<> "/dev/tcp/$0/$1"; printf "GET /api/version HTTP/1.0\r\n\r\n" >&3; tr -d "\0" <&3' said
  said=$(timeout 10 bash -c "$ask" "$1" "$2" 2> /dev/null) || true
  [[ $said == *ray_version* || $said == *"authentication token"* ]]
}
case $1 in
  head)
    [ $# -eq 1 ] || die "head takes no more words: recipes/ray.sh head (PORT and DASHBOARD are set in the environment)"
    need ray
    ! answers 127.0.0.1 "$port" || die "port $port is taken, by a cluster that runs already? \`recipes/ray.sh stop\`, or PORT=N"
    [ "$RAY_AUTH_MODE" != token ] || ray get-auth-token --generate > /dev/null || true
    ray start --head --port "$port" --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" ${RAY_START_ARGS:-}
    echo "On the other nodes, with this node's ~/.ray/auth_token: recipes/ray.sh worker $(hostname -I | cut -d' ' -f1)"
    ;;
  worker)
    [ $# -eq 2 ] || die "worker takes the head's address, which \`recipes/ray.sh head\` printed: recipes/ray.sh worker 10.0.0.1"
    need ray
    answers "$2" "$port" || die "no Ray head answers at $2:$port: start it there with \`recipes/ray.sh head\`, or set PORT"
    is_head "$2" "$port" || die "what answers at $2:$port is no Ray head that takes this node's ~/.ray/auth_token: copy the head's, or set PORT"
    ray start --address "$2:$port" ${RAY_START_ARGS:-}
    ;;
  submit)
    shift
    [ $# -gt 0 ] || die "submit takes a recipe, as \`verl-cov recipes run\`: recipes/ray.sh submit sec4-32b/kl_cov"
    need ray
    answers 127.0.0.1 "$dashboard" ||
      die "no Ray cluster answers at 127.0.0.1:$dashboard: start one here with \`recipes/ray.sh head\`, or set DASHBOARD"
    is_dashboard 127.0.0.1 "$dashboard" || die "what answers at 127.0.0.1:$dashboard is no Ray cluster: set DASHBOARD to the dashboard's port"
    # The folder is shared: nothing is uploaded, and paths are absolute (a job has a working folder of its own).
    ray job submit --address "http://127.0.0.1:$dashboard" \
      --runtime-env-json '{"env_vars": {"RAY_ADDRESS": "auto", "RAY_AUTH_MODE": "'"$RAY_AUTH_MODE"'"}}' \
      -- verl-cov recipes run --data "$PWD/data" --toy "$PWD/runs/cache" --runs "$PWD/runs" "$@"
    ;;
  stop)
    [ $# -eq 1 ] || die "stop takes no more words, and ends all of Ray on this node: recipes/ray.sh stop"
    need ray
    ray stop
    ;;
  *) die "there is no command '$1': give head, worker, submit or stop (--help)" ;;
esac
