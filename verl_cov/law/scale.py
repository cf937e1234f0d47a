"""Fits the law's a and b against model size, as straight lines in ln(parameters) (arXiv 2505.22617, Fig. 7).

The paper calls the relation log-linear and predicts large models from small ones. Its own 32B model falls short of the
line through 0.5B to 7B: by 0.12 in b, and by 5 points in the ceiling. So each prediction comes with an interval and
with the error on each size when it is left out, and a line that bends is told.

Runs of one size share what that size has of its own, so they are no independent points: the line goes through the means
of the sizes (:mod:`verl_cov.law.scatter`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from verl_cov.law.distributions import p_text, stdtr
from verl_cov.law.fit import Array, Interval
from verl_cov.law.scatter import Scatter, scatter

FAMILY_P = 0.05  # of all tests for a bend together


@dataclass(frozen=True)
class Trend:
    """The line coefficient = intercept + slope ln(parameters) through the means of the sizes.

    slope, intercept: with intervals at `level`; the intercept is the value at one unit of parameters. rmse: root of the
    runs' mean squared residual. left_out: [n], ascending by size, predicted minus real value of each run by the line
    through the other sizes. bend_p: p-value of a quadratic term in ln(parameters). end_p: p-value of the largest size
    lying on the line of the others. Both are nan for fewer than 4 sizes, which cannot show a bend, and neither is
    corrected for the number of tests; `Scaling.warnings` are.
    """

    slope: Interval
    intercept: Interval
    rmse: float
    left_out: Array
    bend_p: float
    end_p: float
    level: float
    scatter: Scatter = field(repr=False)

    def predict(self, parameters: float) -> Interval:
        """The coefficient of one new run of a new model of that size. `se` is the line's, the interval the run's."""
        return self.scatter.interval(np.array([1.0, math.log(parameters)]), self.level, new=True)


@dataclass(frozen=True)
class Prediction:
    """The predicted law of a model of one size."""

    a: Interval
    b: Interval
    ceiling: Interval


@dataclass(frozen=True)
class Scaling:
    """The trends of a, b and the ceiling b - a over sizes `parameters` [n], ascending. warnings: one sentence each."""

    parameters: Array
    a: Trend
    b: Trend
    ceiling: Trend
    warnings: tuple[str, ...]

    def predict(self, parameters: float) -> Prediction:
        """The law of a model of that size, given in the unit of the other sizes."""
        return Prediction(*(trend.predict(parameters) for trend in (self.a, self.b, self.ceiling)))


def scale(parameters: ArrayLike, a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Scaling:
    """Fit a and b against ln(parameters) by least squares through the means of the sizes.

    parameters: [n], non-embedding parameters of each run's model, in any unit (the paper: billions); several runs may
    have the same size (seeds), and need not be equally many. a, b: [n], from `estimate`, all in one unit of score.
    level: of the intervals.

    Raises ValueError: the lengths differ, a value is not finite, a size is not positive, or there are fewer than 3
    different sizes.
    """
    size, ys = np.asarray(parameters, dtype=np.float64), [np.asarray(y, dtype=np.float64) for y in (a, b)]
    if size.ndim != 1 or any(y.shape != size.shape for y in ys):
        raise ValueError(
            f"parameters, a and b must have the same length, got {size.shape}, {ys[0].shape}, {ys[1].shape}"
        )
    if not all(np.isfinite(values).all() for values in (size, *ys)):
        raise ValueError("parameters, a and b must be finite")
    if (size <= 0).any():
        raise ValueError("parameters must be positive: they are counts, not their logarithms")
    if np.unique(size).size < 3:
        raise ValueError(f"a trend over sizes needs at least 3 different sizes, got {np.unique(size).size}")
    order = np.lexsort((*ys, size))
    size, (a_, b_) = size[order], (y[order] for y in ys)
    trends = {name: _trend(size, y, level) for name, y in (("a", a_), ("b", b_), ("ceiling", b_ - a_))}
    return Scaling(size, trends["a"], trends["b"], trends["ceiling"], warnings=tuple(_warnings(trends, size)))


def _trend(size: Array, y: Array, level: float) -> Trend:
    sizes, of = np.unique(size, return_inverse=True)
    x = np.log(sizes)
    design = np.stack((np.ones_like(x), x), axis=1)
    found = scatter(design, y, of)
    # A size is left out with all its runs: another run of the same size would give the answer away.
    left_out = np.empty_like(y)
    for at in range(sizes.size):
        others = np.arange(sizes.size) != at
        line = np.linalg.lstsq(design[others], found.means[others], rcond=None)[0]
        left_out[of == at] = design[at] @ line - y[of == at]
    residual = y - design[of] @ found.line
    off = found.means - design @ found.line
    bend_p = end_p = math.nan
    rounding = float(np.abs(off).max()) <= 1e-12 * max(float(np.abs(y).max()), 1e-100)  # which does not bend
    if sizes.size > 3 and not rounding:
        quadratic = np.column_stack((design, (x - x.mean()) ** 2))
        bend_p = _p(quadratic, found.means, np.array([0.0, 0.0, 1.0]))
        # The largest size lies on the line of the others if a column of its own has coefficient 0.
        end = (np.arange(sizes.size) == sizes.size - 1).astype(np.float64)
        end_p = _p(np.column_stack((design, end)), found.means, np.array([0.0, 0.0, 1.0]))
    intercept, slope = (found.interval(contrast, level) for contrast in np.eye(2))
    return Trend(slope, intercept, float(np.sqrt(np.mean(residual**2))), left_out, bend_p, end_p, level, found)


def _p(design: Array, y: Array, contrast: Array) -> float:
    """Two-sided p-value of contrast @ coefficients = 0, by least squares."""
    solve = np.linalg.pinv(design)
    line = solve @ y
    df = y.size - design.shape[1]
    variance = float(((y - design @ line) ** 2).sum()) / df
    spread = math.sqrt(variance) * float(np.linalg.norm(contrast @ solve))
    return float(2 * stdtr(df, -abs(contrast @ line) / spread)) if spread > 0 else 0.0


def _warnings(trends: dict[str, Trend], size: Array) -> list[str]:
    """One sentence for each trend that bends. All tests share one family-wise level (Holm 1979)."""
    tests = [(p, name, which) for name, trend in trends.items() for which, p in _tests(trend) if not math.isnan(p)]
    bent: dict[str, tuple[str, float]] = {}
    for at, (p, name, which) in enumerate(sorted(tests)):
        corrected = (len(tests) - at) * p
        if corrected >= FAMILY_P:
            break
        bent.setdefault(name, (which, corrected))
    warnings = []
    for name, (which, p) in bent.items():
        said = f"{p_text(p)}, corrected for {len(tests)} tests"
        if which == "end":
            error = float(trends[name].left_out[size == size[-1]].mean())
            warnings.append(
                f"{name} bends at the largest size: a line through the smaller ones is off by {error:+.3f} there "
                f"({said}); expect an error of the same kind beyond it."
            )
        else:
            warnings.append(
                f"{name} is not a straight line in ln(parameters) (quadratic term: {said}): the interval of a "
                "prediction does not include that."
            )
    if np.unique(size).size == 3:
        warnings.append("Three sizes are too few to see whether the line bends.")
    return warnings


def _tests(trend: Trend) -> tuple[tuple[str, float], tuple[str, float]]:
    return ("end", trend.end_p), ("bend", trend.bend_p)
