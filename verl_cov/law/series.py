"""The points of one or several runs in time order, and the scaled regressor that the law is fitted in."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from verl_cov.law.fit import Array

Unit = Literal["fraction", "percent", "other"]


@dataclass(frozen=True)
class Series:
    """Validated points in time order, run after run.

    entropy, score: [n]. gap: [n], spacing since the previous point in units of the usual one, inf where a run starts.
    run: [n], number 0, 1, ... of each point's run. order: [n], index of each point in the caller's arrays.
    """

    entropy: Array
    score: Array
    gap: Array
    run: NDArray[np.int64]
    order: NDArray[np.int64]

    @property
    def x(self) -> Array:
        """[n], exp(H)."""
        return np.exp(self.entropy)


@dataclass(frozen=True)
class Line:
    """Centres and scales the regressor exp(H): where entropy hardly moves, unscaled sums of squares would cancel.

    b is the law at exp(H) = 0 and the ceiling is the law at exp(H) = 1, so each coefficient is a contrast: a linear
    function of the scaled line's two coefficients.
    """

    centre: float
    width: float

    def design(self, x: Array) -> Array:
        """Design matrix [n, 2] of exp(H) [n]."""
        return np.stack((np.ones_like(x), (x - self.centre) / self.width), axis=-1)

    def contrast(self, x: float) -> Array:
        """Contrast [2] that gives the law's score at exp(H) = x."""
        return np.array([1.0, (x - self.centre) / self.width])

    def coefficients(self) -> Array:
        """Contrasts [3, 2] that give a, b and the ceiling."""
        return np.stack(([0.0, -1 / self.width], self.contrast(0.0), self.contrast(1.0)))


def line_of(x: Array) -> Line:
    """The scaling that gives exp(H) [n] mean 0 and standard deviation 1."""
    return Line(float(x.mean()), float(x.std()))


def series(
    entropy: ArrayLike, score: ArrayLike, steps: ArrayLike | None = None, runs: Sequence[Hashable] | None = None
) -> Series:
    """Sort points by run and step and measure the gaps between them.

    entropy, score: [n]. steps: [n]; without them the points must be in time order. runs: [n], the name of each point's
    run; without them all points are of one run.

    Raises ValueError: the lengths differ, a step is not finite or occurs twice in a run.
    """
    h, r = np.asarray(entropy, dtype=np.float64), np.asarray(score, dtype=np.float64)
    n = h.size
    at = np.arange(n, dtype=np.float64) if steps is None else np.asarray(steps, dtype=np.float64)
    if h.ndim != 1 or h.shape != r.shape:
        raise ValueError(f"entropy and score must be two lists of the same length, got shapes {h.shape} and {r.shape}")
    if at.shape != (n,) or (runs is not None and len(runs) != n):
        raise ValueError(f"steps and runs must have one value for each of the {n} points")
    if not np.isfinite(at).all():
        raise ValueError("steps must be finite")
    numbers: dict[Hashable, int] = {}
    run = np.array([numbers.setdefault(key, len(numbers)) for key in ([0] * n if runs is None else runs)], np.int64)
    order = np.lexsort((at, run))
    at, run = at[order], run[order]
    gap = np.diff(at, prepend=0.0)
    gap[np.flatnonzero(np.diff(run, prepend=-1))] = np.inf
    if (gap == 0).any():
        raise ValueError(
            f"step {at[np.argmax(gap == 0)]:g} occurs twice in a run: if the points are of several runs, pass `runs`"
        )
    inside = np.isfinite(gap)
    if inside.any():
        gap = gap / np.median(gap[inside])
    return Series(h[order], r[order], gap, run, order)


def unit_of(score: Array) -> Unit:
    """The unit of scores [n], guessed from their range: a fraction from 0 to 1, a percentage, or neither."""
    low, high = float(score.min()), float(score.max())
    if low < 0 or high > 100:
        return "other"
    if high <= 1:
        return "fraction"
    return "percent" if high > 5 else "other"  # a reward with a bonus is a little above 1
