"""The demo's start and step on a CPU, fast and in verl's own way, in turns: ``python -m benchmarks.cpu_step``."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import typer

from benchmarks.timing import ratio, table

ROOT = Path(__file__).parents[1]
SWITCHES = ("VERL_COV_FAST_ROLLOUTS", "VERL_COV_WARM_START")
WAYS = {"verl's own": dict.fromkeys(SWITCHES, "0"), "fast": dict.fromkeys(SWITCHES, "1")}
PARTS = {
    "generation": "timing_s/gen",
    "old log-probs": "timing_s/old_log_prob",
    "update": "timing_s/update_actor",
    "step": "timing_s/step",
    "validation": "timing_s/testing",
}
START = "start, until the first step"
CPU_START, CPU_STEP = "CPU of all processes until then", "CPU of all processes, a step and half a validation"


def measure(rounds: int = 2, steps: int = 8, toy: Path = ROOT / "runs" / "cache") -> str:
    """Seconds of each part of a vanilla step, medians over the steps but the first two, and of a start.

    The seconds of CPU depend little on what else runs on the machine, the others much.
    """
    seconds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for at in range(rounds):
            for way in sorted(WAYS, reverse=bool(at % 2)):
                for part, found in _run(Path(folder) / f"{at}{way[0]}", WAYS[way], steps, toy).items():
                    seconds.setdefault(part, {}).setdefault(way, []).append(found)
    rows = [
        [part, *(f"{statistics.median(own[way]):.2f}" for way in WAYS), f"{ratio(own, *WAYS):.1f}"]
        for part, own in seconds.items()
    ]
    return table(["seconds", *WAYS, "ratio"], rows)


def _run(folder: Path, environment: dict[str, str], steps: int, toy: Path) -> dict[str, float]:
    command = [sys.executable, "-c", "from verl_cov.cli import main; main()", "recipes", "run", "demo/vanilla"]
    command += ["--runs", str(folder), "--toy", str(toy), "--steps", str(steps), "trainer.save_freq=-1"]
    command += ["trainer.val_before_train=false", "trainer.test_freq=2"]
    launches, metrics = (folder / "demo" / "vanilla" / name for name in ("launches.jsonl", "001.jsonl"))
    began, moments = 0.0, []  # of the launch, and of the end of each step: time, and CPU of all processes until then
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            began = began or (time.time() if launches.is_file() else 0.0)
            done = metrics.read_text().count("\n") if metrics.is_file() else 0
            if done > len(moments):
                moments += [(time.time(), _cpu(process.pid))] * (done - len(moments))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"the training failed: {folder}")
    records = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    found = {
        part: statistics.median(record[key] for record in records[2:] if key in record) for part, key in PARTS.items()
    }
    last = len(moments) - 1
    return {
        **found,
        CPU_STEP: (moments[last][1] - moments[1][1]) / (last - 1),
        START: moments[0][0] - began - records[0]["timing_s/step"],
        CPU_START: moments[0][1],
    }


def _cpu(pid: int) -> float:
    """Seconds of CPU that the living descendants of a process have used."""
    total = 0.0
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total


def main(rounds: int = 2, steps: int = 8, toy: Path = ROOT / "runs" / "cache") -> None:
    """Prints the table."""
    print(measure(rounds, steps, toy))


if __name__ == "__main__":
    typer.run(main)
