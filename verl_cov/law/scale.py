"""Fits the law's a and b against model size, as straight lines in ln(parameters) (arXiv 2505.22617, Fig. 7).

The paper calls the relation log-linear and predicts large models from small ones. Its own Qwen2.5 values bend: the line
through 0.5B to 7B gives 32B 0.12 more in b, and 5 points more in the ceiling, than 32B has. So each prediction comes
with an interval, with the error on each size when it is left out, and with a warning if the line bends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from verl_cov.law.distributions import stdtr
from verl_cov.law.fit import Array, Interval

if TYPE_CHECKING:
    from statsmodels.regression.linear_model import RegressionResults

BEND_P = 0.05


@dataclass(frozen=True)
class Trend:
    """The line coefficient = intercept + slope ln(parameters) through n models.

    slope, intercept: with intervals at `level`; the intercept is the value at one unit of parameters. rmse: root of the
    mean squared residual. left_out: [n], ascending by size, predicted minus real value of each model by the line
    through the other sizes. bend_p: p-value of a quadratic term in ln(parameters). end_p: p-value of the largest size
    lying on the line of the others. Both are nan for fewer than 4 sizes, which cannot show a bend.
    """

    slope: Interval
    intercept: Interval
    rmse: float
    left_out: Array
    bend_p: float
    end_p: float
    level: float
    regression: RegressionResults = field(repr=False)

    def predict(self, parameters: float) -> Interval:
        """The coefficient of a new model of that size. The interval is for the model, `se` for the line."""
        prediction = self.regression.get_prediction([[1.0, math.log(parameters)]])
        low, high = prediction.conf_int(obs=True, alpha=1 - self.level)[0]
        return Interval(float(prediction.predicted_mean[0]), float(prediction.se_mean[0]), float(low), float(high))


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
    """Fit a and b against ln(parameters) by least squares.

    parameters: [n], non-embedding parameters of each run's model, in any unit (the paper: billions); several runs may
    have the same size. a, b: [n], from `fit` or `estimate`, all in one unit of score. level: of the intervals.

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
    from statsmodels.regression.linear_model import OLS  # here: its import takes a second

    x = np.log(size)
    design = np.stack((np.ones_like(x), x), axis=1)
    regression = OLS(y, design).fit()
    intercept, slope = (
        Interval(float(value), float(se), float(low), float(high))
        for value, se, (low, high) in zip(
            regression.params, regression.bse, regression.conf_int(alpha=1 - level), strict=True
        )
    )
    # A size is left out with all its runs: another run of the same size would give the answer away.
    left_out = np.empty_like(y)
    for value in np.unique(size):
        out = size == value
        left_out[out] = design[out] @ np.linalg.lstsq(design[~out], y[~out], rcond=None)[0] - y[out]
    bend_p = end_p = math.nan
    exact = float(np.abs(regression.resid).max()) <= 1e-12 * max(
        float(np.abs(y).max()), 1e-100
    )  # rounding does not bend
    if np.unique(size).size > 3 and not exact:
        centred = x - x.mean()
        bend_p = float(OLS(y, np.column_stack((np.ones_like(x), centred, centred**2))).fit().pvalues[2])
        end_p = _end(design, y, size == size[-1])
    rmse = float(np.sqrt(np.mean(regression.resid**2)))
    return Trend(slope, intercept, rmse, left_out, bend_p, end_p, level, regression)


def _end(design: Array, y: Array, end: NDArray[np.bool_]) -> float:
    """p-value of the hypothesis that the mean of the points `end` lies on the line of the others."""
    from statsmodels.regression.linear_model import OLS

    others = OLS(y[~end], design[~end]).fit()
    rest = float(y[end].mean() - (design[end] @ others.params)[0])
    spread = math.sqrt(others.scale * (1 / end.sum() + design[end][0] @ others.normalized_cov_params @ design[end][0]))
    return float(2 * stdtr(others.df_resid, -abs(rest) / spread)) if spread > 0 else 0.0


def _warnings(trends: dict[str, Trend], size: Array) -> list[str]:
    warnings = []
    for name, trend in trends.items():
        error = float(trend.left_out[size == size[-1]].mean())
        if trend.end_p < BEND_P:
            warnings.append(
                f"{name} bends at the largest size: a line through the smaller ones is off by {error:+.3f} there "
                f"(p = {trend.end_p:.2g}); expect an error of the same kind beyond it."
            )
        elif trend.bend_p < BEND_P:
            warnings.append(
                f"{name} is not a straight line in ln(parameters) (quadratic term: p = {trend.bend_p:.2g}): the "
                "interval of a prediction does not include that."
            )
    if np.unique(size).size == 3:
        warnings.append("Three sizes are too few to see whether the line bends.")
    return warnings
