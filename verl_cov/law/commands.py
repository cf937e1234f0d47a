"""What the commands `fit`, `forecast`, `compare` and `scale` compute from the points of runs.

Whatever is wrong with the input raises ValueError or OSError with one line that names the run.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from verl_cov.law import arguments
from verl_cov.law.compare import Comparison, compare
from verl_cov.law.estimate import Estimate, estimate
from verl_cov.law.forecast import Forecast, forecast, rolling_origin
from verl_cov.law.points import Points
from verl_cov.law.readers import DETECTED, LeftOut, Wanted
from verl_cov.law.runs import check_comparable, load, say_left_out

_Answer = TypeVar("_Answer")


def fit_each(runs: Sequence[Points], robust: bool = False) -> list[tuple[Points, Estimate]]:
    """The law of each run that has one."""

    def law(run: Points) -> tuple[Points, Estimate]:
        controlled = run.control is not None
        return run, estimate(run.entropy, run.score, run.steps, robust=robust, controlled=controlled)

    return _each(runs, law)


def fit_together(runs: Sequence[Points], robust: bool = False) -> tuple[Points, Estimate]:
    """One law for runs that differ in their seed only, with the points of all."""
    check_comparable(runs)
    together = replace(
        runs[0],
        name=f"{len(runs)} runs: {', '.join(run.name for run in runs[:5])}",
        notes=tuple(note for run in runs for note in run.notes),
        **{key: np.concatenate([getattr(run, key) for run in runs]) for key in ("steps", "entropy", "score")},
    )
    law = estimate(
        together.entropy,
        together.score,
        together.steps,
        runs=[run.name for run in runs for _ in run.steps],
        robust=robust,
        controlled=any(run.control for run in runs),
    )
    return together, law


def forecast_each(runs: Sequence[Points], fraction: float) -> list[tuple[Points, Forecast, list[Forecast]]]:
    """A forecast of each run that has one from its first `fraction` of points, and the same from other fractions."""

    def forecasts(run: Points) -> tuple[Points, Forecast, list[Forecast]]:
        columns = run.steps, run.entropy, run.score
        return run, forecast(*columns, fraction=fraction), rolling_origin(*columns)

    return _each(runs, forecasts)


def compare_runs(runs: Sequence[Points]) -> Comparison:
    """Whether the runs share one law."""
    check_comparable(runs)
    return compare({run.name: (run.entropy, run.score, run.steps) for run in runs})


@dataclass(frozen=True)
class Sizes:
    """The laws of models of several sizes, ascending by size; each list has one entry for each run."""

    parameters: list[float]
    a: list[float]
    b: list[float]
    names: list[str]


def read_sizes(given: Sequence[str], wanted: Wanted = DETECTED) -> Sizes:
    """The sizes (billions) and laws of SIZE=RUN each, or of one CSV with columns parameters, a and b."""
    if len(given) == 1 and "=" not in given[0]:
        rows = _size_table(given[0])
    else:
        rows, runs = [], []
        for argument in given:
            size, equals, path = argument.partition("=")
            try:
                parameters = arguments.size(size)
            except ValueError as error:
                message = f"{argument!r}: give SIZE=RUN, such as 0.5B=runs/small, or one CSV file; {error}"
                raise ValueError(message) from None
            if not (equals and path):
                raise ValueError(f"{argument!r}: give the run too, as SIZE=RUN, or one CSV file")
            for run, law in fit_each(load([Path(path)], wanted)):
                rows.append((parameters, law.a.value, law.b.value, run.name))
                runs.append(run)
        check_comparable(runs)
    rows.sort(key=lambda row: (row[0], row[2], row[1]))  # the order of `Scaling.parameters`
    return Sizes(*([row[column] for row in rows] for column in range(4)))  # type: ignore[arg-type]


def _size_table(path: str) -> list[tuple[float, float, float, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8: save the table so") from None
    try:
        numbers = [(arguments.size(row["parameters"]), float(row["a"]), float(row["b"])) for row in rows]
    except KeyError as error:
        message = f"{path}: a table needs the columns parameters, a and b, and has no {error.args[0]}"
        raise ValueError(f"{message}; a run is given as SIZE=RUN") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: a table needs numbers in the columns parameters, a and b: {error}") from error
    return [(size, a, b, row.get("model") or f"{size:g}") for (size, a, b), row in zip(numbers, rows, strict=True)]


def _each(runs: Sequence[Points], answer: Callable[[Points], _Answer]) -> list[_Answer]:
    """The answers for the runs that have one; which have none is said. Raises ValueError if none has."""
    answers, left_out = [], []
    for run in runs:
        try:
            answers.append(answer(run))
        except (ValueError, ArithmeticError) as error:
            left_out.append(LeftOut(Path(run.name), str(error)))
    if not answers:
        raise ValueError("; ".join(map(str, left_out[:5])) or "there is no run")
    say_left_out(left_out)
    return answers
