"""How early was a run predictable? Fit the law to the first points of a run and predict the rest from their entropy.

The paper (arXiv 2505.22617, Fig. 5) fits the first 36 steps, 15 % of the run, and predicts the next 200 with a root
mean squared error of 0.9 points (mathematics). That needs the entropy of the steps predicted. A forecast that does not
is in the estimate of the first points: `Forecast.estimate.ceiling`, `.gain(entropy now)`, `.at(an entropy)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from verl_cov.law.ar1 import Array, regress
from verl_cov.law.estimate import Estimate, Interval, estimate, series

SHARE = 0.15  # the paper's
SHARES = (0.10, 0.15, 0.20, 0.30, 0.50, 0.75)
FEWEST = 3  # points that a line needs to say anything about its own error


@dataclass(frozen=True)
class Forecast:
    """A law fitted to the first points of a run, against the rest.

    estimate: the fit, `ar1`. step, entropy, score: [m], of the points predicted. predicted: [m], by the law alone, as
    in the paper. low, high: [m], prediction intervals: uncertainty of the law, plus noise, plus what is left of the
    last fitted residual, whose pull can shift an interval off `predicted` for the first points. share, n: of the points
    that were fitted. rmse_rest: over the points predicted, in units of the score. final_error: predicted less real
    score at the last point. coverage: share of the points predicted that lie in their interval.
    """

    estimate: Estimate
    step: Array
    entropy: Array
    score: Array
    predicted: Array
    low: Array
    high: Array
    share: float
    n: int
    rmse_rest: float
    final_error: float
    coverage: float


@dataclass(frozen=True)
class Origin:
    """One row of `rolling_origin`: what a fit to the first `share` of the points, n of them, knew. As in `Forecast`."""

    share: float
    n: int
    rmse_rest: float
    final_error: float
    coverage: float
    ceiling: Interval


def forecast(
    steps: ArrayLike, entropy: ArrayLike, score: ArrayLike, *, share: float = SHARE, level: float = 0.95
) -> Forecast:
    """Fit the first `share` of one run's points, by step, and predict the others.

    steps, entropy (nats per token), score: [n]. share: rounded up to whole points, at least 3. level: of the intervals.
    Three points leave one degree of freedom: such intervals are right and wide.

    Raises ValueError: as `estimate` does, a share outside (0, 1), no points left to predict.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    points = series(entropy, score, steps)
    h, r, at = points.entropy, points.score, np.asarray(steps, dtype=np.float64)[points.order]
    # Rounded before it is rounded up: 0.07 x 100 is 7.000000000000001 in float64.
    k = max(FEWEST, math.ceil(round(share * h.size, 9)))
    if k >= h.size:
        raise ValueError(f"{h.size} points leave none to predict after the first {k}")
    if not (np.isfinite(h).all() and np.isfinite(r).all()):
        raise ValueError("entropy and score must be finite: drop the points without a value")
    known = estimate(h[:k], r[:k], at[:k], level=level, method="ar1")
    mixture = regress(known.line.design(points.x[:k]), r[:k], points.gap[:k])
    low, high = mixture.predict(known.line.design(points.x[k:]), points.gap[k:], level)
    predicted = known.law.predict(h[k:])
    error = predicted - r[k:]
    return Forecast(
        estimate=known,
        step=at[k:],
        entropy=h[k:],
        score=r[k:],
        predicted=predicted,
        low=low,
        high=high,
        share=share,
        n=k,
        rmse_rest=float(np.sqrt(np.mean(error**2))),
        final_error=float(error[-1]),
        coverage=float(np.mean((low <= r[k:]) & (r[k:] <= high))),
    )


def rolling_origin(
    steps: ArrayLike,
    entropy: ArrayLike,
    score: ArrayLike,
    *,
    shares: Sequence[float] = SHARES,
    level: float = 0.95,
) -> list[Origin]:
    """`forecast` from several shares of one run, a row each: how early was this run predictable?

    Arguments and errors as in `forecast`. A share that gives no more points than the one before has no row.
    """
    rows: list[Origin] = []
    for share in sorted(shares):
        try:
            made = forecast(steps, entropy, score, share=share, level=level)
        except ValueError:  # the first points may all have one entropy: a later share has more
            continue
        if not rows or made.n > rows[-1].n:
            rows.append(Origin(share, made.n, made.rmse_rest, made.final_error, made.coverage, made.estimate.ceiling))
    return rows
