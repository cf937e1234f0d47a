"""Fits the law to the first points of a run and predicts the scores of the others from their entropy.

The paper (arXiv 2505.22617, Fig. 5) fits the first 36 steps, 15 % of the run, and predicts the next 200 with a root
mean squared error of 0.9 points (mathematics). That uses the entropy of the predicted steps. For a forecast that needs
no later entropy, ask the estimate of the first points: `Forecast.estimate.ceiling`, `.gain(entropy)`, `.at(entropy)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from verl_cov.law.ar1 import regress
from verl_cov.law.estimate import Estimate, estimate
from verl_cov.law.fit import Array
from verl_cov.law.series import series

FRACTION = 0.15  # the paper's
FRACTIONS = (0.10, 0.15, 0.20, 0.30, 0.50, 0.75)
FEWEST = 3  # points: a line through fewer says nothing about its own error


@dataclass(frozen=True)
class Forecast:
    """A law fitted to the first points of a run, beside the points that followed.

    estimate: the fit to the first points. step, entropy, score: [m], of the predicted points. predicted: [m], by the
    law alone, as in the paper. low, high: [m], prediction intervals: they include the law's uncertainty, new noise and
    the remainder of the last fitted residual, which can shift an interval off `predicted` for the first predicted
    points. fraction, n: of the fitted points. rmse_rest: over the predicted points, in units of the
    score. final_error: predicted minus real score at the last point. coverage: share of the predicted points that lie
    in their interval.
    """

    estimate: Estimate
    step: Array
    entropy: Array
    score: Array
    predicted: Array
    low: Array
    high: Array
    fraction: float
    n: int
    rmse_rest: float
    final_error: float
    coverage: float


def forecast(
    steps: ArrayLike, entropy: ArrayLike, score: ArrayLike, *, fraction: float = FRACTION, level: float = 0.95
) -> Forecast:
    """Fit the first `fraction` of one run's points, by step, and predict the others.

    steps, entropy (nats per token), score: [n]. fraction: rounded up to whole points, at least 3. level: of intervals.
    Three points leave one degree of freedom: the intervals are then correct but wide.

    Raises ValueError: as `estimate` does, or the fraction is outside (0, 1), or no points are left to predict.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    points = series(entropy, score, steps)
    h, r, at = points.entropy, points.score, np.asarray(steps, dtype=np.float64)[points.order]
    # Rounded before it is rounded up: 0.07 x 100 is 7.000000000000001 in float64.
    k = max(FEWEST, math.ceil(round(fraction * h.size, 9)))
    if k >= h.size:
        raise ValueError(f"{h.size} points are too few: the first {k} are fitted, and none is left to predict")
    if not (np.isfinite(h).all() and np.isfinite(r).all()):
        raise ValueError("entropy and score must be finite: drop the points that lack a value")
    known = estimate(h[:k], r[:k], at[:k], level=level)
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
        fraction=fraction,
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
    fractions: Sequence[float] = FRACTIONS,
    level: float = 0.95,
) -> list[Forecast]:
    """Run `forecast` with several fractions of one run, to see how early the run was predictable.

    Arguments as in `forecast`. A fraction that cannot be fitted, or gives the same points as another, has no row.
    """
    rows: list[Forecast] = []
    for fraction in sorted(fractions):
        try:
            row = forecast(steps, entropy, score, fraction=fraction, level=level)
        except ValueError:  # the first points may all have the same entropy; a later fraction has more
            continue
        if not rows or row.n > rows[-1].n:
            rows.append(row)
    return rows
