"""A line through the means of groups of runs, with intervals that tell the scatter of groups from that of runs.

A model's coefficient is off the line by what its size has of its own, and each run by its seed besides. Runs of one
size share the first, so more seeds do not make it smaller, and errors that count runs as independent are too small.

The squares about the line through the means have S - 2 degrees of freedom for S sizes, those of the runs about the
means n - S. A new run's error has a part of each, so its interval is that of a sum of two Student's t (Behrens and
Fisher): it holds for any ratio of the two scatters. docs/law.md shows how often.
If the means scatter less than half of all sets of runs would without any scatter of sizes (F below its median), a new
run's interval pools all squares. The line itself needs no such choice: its errors are those of the means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verl_cov.law.distributions import fdtrc, stdtr, stdtrit
from verl_cov.law.fit import Array, Interval

_GRID = (np.arange(200) + 0.5) / 200


@dataclass(frozen=True)
class Scatter:
    """The line through the means of S sizes.

    line: [2], coefficients. means: [S]. solve: [2, S], which makes the line of the means. share: [S], 1 / runs of each
    size. between, between_df: variance of the means about the line. within, within_df: variance of runs about the mean
    of their size. pooled, pooled_df: that of runs from all squares, if sizes do not scatter, else nan and 0.
    """

    line: Array
    means: Array
    solve: Array
    share: Array
    between: float
    between_df: int
    within: float
    within_df: int
    pooled: float
    pooled_df: int

    def interval(self, contrast: Array, level: float, *, new: bool = False) -> Interval:
        """contrast [2] @ line; with `new` the interval is for one new run there, `se` for the line."""
        weight = contrast @ self.solve
        second = 0.0
        if new and self.pooled_df:
            line, run, df = self.pooled * float(weight**2 @ self.share), self.pooled, self.pooled_df
        else:
            line, run, df = self.between * float(weight @ weight), self.between, self.between_df
            second = self.within * (1 - float(self.share.mean())) if new else 0.0
        first = line + (run if new else 0.0)
        half = _half(first**0.5, df, second**0.5, self.within_df, (1 + level) / 2)
        value = float(contrast @ self.line)
        return Interval(value, line**0.5, value - half, value + half)


def scatter(design: Array, y: Array, group: NDArray[np.intp]) -> Scatter:
    """The line of y [n] on design [S, 2]. group: [n], the size 0 to S - 1 of each run; S is at least 3."""
    runs = np.bincount(group).astype(np.float64)
    means: Array = np.bincount(group, y) / runs
    solve = np.asarray(np.linalg.pinv(design), dtype=np.float64)
    line = solve @ means
    about_line = float(((means - design @ line) ** 2).sum())
    about_means = float(((y - means[group]) ** 2).sum())
    df, within_df, share = means.size - 2, int(y.size - means.size), 1 / runs
    between = about_line / df
    within = about_means / within_df if within_df else 0.0
    pooled, pooled_df = math.nan, 0
    if within > 0 and float(fdtrc(df, within_df, between / (within * float(share.mean())))) > 0.5:
        pooled_df = within_df + df
        pooled = (about_means + float((means - design @ line) ** 2 @ runs)) / pooled_df
    return Scatter(line, means, solve, share, between, df, within, within_df, pooled, pooled_df)


def _half(first: float, df: int, second: float, second_df: int, share: float) -> float:
    """The value below which the sum of two scaled Student's t lies with probability `share`."""
    from scipy.optimize import brentq  # here: only a prediction from several seeds needs it

    alone = first * float(stdtrit(df, share))
    if second == 0:
        return alone
    parts = second * stdtrit(second_df, _GRID)
    if first <= 1e-9 * second:
        return second * float(stdtrit(second_df, share))

    def excess(half: float) -> float:
        return float(np.mean(stdtr(df, (half - parts) / first))) - share

    return float(brentq(excess, 0.0, 2 * (alone + float(parts.max())), xtol=1e-9 * (first + second)))
