"""How far a run is: its last step, how long a step takes, and whether it still runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from verl_cov.law.readers import Run

# Seconds a step: verl (without validation), SkyRL, TRL, slime, tinker-cookbook.
_STEP_TIMES = ("timing_s/step", "perf/time_per_step", "timing/step", "step_time", "perf/step_time", "time/total")
_VALIDATION_TIME = "timing_s/testing"
_RECENT = 20  # steps that the pace is taken from

# verl's log, its bar; verl's configuration, as an override and as W&B and Hydra write it; TRL's trainer_state.json.
_TOTAL = re.compile(
    rb"Total training steps: (\d+)|Training Progress:[^\n\r]*?\d+/(\d+)"
    rb"|total_training_steps[\"']?\s*[=:]\s*(\d+)|\"max_steps\":\s*(\d+)"
)
_HEAD = 8 << 20  # bytes; verl prints megabytes before it says how many steps there will be
_BESIDE = ("train.log", "launches.jsonl", "trainer_state.json", ".hydra/overrides.yaml", "files/config.yaml")
_QUIET_S = 600.0  # without a pace: a step of a large model takes minutes


def total_steps(paths: Sequence[Path]) -> int | None:
    """The number of training steps that the logs, or the files that trainers leave beside them, announce."""
    for path in _candidates(paths):
        with suppress(OSError), path.open("rb") as file:
            found = [int(next(filter(None, match.groups()))) for match in _TOTAL.finditer(file.read(_HEAD))]
            if any(found):
                return [number for number in found if number][-1]
    return None


def _candidates(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        folder = path if path.is_dir() else path.parent
        yield from (folder / name for name in _BESIDE)
        if path.is_file() and path.suffix in (".log", ".out", ".txt"):
            yield path


def step_seconds(run: Run) -> float | None:
    """Seconds a step takes by the run's own account, its share of the validations included."""
    times = next((times for key in _STEP_TIMES if (times := run.values(key)).size), None)
    if times is None:
        return None
    return float(np.median(times[-_RECENT:])) + float(run.values(_VALIDATION_TIME).sum()) / max(1, times.size)


def state(step: int | None, total: int | None, pace: float | None, silent: float) -> str:
    """`done`, `waiting`, `quiet 3h`, `1h20m left` or `running`. silent: seconds since the log last changed."""
    if step is None:
        return "waiting"
    if total is not None and step >= total:
        return "done"
    if silent > (max(120.0, 5 * pace) if pace is not None else _QUIET_S):
        return f"quiet {duration(silent)}"
    if total is None or pace is None:
        return "running"
    return f"{duration(max(0.0, (total - step) * pace - silent))} left"


def duration(seconds: float) -> str:
    """`45s`, `12m`, `1h20m`, `3d`."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f}s"
    if minutes < 60:
        return f"{minutes}m"
    if minutes < 10 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes / 60:.0f}h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.0f}d"
