#!/usr/bin/env bash
# The self-test on a machine with torch, transformers 5 and Triton, without verl, ray, vLLM and without a network.
#
#   make gpu-kit                        # before, where there is a network: fills benchmarks/wheels (verl, and what it imports)
#   OUT=results bash benchmarks/gpu.sh  # there, in this folder; at most eight minutes
#
# Level core, then level hook with verl's own FSDP2 engine from the wheels; one GPU. DEVICE=cpu tries it without one.
# It never ran on a GPU. OUT/selftest.json is the result, without host names and paths: docs/selftest.md says how to send it.
set -u
case ${1:-} in -h | --help) awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; exit 0 ;; esac
here=$(cd "$(dirname "$0")/.." && pwd)
out=${OUT:-$here}
python=${PYTHON:-python3}
mkdir -p "$out" && out=$(cd "$out" && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

# Only what the machine lacks: its own torch, numpy and pandas stay.
missing=$("$python" - "$here"/benchmarks/wheels/*.whl <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
for wheel in sys.argv[1:]:
    try:
        version(wheel.rpartition("/")[2].partition("-")[0].replace("_", "-"))
    except PackageNotFoundError:
        print(wheel)
PYTHON
)
if [ -n "$missing" ] && [ -e "${missing%%$'\n'*}" ]; then
    # --no-deps: the wheels are complete; pip does not look for what is left out of them.
    echo "$missing" | xargs timeout 100 "$python" -m pip install -q --no-index --no-deps --no-compile \
        --no-cache-dir --disable-pip-version-check --target "$site" ||
        echo "gpu.sh: the wheels could not be installed: the hook level says what is missing"
else
    echo "gpu.sh: no wheels in benchmarks/wheels (make gpu-kit): the hook level is not possible unless verl is here"
fi

export PYTHONPATH="$here:$site${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 VERL_USE_EXTERNAL_MODULES=verl_cov.plugin
# The file is written after each level: what is killed in the second one still leaves the first one's result.
cd "$out" && timeout -k 10 360 "$python" -m verl_cov.selftest --device "${DEVICE:-cuda}" -o "$out/selftest.json"
code=$?
[ $code = 124 ] && echo "gpu.sh: stopped after 360 s; selftest.json has the levels that ended before"
exit $code
