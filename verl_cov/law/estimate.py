"""Estimates the law's coefficients with intervals, and warns where they should not be believed.

A run has few points and their noise is autocorrelated, so the interval matters as much as the number. Both come from
one estimator:

- for one run, generalised least squares under AR(1) noise, averaged over the unknown correlation, with Student's t
  (:mod:`verl_cov.law.ar1`);
- for several runs pooled, least squares with sandwich errors clustered by run (statsmodels), t with runs - 1 degrees of
  freedom. They assume nothing about the noise within a run and include the differences between runs.

Without autocorrelation the first is the least-squares line too. With it the two part: a least-squares line takes a
score that wandered off for many independent points.

Newey-West, block-bootstrap and independent errors are not offered: docs/law.md shows how often each failed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from verl_cov.law import diagnostics
from verl_cov.law.ar1 import Mixture, regress
from verl_cov.law.distributions import stdtrit
from verl_cov.law.fit import Array, Interval, LawFit, fit
from verl_cov.law.fit import line as law_line
from verl_cov.law.series import Line, Series, Unit, line_of, series, unit_of


@dataclass(frozen=True)
class Student:
    """Coefficients [2] of the scaled line, with covariance [2, 2] and `df` degrees of freedom."""

    params: Array
    cov: Array
    df: float

    def quantiles(self, contrasts: Array, level: float) -> tuple[Array, Array]:
        """Central intervals (low, high), each [K], of contrasts [K, 2] @ params."""
        centre = contrasts @ self.params
        half = stdtrit(self.df, (1 + level) / 2) * self.standard_error(contrasts)
        return centre - half, centre + half

    def mean(self) -> Array:
        """The coefficients [2]."""
        return self.params

    def standard_error(self, contrasts: Array) -> Array:
        """Standard errors [K] of contrasts [K, 2] @ params."""
        return np.sqrt(np.maximum(np.einsum("kp,pq,kq->k", contrasts, self.cov, contrasts), 0.0))


Uncertainty: TypeAlias = Mixture | Student


@dataclass(frozen=True)
class Estimate:
    """The law with intervals.

    law: the line of the estimates. least_squares: the plain least-squares line (Huber's, if robust), which takes the
    points' noise for independent. a, b, ceiling: the law's coefficients with intervals at `level`. autocorrelation:
    posterior mean of the noise's correlation from one point to the next. unit: of the score. n: number of points. runs:
    number of runs. robust: whether outliers were down-weighted. warnings: one sentence each, empty if nothing speaks
    against the fit.
    """

    law: LawFit
    least_squares: LawFit
    a: Interval
    b: Interval
    ceiling: Interval
    level: float
    autocorrelation: float
    unit: Unit
    n: int
    runs: int
    robust: bool
    warnings: tuple[str, ...]
    line: Line = field(repr=False)
    uncertainty: Uncertainty = field(repr=False)

    @property
    def parted(self) -> bool:
        """Whether the least-squares line differs from the estimate by more than half a standard error of a or b."""
        plain, law = self.least_squares, self.law
        return abs(plain.a - law.a) > self.a.se / 2 or abs(plain.b - law.b) > self.b.se / 2

    def at(self, entropy: float) -> Interval:
        """The law's score at `entropy` (nats per token). The interval is for the law, not for a new point."""
        return self._interval(self.line.contrast(math.exp(entropy)))

    def gain(self, entropy: float, to: float = 0.0) -> Interval:
        """How much the score still rises, by the law, while entropy falls from `entropy` to `to` (nats per token)."""
        return self._interval(self.line.contrast(math.exp(to)) - self.line.contrast(math.exp(entropy)))

    def _interval(self, contrast: Array) -> Interval:
        return _intervals(self.uncertainty, contrast[None], self.level)[0]


def estimate(
    entropy: ArrayLike,
    score: ArrayLike,
    steps: ArrayLike | None = None,
    *,
    runs: Sequence[Hashable] | None = None,
    level: float = 0.95,
    robust: bool = False,
    vocabulary: int | None = None,
    controlled: bool = False,
) -> Estimate:
    """Fit the law, with intervals and warnings.

    entropy: [n], nats per token. score: [n]. steps: [n], training steps; without them the points must be in time order.
    runs: [n], the name of each point's run, if several (seeds, say) are pooled. level: of the intervals. robust: use
    Huber's M-estimate (statsmodels RLM). vocabulary: number of tokens, whose logarithm no
    entropy exceeds. controlled: the run was trained with Clip-Cov or KL-Cov.

    How often 95 % intervals held the truth (`python -m benchmarks.law_coverage`): for one run of 10 to 80 points whose
    noise has correlation 0 to 0.6 from one point to the next, 92 to 98 %; for 2 to 10 pooled runs, 94 to 97 %. With
    other noise one run's intervals fall short: 71 to 88 % at a correlation of 0.9, 48 to 83 % for a random walk;
    docs/law.md has the table. Pool several runs if you can.

    Raises ValueError: as `fit` and `series` do, or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    plain = fit(entropy, score)  # checks the values
    points = series(entropy, score, steps, runs)
    line = line_of(points.x)
    design = line.design(points.x)
    fitted = points
    if robust:
        fitted = _pull_outliers_in(points, design)
        huber = fit(fitted.entropy, fitted.score)
        plain = law_line(huber.a, huber.b, points.entropy, points.score)
    mixture = regress(design, fitted.score, fitted.gap)
    count = int(points.run[-1]) + 1
    uncertainty: Uncertainty = mixture if count == 1 else _clustered(design, fitted)
    a, b, ceiling = _intervals(uncertainty, line.coefficients(), level)
    law = law_line(a.value, b.value, points.entropy, points.score)
    return Estimate(
        law=law,
        least_squares=plain,
        a=a,
        b=b,
        ceiling=ceiling,
        level=level,
        autocorrelation=mixture.autocorrelation,
        unit=unit_of(points.score),
        n=points.score.size,
        runs=count,
        robust=robust,
        warnings=diagnostics.warn(law, a, ceiling, mixture.autocorrelation, points, fitted, vocabulary, controlled),
        line=line,
        uncertainty=uncertainty,
    )


def _clustered(design: Array, points: Series) -> Student:
    """Coefficients with sandwich errors clustered by run."""
    from statsmodels.regression.linear_model import OLS  # here: its import takes a second, which `fit` need not pay

    result = OLS(points.score, design).fit(cov_type="cluster", cov_kwds={"groups": points.run}, use_t=True)
    return Student(result.params, result.cov_params(), float(points.run[-1]))


def _pull_outliers_in(points: Series, design: Array) -> Series:
    """Replace the scores by pseudo-values: the line plus psi(residual) (Huber 1981, chapter 7).

    Their least-squares line is Huber's, so the intervals of a robust fit come from the same code. If more than half of
    the points lie on one line there is no scale to judge the others by, and all are left as they are.
    """
    from statsmodels.robust.norms import HuberT
    from statsmodels.robust.robust_linear_model import RLM

    solve = np.linalg.pinv(design)
    residual = points.score - design @ (solve @ points.score)
    typical = float(np.median(np.abs(residual)))
    if typical <= 1e-12 * float(np.abs(points.score).max()):
        return points
    unit = float(np.abs(residual).max())  # RLM's tolerance is absolute: give it residuals of order one
    norm = HuberT()
    result = RLM(residual / unit, design, M=norm).fit(maxiter=200, tol=1e-10)
    scaled = result.resid / result.scale
    psi = result.scale * norm.psi(scaled) / np.mean(norm.psi_deriv(scaled))
    line = design @ (solve @ points.score + unit * result.params)
    return replace(points, score=line + unit * psi)


def _intervals(uncertainty: Uncertainty, contrasts: Array, level: float) -> list[Interval]:
    low, high = uncertainty.quantiles(contrasts, level)
    columns = contrasts @ uncertainty.mean(), uncertainty.standard_error(contrasts), low, high
    return [Interval(*map(float, numbers)) for numbers in zip(*columns, strict=True)]
