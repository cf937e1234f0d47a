"""A finished run as one small file, `RUN.csv.gz`: a line of JSON that says what it is of, then a table by step.

It is written whole or not at all, the same run gives the same bytes, and what is damaged is told from what belongs to
another protocol: gzip ends with a checksum, and the first line names study, version and digest.
"""

from __future__ import annotations

import csv
import fnmatch
import gzip
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_cov.law import files
from verl_cov.law.readers import Run, open_log, read_metrics
from verl_cov.study.protocol import Cell, Protocol
from verl_cov.study.result import Result

SUFFIX = ".csv.gz"
# What is kept of a log: the series of training steps, then what validations say.
KEPT = (
    *("actor/entropy", "actor/grad_norm", "actor/ppo_kl", "critic/score/mean", "response_length/mean"),
    *("actor/cov/tokens", "actor/cov/mean", "actor/cov/top_*", "actor/cov/selected_tokens", "actor/cov/selected_frac"),
    *("actor/cov/selected_negative_frac", "actor/cov/changed_gradient_frac"),
    *("actor/cov/entropy", "actor/cov/entropy_*", "actor/cov/clip_scale", "actor/cov/theorem*"),
    *("actor/cov/prompt_cov*", "actor/cov/target", "actor/cov/knob*", "actor/cov/*/weight*", "timing_s/step"),
    *("val-core/*/mean@*", "val-cov/acc/*", "val-cov/pass@*", "val-cov/greedy", "val-cov/entropy"),
)
_DIGITS = 6


class Damaged(ValueError):
    """A file that is no whole result. The message is a line with the file and the fix."""


class OtherProtocol(ValueError):
    """A result of another study, version or content of the protocol. The message is a line with the fix."""


def path_of(folder: Path, protocol: Protocol, cell: Cell) -> Path:
    """Where the result of a run is; folder: of all studies' data."""
    return folder / protocol.name / f"{cell.name}{SUFFIX}"


def write(folder: Path, protocol: Protocol, cell: Cell, run: Run, *, seconds: float, parameters: int | None) -> Path:
    """Write a finished run. Returns the file's path."""
    head = {
        "study": protocol.name,
        "version": protocol.version,
        "protocol": protocol.digest,
        "run": cell.name,
        "levels": dict(cell.levels),
        "parameters": parameters,
        "seconds": round(seconds, 1),
        "steps": int(run.steps[-1]) if run.steps.size else 0,
    }
    keys = [key for key in run.known if any(fnmatch.fnmatchcase(key, pattern) for pattern in KEPT)]
    text = io.StringIO()
    text.write(json.dumps(head) + "\n")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["step", *keys])
    for step, values in zip(run.steps, np.array([run.column(key) for key in keys]).T, strict=True):
        table.writerow([int(step), *("" if math.isnan(value) else f"{value:.{_DIGITS}g}" for value in values)])
    path = path_of(folder, protocol, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, gzip.compress(text.getvalue().encode(), mtime=0))
    return path


def read(folder: Path, protocol: Protocol, cell: Cell) -> Result | None:
    """The result of a run, None if there is none. Raises Damaged or OtherProtocol."""
    path = path_of(folder, protocol, cell)
    if not path.is_file():
        return None
    again = f"`verl-cov study run {protocol.name}` makes it again"
    try:
        head, run = _parse(path)
        name, levels, seconds = str(head["run"]), dict(head["levels"]), float(head["seconds"])
        made_by = (head["study"], head["version"], head["protocol"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Damaged(f"{path} is damaged ({reason}): {again}") from None
    if made_by != (protocol.name, protocol.version, protocol.digest):
        raise OtherProtocol(
            f"{path} is of {made_by[0]} version {made_by[1]} (protocol {made_by[2]}), and this is {protocol.name} "
            f"version {protocol.version} ({protocol.digest}): check out that protocol, or move the file away, then "
            f"{again}"
        )
    if name != cell.name or levels != dict(cell.levels):
        raise Damaged(f"{path} is of the run {name}: give it its own name, or {again}")
    return Result(name, levels, seconds, head.get("parameters"), run)


def _parse(path: Path) -> tuple[Mapping[str, Any], Run]:
    """The head and the metrics. Raises ValueError for anything else."""
    with open_log(path) as file:
        first = file.readline()
    if not first:
        raise ValueError("it is empty")
    head = json.loads(first)
    if not isinstance(head, dict):
        raise ValueError("its first line is no JSON object")
    run = read_metrics(path)
    if run.damaged:
        raise ValueError(run.damage)
    if not run.steps.size or int(run.steps[-1]) != head["steps"]:
        raise ValueError(f"it does not reach its step {head['steps']}")
    return head, run


@dataclass(frozen=True)
class Found:
    """The results of a study. results: by the run's name. problems: a line for each file that cannot be used."""

    results: Mapping[str, Result]
    problems: tuple[str, ...]


def find(folder: Path, protocol: Protocol) -> Found:
    """Read all results of a study. What cannot be used is a line, and the rest is read."""
    results, problems, others = {}, [], []
    for cell in protocol.cells:
        try:
            result = read(folder, protocol, cell)
        except Damaged as error:
            problems.append(str(error))
        except OtherProtocol as error:
            others.append(str(error))
        else:
            if result is not None:
                results[cell.name] = result
    if others:
        more = f" (and {len(others) - 1} more of another protocol)" if len(others) > 1 else ""
        problems.append(others[0] + more)
    known = {cell.name for cell in protocol.cells}
    at = folder / protocol.name
    strangers = sorted(path.name for path in at.glob(f"*{SUFFIX}") if path.name.removesuffix(SUFFIX) not in known)
    if strangers:
        listed = ", ".join(strangers[:5]) + (f" and {len(strangers) - 5} more" if len(strangers) > 5 else "")
        problems.append(f"{at} has files of no run of {protocol.name}: {listed}: remove them, or give them their names")
    return Found(results, tuple(problems))
