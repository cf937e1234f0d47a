"""What stands beside the law for each run: other descriptions, a later step, the paper's headline shares.

Sentences, cells and JSON for `fit`, `forecast` and `report`. What cannot be said of a run is a reason, no error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from verl_cov.law.ahead import Ahead, ahead
from verl_cov.law.alternatives import Ranked, rank, verdict
from verl_cov.law.estimate import Estimate
from verl_cov.law.fit import Interval
from verl_cov.law.forecast import Forecast
from verl_cov.law.headline import PAPER, Shares, headline
from verl_cov.law.points import Points
from verl_cov.law.tables import of_rows, with_ends
from verl_cov.law.to_json import Json, forecast_json


@dataclass(frozen=True)
class Later:
    """What `forecast` adds for one run. name: of the run. ranked: as `rank` gives it. step: that was asked for, if one
    was. there: the run at that step, or why nothing can be said of it."""

    name: str
    ranked: tuple[Ranked, ...]
    step: float | None
    there: Ahead | str


def later(runs: Sequence[Points], step: float | None = None) -> list[Later]:
    """Rank the descriptions of each run and, if a step is given, place it there.

    Raises ValueError: nothing can be said of that step for any run.
    """
    answers = [Later(run.name, rank(run.steps, run.entropy, run.score), step, _there(run, step)) for run in runs]
    if step is not None and not any(isinstance(answer.there, Ahead) for answer in answers):
        raise ValueError(f"--to-step {step:g}: {answers[0].name}: {answers[0].there}")
    return answers


def _there(run: Points, step: float | None) -> Ahead | str:
    try:
        return "" if step is None else ahead(run.steps, run.entropy, run.score, to=step)
    except ValueError as error:
        return str(error)


def fit_lines(run: Points, law: Estimate) -> list[str]:
    """The headline shares of one run, and the least-squares line where it differs from the law."""
    shares = headline(run.steps, run.entropy, run.score) if law.runs == 1 else ()
    return [line for line in (headline_line(run.name, shares), least_squares_line(run, law)) if line]


def later_lines(answer: Later) -> list[str]:
    """Which description predicted the run best, and where it will stand."""
    there = [ahead_line(answer.name, answer.step, answer.there)] if answer.step is not None else []
    return [verdict(answer.ranked), *there]


def least_squares_line(run: Points, law: Estimate) -> str | None:
    """The plain least-squares line beside the law, if the two differ by more than half a standard error."""
    plain = law.least_squares
    if not law.parted:
        return None
    return (
        f"{run.name}: {'Huber' if law.robust else 'least squares'} alone, which takes the noise for independent, gives "
        f"a {plain.a:.3f}, b {plain.b:.3f}, ceiling {plain.ceiling:.3f} (R² {plain.r2:.3f})"
    )


RANK_COLUMNS = ("description", "score =", "knows of the later points", "held-out error")


def rank_row(one: Ranked) -> tuple[str, ...]:
    """Cells under `RANK_COLUMNS`."""
    knows = "entropy" if one.needs == "entropy" else "the step only"
    return one.name, one.formula, knows, f"{one.error:.3g}"


def rank_table(ranked: Sequence[Ranked]) -> Table:
    """How well each description predicted the run's later scores, the best first."""
    title = "Other descriptions beside the law: median error over the origins"
    return of_rows(title, RANK_COLUMNS, [rank_row(one) for one in ranked])


def ahead_line(name: str, step: float, answer: Ahead | str) -> str:
    """Where the run will stand at `step`, in words."""
    if isinstance(answer, str):
        return f"{name}: nothing can be said of step {step:g}: {answer}"
    return (
        f"{name}: at step {step:g} a score of {with_ends(answer.score)}, at {with_ends(answer.entropy)} nats per "
        f"token; the {step - answer.last_step:g} steps until then are worth {with_ends(answer.gain, '+.2g')} by the law"
    )


def headline_line(name: str, shares: Sequence[Shares]) -> str | None:
    """Share of the entropy consumed and of the gain realised early in the run, beside the paper's."""
    if not shares:
        return None
    (entropy, gain), papers = (
        zip(*((each.entropy, each.gain) for each in shares), strict=True),
        zip(*PAPER, strict=True),
    )
    parts = []
    for what, early, paper in zip(("entropy consumed", "gain realised"), (entropy, gain), papers, strict=True):
        if None in early:
            parts.append(f"{what}: no shares, as the whole is not above its noise")
            continue
        first, third = (f"{100 * share.value:.0f} ± {100 * share.se:.0f} %" for share in early if share)
        reference = f"the paper's mean: {100 * paper[0]:.0f} and {100 * paper[1]:.0f} %"
        parts.append(f"{what}: {first} after 1/12 of the run, {third} after 1/3 ({reference})")
    return f"{name}: {'; '.join(parts)}"


def forecasts_json(forecasts: Sequence[tuple[Points, Forecast, list[Forecast]]], later: Sequence[Later]) -> list[Json]:
    """One object for each run: its forecast, and what stands beside it."""
    return [forecast_json(*row) | later_json(more) for row, more in zip(forecasts, later, strict=True)]


def later_json(answer: Later) -> Json:
    """`alternatives`, the best first, and `to_step` if a step was asked for."""
    result: Json = {"alternatives": rank_json(answer.ranked)}
    return result if answer.step is None else result | {"to_step": ahead_json(answer.step, answer.there)}


def rank_json(ranked: Sequence[Ranked]) -> list[Json]:
    """The descriptions of a run, the best first."""
    return [
        {
            "name": one.name,
            "formula": one.formula,
            "needs": one.needs,
            "error": _finite(one.error),
            "errors": list(map(_finite, one.errors)),
        }
        for one in ranked
    ]


def ahead_json(step: float, answer: Ahead | str) -> Json:
    """Where a run will stand at `step`; all None, with the reason as a warning, where that cannot be said."""
    result: Json = {"step": step}
    for key in ("score", "entropy", "gain"):
        result |= _interval(key, getattr(answer, key, None))
    return result | {"warnings": [answer] if isinstance(answer, str) else list(answer.warnings)}


def headline_json(run: Points, law: Estimate) -> Json:
    """`headline`: shares of entropy consumed and gain realised; None where the whole is not above its noise."""
    shares = headline(run.steps, run.entropy, run.score) if law.runs == 1 else ()
    rows: list[Json] = [
        {"fraction": each.fraction}
        | _interval("entropy_consumed", each.entropy)
        | _interval("gain_realised", each.gain)
        for each in shares
    ]
    return {"headline": rows}


def _interval(key: str, interval: Interval | None) -> Json:
    """`key` and `key_interval`, as everywhere in the JSON of the law."""
    if interval is None:
        return {key: None, f"{key}_interval": None}
    return {key: _finite(interval.value), f"{key}_interval": [_finite(interval.low), _finite(interval.high)]}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
