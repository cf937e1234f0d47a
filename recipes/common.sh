# What the scripts of this folder share; each sources it with its own words: help, errors in one line, the checkout's tools.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }
die() { echo "recipes/${0##*/}: $*" >&2; exit 2; }
need() { command -v "$1" > /dev/null || die "there is no $1 on the PATH: pip install it there, or \`make setup\` in this checkout"; }

for word in "$@"; do
  case $word in -h | --help) usage; exit 0 ;; esac
done
[ $# -gt 0 ] || { usage; exit 2; }
PATH=$PATH:$(cd "$(dirname "$0")/.." && pwd)/.venv/bin # after the user's own
