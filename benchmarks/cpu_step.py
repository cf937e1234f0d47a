"""The demo's start and step on a CPU, fast and in verl's own way, in turns: ``python -m benchmarks.cpu_step``."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    "validation, 192 prompts": "timing_s/testing",
}
START = "start of the trainer"


def measure(rounds: int = 2, steps: int = 8, toy: Path = ROOT / "runs" / "cache") -> str:
    """Seconds of each part of a vanilla step, medians over the steps but the first two, and of a start."""
    seconds: dict[str, dict[str, list[float]]] = {part: {way: [] for way in WAYS} for part in [*PARTS, START]}
    with tempfile.TemporaryDirectory() as folder:
        for at in range(rounds):
            for way, environment in WAYS.items():
                for part, found in _run(Path(folder) / f"{at}{way[0]}", environment, steps, toy).items():
                    seconds[part][way].append(found)
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
    began = first = 0.0
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not first:
            began = began or (time.time() if launches.is_file() else 0.0)
            first = time.time() if metrics.is_file() and metrics.read_text().count("\n") else 0.0
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the training failed: {folder}")
    records = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    found = {
        part: statistics.median(record[key] for record in records[2:] if key in record) for part, key in PARTS.items()
    }
    return found | {START: first - began - records[0]["timing_s/step"]}


def main(rounds: int = 2, steps: int = 8, toy: Path = ROOT / "runs" / "cache") -> None:
    """Prints the table."""
    print(measure(rounds, steps, toy))


if __name__ == "__main__":
    typer.run(main)
