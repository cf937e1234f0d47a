"""Read what verl's `file` logger writes: JSON lines `{"step": n, "data": {key: value}}`.

Traps of the format (verl 0.9.1, utils/tracking.py and trainer/ppo/v1/trainer_base.py), which this module knows:

- the file is opened "wb": a resumed run truncates it. So a run is often several segment files, merged here by step;
- a resumed run validates first and logs that under the step it resumes *from*, a record with nothing but `val-*` keys.
  So a later record replaces the values it has, not the whole earlier record;
- a killed run leaves half a line at the end; nan and infinity arrive as null;
- at step n `actor/entropy` and `critic/score/mean` describe the policy *before* update n (its rollouts), and `val-*`
  the policy *after* it; step 0 holds validation only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCORE_PREFIX = "val-core/"  # verl: val-core/{data source}/{variable}/mean@N


@dataclass(frozen=True)
class Run:
    """The metrics of one run.

    steps: [n], ascending, distinct. records: one dict a step. damaged: number of lines dropped.
    """

    steps: NDArray[np.int64]
    records: tuple[dict[str, Any], ...]
    damaged: int = 0

    def column(self, key: str) -> NDArray[np.float64]:
        """[n] values of `key`, one a step; nan where the step has none, or none that is a number."""
        return np.array([_number(record.get(key)) for record in self.records], dtype=np.float64)

    def keys(self) -> list[str]:
        """All keys of all steps, sorted."""
        return sorted({key for record in self.records for key in record})

    def first_key(self, prefix: str) -> str | None:
        """The first key, in sorted order, that starts with `prefix`; None if there is none."""
        return next((key for key in self.keys() if key.startswith(prefix)), None)


def pick_score(keys: Iterable[str]) -> str | None:
    """The first key, in sorted order, that starts with `val-core/`, a mean over samples if there is one.

    With several samples a prompt verl logs `best@N` beside `mean@N`, and the best of N is not the policy's score.
    """
    found = sorted(key for key in keys if key.startswith(SCORE_PREFIX))
    return next((key for key in found if "/mean@" in key), found[0] if found else None)


def read_metrics(paths: str | PathLike[str] | Iterable[str | PathLike[str]]) -> Run:
    """Read one metrics file, or several segments of one run in the order they were written.

    A step in several records keeps every key; where a key comes twice the last value wins. A line that is not a record
    (cut off, damaged) is counted in `Run.damaged` and otherwise ignored. Raises FileNotFoundError for a missing file.
    """
    if isinstance(paths, (str, PathLike)):
        paths = [paths]
    merged: dict[int, dict[str, Any]] = {}
    damaged = 0
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"no metrics file at {path}: expected JSON lines of verl's `file` logger")
        with path.open("rb") as file:
            for line in file:
                if not line.strip():
                    continue
                record = parse_line(line)
                if record is None:
                    damaged += 1
                else:
                    merged.setdefault(record[0], {}).update(record[1])
    steps = sorted(merged)
    return Run(np.array(steps, dtype=np.int64), tuple(merged[step] for step in steps), damaged)


def parse_line(line: bytes | str) -> tuple[int, dict[str, Any]] | None:
    """(step, data) of one line of the file, or None if it is not a record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # ValueError: also what is not UTF-8
        return None
    if not isinstance(record, dict):
        return None
    step, data = record.get("step"), record.get("data")
    if type(step) is not int or not 0 <= step < 2**63 or not isinstance(data, dict):
        return None
    return step, data


def join(run: Run, x_key: str, y_key: str) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """(steps, x, y), each [m]: the steps where both keys have a finite value. Nothing is interpolated.

    Mind that in verl's records entropy is measured before the step's update and validation after it.
    """
    x, y = run.column(x_key), run.column(y_key)
    both = np.isfinite(x) & np.isfinite(y)
    return run.steps[both], x[both], y[both]


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)):
        return float("nan")
    try:
        return float(value)
    except OverflowError:  # JSON integers have no bound
        return float("nan")
