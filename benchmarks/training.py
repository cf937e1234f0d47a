"""What the metrics cost in the demo's training: the hooks are timed where they run (:mod:`benchmarks.timers`)."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import table

ROOT = Path(__file__).parents[1]
RUNS = [("vanilla", "basic"), ("vanilla", "full"), ("kl_cov", "off"), ("kl_cov", "basic"), ("kl_cov", "full")]


def metrics(steps: int = 12) -> str:
    """Share of verl-cov in ``update_actor``, by ``cov_metrics``. Medians over the rollouts but the first two."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for loss, level in RUNS:
            found[loss, level] = _run(Path(folder) / f"{loss}-{level}", loss, level, steps)
    rows = []
    for (loss, level), mine in found.items():
        without = found.get((loss, "off"), {"ours": 0.0})
        share, extra = (100 * (mine["ours"] - less) / mine["update"] for less in (0.0, without["ours"]))
        rows.append(
            [
                loss,
                level,
                f"{1e3 * mine['update']:.0f}",
                f"{1e3 * mine['per update']:.1f}",
                f"{1e3 * mine['per rollout']:.1f}",
                f"{share:.2f} %",
                f"{extra:.2f} %",
            ]
        )
    header = ["loss", "`cov_metrics`", "update_actor, ms", "our hooks a rollout's 8 updates, ms"]
    header += ["our hook a rollout, ms", "share", "of it the metrics"]
    return table(header, rows)


def _run(folder: Path, loss: str, level: str, steps: int) -> dict[str, float]:
    timers = folder.with_suffix(".timers")
    command = [sys.executable, "-c", "from verl_cov.cli import main; main()", "recipes", "run", f"demo/{loss}"]
    command += ["--runs", str(folder), "--toy", str(ROOT / "runs" / "cache"), "--steps", str(steps)]
    command += ["trainer.save_freq=-1", "trainer.test_freq=-1", "trainer.val_before_train=false"]
    policy_loss = "actor_rollout_ref.actor.policy_loss"
    command += [f"{policy_loss}.cov_metrics={level}", f"{policy_loss}.cov_dump_every=0"]
    environment = {
        **os.environ,
        "VERL_USE_EXTERNAL_MODULES": "benchmarks.timers",
        "BENCH_TIMERS": str(timers),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in timers.read_text().splitlines()][2:]
    seconds = {key: statistics.median(line.get(key, 0.0) for line in lines) for key in ("per update", "per rollout")}
    ours = [line["per update"] + line.get("per rollout", 0.0) for line in lines]
    update = [line["update"] + line.get("per rollout", 0.0) for line in lines]
    return {**seconds, "ours": statistics.median(ours), "update": statistics.median(update)}
