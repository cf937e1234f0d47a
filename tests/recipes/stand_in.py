"""Stands in for verl's trainer in tests of the runner: logs, metrics, checkpoints and resuming as verl 0.9.1 does them.

STAND_IN in the environment is a JSON dict: what should happen.
"""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

do = json.loads(os.environ.get("STAND_IN", "{}"))
overrides = dict(word.lstrip("+").split("=", 1) for word in sys.argv[1:])
checkpoints = pathlib.Path(overrides["trainer.default_local_dir"].strip("'"))
total = int(overrides.get("trainer.total_training_steps", 6))
if do.get("stubborn"):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if do.get("orphan"):
    subprocess.Popen(["sleep", "300"], preexec_fn=os.setpgrp)
print("ray init kwargs: {}")
print("INFO Started a local Ray instance.")
print("(WorkerDict pid=1) loading", flush=True)
path = overrides["ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"].strip("'")
metrics = open(path, "wb", buffering=0)  # noqa: SIM115
tracker = checkpoints / "latest_checkpointed_iteration.txt"
start = int(tracker.read_text()) if tracker.exists() else 0


def log(step, **data):
    metrics.write(json.dumps({"step": step, "data": data}).encode() + b"\n")


VALIDATION = "val-core/verl_cov/countdown/acc/mean@4"
log(start, **{VALIDATION: 0.3 + 0.02 * start})
print(f"Training Progress:   0%| | {start}/{total}", end="\r", flush=True)
for step in range(start + 1, total + 1):
    time.sleep(do.get("pause", 0))
    if do.get("fail") == step and do.get("who", "") in str(checkpoints):
        print(do.get("last_words", "Killed"), flush=True)
        if "kill" in do:
            os.kill(os.getpid(), do["kill"])
        sys.exit(3)
    if do.get("hang") == step:
        time.sleep(300)
    h = 0.2 + math.exp(-step / 3)
    log(
        step,
        **{
            "actor/entropy": h,
            "critic/score/mean": 0.9 - 0.2 * math.exp(h),
            VALIDATION: 0.3 + 0.02 * step,
            "timing_s/step": 0.1,
            "actor/cov/selected_tokens": 7,
        },
    )
    if step % 2 == 0 or step == total:
        checkpoints.mkdir(parents=True, exist_ok=True)
        tracker.write_text(str(step))
