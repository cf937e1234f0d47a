"""What the claims are about: a number of the runs of one replicate (one start, say).

Most are numbers of one run; of several runs of a replicate their mean counts. Some need several runs at once, in the
order of the claim's levels. A number that the runs do not give is a ValueError with the reason.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from verl_cov.core.target.settings import BAND
from verl_cov.law import fit, forecast, points, scale
from verl_cov.law.fit import Array
from verl_cov.law.points import ENTROPY_KEY
from verl_cov.law.readers import AVERAGE_KEY
from verl_cov.study.result import Result

COV = "actor/cov/"
LAST = 3  # values at the end of a run that are averaged, against the noise of single ones
SETTLED = 15  # rollouts after which it counts whether a target is held
THEOREM_STEP = 51  # the first at which the correlation over 50 pairs is logged

Statistic: TypeAlias = Callable[[Sequence[Result]], float]


def values(result: Result, key: str) -> Array:
    """The values of `key`, in the order of the steps. Raises ValueError if there is none."""
    found = result.run.values(key)
    if not found.size:
        raise ValueError(f"{result.name} has no {key}")
    return found


def entropy_of(result: Result) -> Array:
    """The entropy of each step's policy, before its updates: the paper's, or else verl's own."""
    key = COV + "entropy"
    return values(result, key if result.run.values(key).size else ENTROPY_KEY)


def at_end(series: Array) -> float:
    """The mean of the last values."""
    return float(series[-LAST:].mean())


def _each(one: Callable[[Result], float]) -> Statistic:
    return lambda results: float(np.mean([one(result) for result in results]))


# --- entropy ----------------------------------------------------------------------------------------------------------


def entropy_left(result: Result) -> float:
    entropy = entropy_of(result)
    return at_end(entropy) / float(entropy[0])


def _consumed(share: float) -> Callable[[Result], float]:
    return lambda result: of_whole(entropy_of(result), share)


def _gained(share: float) -> Callable[[Result], float]:
    return lambda result: of_whole(values(result, AVERAGE_KEY), share)


def of_whole(series: Array, share: float) -> float:
    """Which share of a series' change, from its first value to its end, has happened after `share` of the run.

    Raises ValueError: it does not change.
    """
    whole = at_end(series) - float(series[0])
    if whole == 0:
        raise ValueError("the series does not change")
    there = float(np.interp(share * (series.size - 1), np.arange(series.size), series))
    return (there - float(series[0])) / whole


# --- scores -----------------------------------------------------------------------------------------------------------


def score_of(key: str) -> Callable[[Result], float]:
    """The score at the end."""
    return lambda result: at_end(values(result, key))


def change_of(key: str) -> Callable[[Result], float]:
    """The score at the end less that of the start."""
    return lambda result: at_end(values(result, key)) - float(values(result, key)[0])


# --- the law ----------------------------------------------------------------------------------------------------------


def law_r2(result: Result) -> float:
    one = points(result.run, result.name)
    return fit(one.entropy, one.score).r2


def forecast_rmse(result: Result) -> float:
    one = points(result.run, result.name)
    return forecast(one.steps, one.entropy, one.score).rmse_rest


def forecast_final(result: Result) -> float:
    one = points(result.run, result.name)
    return abs(forecast(one.steps, one.entropy, one.score).final_error)


def others_by_first(results: Sequence[Result]) -> float:
    """How much worse the law of the first run fits the points of the others than their own laws: of root mean squares,
    the mean difference, in units of the score."""
    first, *others = (points(result.run, result.name) for result in results)
    if not others:
        raise ValueError("one run has nothing to be compared with")
    law = fit(first.entropy, first.score)
    worse = []
    for other in others:
        away = float(np.sqrt(np.mean((law.predict(other.entropy) - other.score) ** 2)))
        worse.append(away - fit(other.entropy, other.score).rmse)
    return float(np.mean(worse))


def _largest(coefficient: str) -> Statistic:
    """By how much the line in ln(parameters) through the smaller models misses the largest one's coefficient."""

    def error(results: Sequence[Result]) -> float:
        sizes, found = _laws(results)
        trend = getattr(scale(sizes[:-1], *(found[name][:-1] for name in "ab")), coefficient)
        return abs(trend.predict(sizes[-1]).value - float(found[coefficient][-1]))

    return error


def _laws(results: Sequence[Result]) -> tuple[Array, dict[str, Array]]:
    """Parameters, ascending, and the coefficients of each run's law."""
    known = sorted((result for result in results if result.parameters), key=lambda result: result.parameters or 0)
    if len(known) < 4:
        raise ValueError("fewer than four sizes")
    sizes = np.array([result.parameters for result in known], dtype=np.float64)
    laws = [fit(one.entropy, one.score) for one in (points(result.run, result.name) for result in known)]
    a, b = (np.array([getattr(law, name) for law in laws]) for name in "ab")
    return sizes, {"a": a, "b": b, "ceiling": b - a}


# --- theory -----------------------------------------------------------------------------------------------------------


def _theorem(key: str) -> Callable[[Result], float]:
    """A number over the first 50 pairs of rollouts: later most changes of entropy are noise."""

    def number(result: Result) -> float:
        column = result.run.column(COV + key)
        logged = np.flatnonzero(np.isfinite(column) & (result.run.steps <= THEOREM_STEP))
        if not logged.size:
            raise ValueError(f"{result.name} has no {COV}{key}")
        return float(column[logged[-1]])

    return number


def covariance_positive(result: Result) -> float:
    return float(np.mean(values(result, COV + "mean") > 0))


def easy_less_hard(result: Result) -> float:
    easy, hard = values(result, COV + "prompt_cov_easy"), values(result, COV + "prompt_cov_hard")
    return float(easy.mean() - hard.mean())


def _ladder(share: str) -> Callable[[Result], float]:
    """The covariance of the largest tokens, in multiples of the mean over all, at the first step."""

    def ratio(result: Result) -> float:
        top, mean = float(values(result, COV + f"top_{share}")[0]), float(values(result, COV + "mean")[0])
        if mean <= 0:
            raise ValueError(f"{result.name}: the mean covariance is {mean:g} at the first step")
        return top / mean

    return ratio


# --- controls ---------------------------------------------------------------------------------------------------------


def _target(result: Result) -> tuple[Array, Array]:
    """Of each rollout with a target: entropy / target - 1, and the standard error of the entropy, relative."""
    goal, entropy, noise = (result.run.column(COV + key) for key in ("target", "entropy", "entropy_error"))
    there = np.isfinite(goal) & np.isfinite(entropy)
    if there.sum() <= SETTLED:
        raise ValueError(f"{result.name} has no target for more than {SETTLED} rollouts")
    return entropy[there] / goal[there] - 1, np.nan_to_num(noise[there] / goal[there])


def target_error(result: Result) -> float:
    return float(np.abs(_target(result)[0][SETTLED:]).mean())


def target_settled(result: Result) -> float:
    """Rollouts before the first five whose mean is within the band; all of them if it never is."""
    return float(first_within(_target(result)[0]))


def first_within(apart: Array) -> int:
    """Rollouts before the first five whose mean relative distance is within the band; all if it never is."""
    inside = np.abs(np.convolve(apart, np.ones(5) / 5, mode="valid")) <= BAND
    return int(np.argmax(inside)) if inside.any() else inside.size


def target_swings(result: Result) -> float:
    """How often the entropy comes to the other side by more than the band and twice the measurement's noise."""
    apart, noise = _target(result)
    late = apart[SETTLED:]
    far = np.sign(late)[np.abs(late) > np.maximum(BAND, 2 * noise[SETTLED:])]
    return float(np.count_nonzero(np.diff(far)))


def rises_in_order(results: Sequence[Result]) -> float:
    """Rank correlation of the runs' order with their entropy at the end: 1 if each has more than the one before."""
    if len(results) < 3:
        raise ValueError("an order needs three runs")
    end = np.array([at_end(entropy_of(result)) for result in results])
    ranks = end.argsort().argsort()
    return float(np.corrcoef(np.arange(end.size), ranks)[0, 1])


def best_is_inside(results: Sequence[Result]) -> float:
    """1 if the run with the best score is neither the first nor the last, else 0."""
    ends = [score_of(AVERAGE_KEY)(result) for result in results]
    return float(0 < int(np.argmax(ends)) < len(ends) - 1)


_THEOREM = "correlation of predicted and measured entropy change"
_LARGEST = "of the largest model, from the line through the smaller ones, is off by"
_TOP = "in multiples of the mean covariance, first step"

STATISTICS: dict[str, tuple[str, Statistic]] = {
    "entropy_left": ("share of the start's entropy that is left at the end", _each(entropy_left)),
    "entropy_end": ("entropy at the end, nats per token", _each(lambda result: at_end(entropy_of(result)))),
    "entropy_consumed_third": ("share of the consumed entropy that is gone after 1/3", _each(_consumed(1 / 3))),
    "gain_third": ("share of the gain in pass@1 that is there after 1/3", _each(_gained(1 / 3))),
    "pass@1": ("pass@1 at the end", _each(score_of(AVERAGE_KEY))),
    "pass@16": ("pass@16 at the end", _each(score_of("val-cov/pass@16"))),
    "pass@64": ("pass@64 at the end", _each(score_of("val-cov/pass@64"))),
    "greedy": ("greedy accuracy at the end", _each(score_of("val-cov/greedy"))),
    "pass@1_change": ("pass@1 at the end less that of the start", _each(change_of(AVERAGE_KEY))),
    "pass@64_change": ("pass@64 at the end less that of the start", _each(change_of("val-cov/pass@64"))),
    "law_r2": ("R² of R = -a exp(H) + b", _each(law_r2)),
    "forecast_rmse": ("RMSE of the later scores by the law of the first 15 %", _each(forecast_rmse)),
    "forecast_final": ("error at the last score by the law of the first 15 %", _each(forecast_final)),
    "others_by_first": ("RMSE of the first one's law on the others' points, less that of their own", others_by_first),
    "largest_a": (f"a {_LARGEST}", _largest("a")),
    "largest_b": (f"b {_LARGEST}", _largest("b")),
    "largest_ceiling": (f"b - a {_LARGEST}", _largest("ceiling")),
    "theorem1": (f"{_THEOREM}, Theorem 1", _each(_theorem("theorem1_correlation"))),
    "theorem2": (f"{_THEOREM}, Theorem 2", _each(_theorem("theorem2_correlation"))),
    "theorem1_sign": ("share of the steps with the sign of Theorem 1", _each(_theorem("theorem1_agreement"))),
    "covariance_positive": ("share of the steps with a positive mean covariance", _each(covariance_positive)),
    "easy_less_hard": ("covariance of easy prompts less that of hard ones", _each(easy_less_hard)),
    "top_2%": (f"covariance of the largest 2 % {_TOP}", _each(_ladder("0.02"))),
    "top_0.2%": (f"covariance of the largest 0.2 % {_TOP}", _each(_ladder("0.002"))),
    "target_error": (f"distance from the target after {SETTLED} rollouts, in parts of it", _each(target_error)),
    "target_settled": (
        f"rollouts before the first five whose mean is within {BAND:.0%} of the target",
        _each(target_settled),
    ),
    "target_swings": ("swings from one side of the target to the other", _each(target_swings)),
    "rises_in_order": ("rank correlation of the levels' order with the entropy at the end", rises_in_order),
    "best_is_inside": ("1 if the best of the levels is neither the first nor the last", best_is_inside),
}


def compute(name: str, results: Sequence[Result]) -> float:
    """The statistic of the runs of one replicate. Raises ValueError: they do not give it."""
    number = STATISTICS[name][1](results)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}")
    return number


def of_each(name: str, results: Sequence[Result]) -> list[float]:
    """One number a run, of those that have it."""
    found = []
    for result in results:
        with contextlib.suppress(ValueError):
            found.append(compute(name, [result]))
    return found
