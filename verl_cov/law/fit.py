"""Fits the law R = -a exp(H) + b (arXiv 2505.22617, Eq. 6) by least squares.

R is the validation score and H the policy's entropy in nats per token. The paper does not print its fitting procedure.
The law is linear in exp(H), so ordinary least squares has a closed form: no start values, no iterations, one answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]

LARGEST = 1e100  # of a score or of exp(H): the products of larger values leave float64


@dataclass(frozen=True)
class Interval:
    """An estimate, its standard error and the ends of its interval, all in units of the score and of one estimator."""

    value: float
    se: float
    low: float
    high: float


@dataclass(frozen=True)
class LawFit:
    """The fitted law R = -a exp(H) + b.

    a, b: the coefficients, in units of the score. a > 0 says that the score was bought with entropy.
    ceiling: b - a, the score that the law predicts when no entropy is left (H = 0).
    r2: share of the score's variance that the law explains, <= 1; nan if the score does not vary.
    rmse: root of the mean squared residual over the fitted points, in units of the score.
    n: number of fitted points.
    """

    a: float
    b: float
    ceiling: float
    r2: float
    rmse: float
    n: int

    @overload
    def predict(self, entropy: float) -> float: ...

    @overload
    def predict(self, entropy: Array) -> Array: ...

    def predict(self, entropy: ArrayLike) -> float | Array:
        """The score at `entropy` (nats per token): a float for a number, an array of the same shape for an array."""
        score = np.asarray(self.b - self.a * np.exp(np.asarray(entropy, dtype=np.float64)))
        return score if score.ndim else float(score)


def line(a: float, b: float, entropy: Array, score: Array) -> LawFit:
    """The law with given coefficients, measured against points, each [n]. r2 is below 0 if their mean fits better."""
    residual = score - b + a * np.exp(entropy)
    square, variance = float(np.mean(residual**2)), float(score.var())
    return LawFit(a, b, b - a, 1 - square / variance if variance > 0 else math.nan, math.sqrt(square), score.size)


def fit(entropy: ArrayLike, score: ArrayLike) -> LawFit:
    """Fit the law to the points (entropy[i], score[i]).

    entropy: [n], nats per token. score: [n], in any unit (the paper: accuracy from 0 to 1). The order of the points
    does not change a single bit of the result.

    Raises ValueError: the lengths differ, a value is not finite or absurdly large, or there are fewer than three
    distinct entropies. (The curve passes through any two points: such a fit would claim R2 = 1 and know nothing.)
    """
    h = np.asarray(entropy, dtype=np.float64)
    r = np.asarray(score, dtype=np.float64)
    if h.ndim != 1 or h.shape != r.shape:
        raise ValueError(f"entropy and score must be two lists of the same length, got shapes {h.shape} and {r.shape}")
    for name, values in (("entropy", h), ("score", r)):
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise ValueError(
                f"{name}[{bad[0]}] is {values[bad[0]]}: drop the points that lack a value, as `points` does"
            )
    if r.size and np.abs(r).max() > LARGEST:
        raise ValueError(f"a score is {r[np.abs(r).argmax()]:g}, no measured value: drop that point")

    order = np.lexsort((r, h))  # sums in float64 depend on the order: fix it
    h, r = h[order], r[order]
    with np.errstate(over="ignore"):
        x = np.exp(h)
    if not np.all(x <= LARGEST):
        raise ValueError(f"entropy {h[-1]:g} is too large for exp(H): entropy is in nats per token, 0 to about 12")
    distinct = np.unique(x).size
    if distinct < 3:
        raise ValueError(f"the law needs at least 3 points of distinct entropy, got {distinct}")

    dx, dr = x - x.mean(), r - r.mean()  # centred, or the sums of squares cancel when the entropy hardly moves
    a = -float(dx @ dr) / float(dx @ dx)
    b = float(r.mean()) + a * float(x.mean())
    residual = dr + a * dx
    variance = float(dr @ dr)
    return LawFit(
        a=a,
        b=b,
        ceiling=b - a,
        r2=1.0 - float(residual @ residual) / variance if variance > 0 else float("nan"),
        rmse=float(np.sqrt(np.mean(residual**2))),
        n=h.size,
    )
