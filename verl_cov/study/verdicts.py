"""A claim's number over the replicates, with its interval, and what that says of the claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from verl_cov.law.distributions import stdtrit
from verl_cov.study.protocol import Cell, Chosen, Claim, Protocol
from verl_cov.study.result import Result
from verl_cov.study.statistics import compute

LEVEL = 0.95
HOLDS, FAILS, OPEN, WAITS = "holds", "does not hold", "cannot be told here", "cannot be told yet"


@dataclass(frozen=True)
class Verdict:
    """What a study says of a claim.

    values: the number of each replicate, by its level. mean, se, low, high: over the replicates, nan where there are
    too few; low and high are Student's interval at `LEVEL`. wanted: replicates of the protocol. runs, done: how many
    runs the claim needs and has. notes: why a replicate gives no number, a sentence each.
    """

    claim: Claim
    values: Mapping[str, float]
    mean: float
    se: float
    low: float
    high: float
    wanted: int
    runs: int
    done: int
    text: str
    notes: tuple[str, ...]


def judge(protocol: Protocol, claim: Claim, results: Mapping[str, Result]) -> Verdict:
    """Judge a claim by the results that there are.

    It holds if the whole interval of the mean lies on the predicted side of the threshold, and does not if the whole
    interval lies on the other; in between the study cannot tell. While runs are missing there is no verdict.
    """
    cells = protocol.cells_of(claim)
    done = sum(cell.name in results for cell in cells)
    replicates = list(dict.fromkeys(cell.levels[protocol.replicate] for cell in protocol.chosen(claim.runs)))
    values: dict[str, float] = {}
    notes: list[str] = []
    for level in replicates:
        try:
            value = _value(protocol, claim, level, results)
        except ValueError as error:
            notes.append(f"{protocol.replicate} {level}: {error}")
            continue
        if value is not None:
            values[level] = value
    mean, se, low, high = interval(list(values.values()))
    return Verdict(
        claim=claim,
        values=values,
        mean=mean,
        se=se,
        low=low,
        high=high,
        wanted=len(replicates),
        runs=len(cells),
        done=done,
        text=WAITS if done < len(cells) else _verdict(claim, mean, low, high),
        notes=tuple(notes),
    )


def _value(protocol: Protocol, claim: Claim, level: str, results: Mapping[str, Result]) -> float | None:
    """The number of one replicate; None while a run of it is missing. Raises ValueError: the runs do not give it."""

    def number(runs: Chosen) -> float | None:
        cells: list[Cell] = [cell for cell in protocol.chosen(runs) if cell.levels[protocol.replicate] == level]
        found = [results[cell.name] for cell in cells if cell.name in results]
        return compute(claim.statistic, found) if cells and len(found) == len(cells) else None

    mine = number(claim.runs)
    if claim.minus is None or mine is None:
        return mine
    other = number({**claim.runs, **claim.minus})
    return None if other is None else mine - other


def interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean, standard error, and the ends of Student's interval at `LEVEL`; nan where there are too few values."""
    if not values:
        return math.nan, math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, math.nan, math.nan, math.nan
    se = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * se
    return mean, se, mean - half, mean + half


def _verdict(claim: Claim, mean: float, low: float, high: float) -> str:
    if math.isnan(low):
        return OPEN
    above, below = low > claim.threshold, high < claim.threshold
    if claim.relation == "<":
        above, below = below, above
    return HOLDS if above else FAILS if below else OPEN
