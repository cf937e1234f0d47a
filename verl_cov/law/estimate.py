"""The law's coefficients with their uncertainty, and what speaks against believing them.

The points of a run are few and their noise is autocorrelated, so the interval matters as much as the number. Five
ways to get it, all about the same least-squares line (:func:`verl_cov.law.fit.fit`):

- `ar1`: Student's t under AR(1) noise, averaged over its coefficient (:mod:`verl_cov.law.ar1`). Default for one run.
- `cluster`: sandwich errors clustered by run (statsmodels), t with runs - 1 degrees of freedom. Default for several
  runs: it asks nothing of the noise within a run and counts the differences between runs.
- `hac`: Newey-West (statsmodels) with bandwidth ceil(1.3 sqrt(n)), factor n / (n - 2), and t with 1.5 n / bandwidth
  degrees of freedom in place of the normal (Lazarus, Lewis, Stock and Watson 2018, doi:10.1080/07350015.2018.1506926).
- `bootstrap`: residuals, scaled for leverage, drawn in circular blocks of the same length (Politis and Romano 1992).
- `ols`: as if the noise were independent. For comparison only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike

from verl_cov.law.ar1 import Array, regress
from verl_cov.law.distributions import stdtrit
from verl_cov.law.fit import LawFit, fit

Method = Literal["ar1", "cluster", "hac", "bootstrap", "ols"]
Unit = Literal["fraction", "percent", "other"]

FEW_POINTS = 8
MOST_ENTROPY = 12.0  # nats; ln of a vocabulary of 163,000 tokens
BEND_P = 0.01


@dataclass(frozen=True)
class Interval:
    """An estimate, its standard error, and the ends of its interval. All in the unit of the score.

    value: by least squares. Under strong autocorrelation an interval by `ar1` is centred elsewhere; in 1 of 150
    simulated runs of 40 points with correlation 0.9 the value lay outside.
    """

    value: float
    se: float
    low: float
    high: float


class Errors(Protocol):
    """Uncertainty of the line score = c0 + c1 z, in the standardised regressor z."""

    def quantiles(self, contrasts: Array, level: float) -> tuple[Array, Array]:
        """(low, high), each [K], of contrasts [K, 2] @ (c0, c1)."""

    def standard_error(self, contrasts: Array) -> Array:
        """[K]."""


@dataclass(frozen=True)
class Estimate:
    """The law with intervals.

    law: the least-squares fit (Huber's, where robust). a, b, ceiling: the coefficients with intervals at `level`.
    method: how the errors were found. autocorrelation: of the noise from one point to the next (mean given the points).
    unit: of the score: "fraction" (0 to 1), "percent" (0 to 100) or "other". n: points. runs: runs.
    robust: whether outliers were weighed down. warnings: one sentence each, empty if nothing speaks against the fit.
    """

    law: LawFit
    a: Interval
    b: Interval
    ceiling: Interval
    level: float
    method: Method
    autocorrelation: float
    unit: Unit
    n: int
    runs: int
    robust: bool
    warnings: tuple[str, ...]
    line: Line = field(repr=False)
    errors: Errors = field(repr=False)

    def at(self, entropy: float) -> Interval:
        """The score that the law gives at `entropy` (nats per token); uncertainty of the law, not of a new point."""
        return self._interval(self.line.contrast(math.exp(entropy)), self.law.predict(entropy))

    def gain(self, entropy: float, to: float = 0.0) -> Interval:
        """What the score still gains by the law while entropy falls from `entropy` to `to`, nats per token."""
        rise = math.exp(entropy) - math.exp(to)
        return self._interval(
            self.line.contrast(math.exp(to)) - self.line.contrast(math.exp(entropy)), self.law.a * rise
        )

    def _interval(self, contrast: Array, value: float) -> Interval:
        return _intervals(self.errors, contrast[None], [value], self.level)[0]


@dataclass(frozen=True)
class Line:
    """The regressor exp(H), centred and scaled, or the sums of squares cancel where entropy hardly moves.

    b is the law at exp(H) = 0, the ceiling the law at exp(H) = 1: each coefficient is a contrast of two numbers.
    """

    centre: float
    width: float

    def design(self, x: Array) -> Array:
        """[n, 2] of exp(H) [n]."""
        return np.stack((np.ones_like(x), (x - self.centre) / self.width), axis=-1)

    def contrast(self, x: float) -> Array:
        """[2], of the law's score at exp(H) = x."""
        return np.array([1.0, (x - self.centre) / self.width])

    def coefficients(self) -> Array:
        """[3, 2], of a, b and the ceiling."""
        return np.stack(([0.0, -1 / self.width], self.contrast(0.0), self.contrast(1.0)))


@dataclass(frozen=True)
class Series:
    """Checked points in the order of time, run after run.

    entropy, score, gap: [n] (gap as in `ar1.regress`). run: [n], 0, 1, ... of each point. order: [n], where each point
    was in the caller's arrays.
    """

    entropy: Array
    score: Array
    gap: Array
    run: np.ndarray
    order: np.ndarray

    @property
    def x(self) -> Array:
        """[n], exp(H)."""
        return np.exp(self.entropy)


def series(
    entropy: ArrayLike, score: ArrayLike, steps: ArrayLike | None = None, runs: Sequence[Any] | None = None
) -> Series:
    """Sort points by run and step and measure their gaps; without steps the order given is the order in time.

    Raises ValueError: a length that differs, a step that is not finite or comes twice in a run.
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
    names: dict[Any, int] = {}
    run = np.array([names.setdefault(name, len(names)) for name in ([0] * n if runs is None else runs)], dtype=np.int64)
    order = np.lexsort((at, run))
    at, run = at[order], run[order]
    gap = np.diff(at, prepend=0.0)
    gap[np.flatnonzero(np.diff(run, prepend=-1))] = np.inf
    if (gap == 0).any():
        raise ValueError(f"step {at[np.argmax(gap == 0)]:g} comes twice in a run: name the runs if there are several")
    inside = np.isfinite(gap)
    if inside.any():
        gap = gap / np.median(gap[inside])
    return Series(h[order], r[order], gap, run, order)


def estimate(
    entropy: ArrayLike,
    score: ArrayLike,
    steps: ArrayLike | None = None,
    *,
    runs: Sequence[Any] | None = None,
    level: float = 0.95,
    method: Method | None = None,
    robust: bool = False,
    draws: int = 2000,
    seed: int = 0,
    vocabulary: int | None = None,
    controlled: bool = False,
) -> Estimate:
    """Fit the law with intervals and warnings.

    entropy: [n], nats per token. score: [n]. steps: [n], training steps; without them the points must come in the
    order of time. runs: [n], a name for each point's run, where several (seeds) are pooled. level: of the intervals.
    method: see the module; None takes `ar1` for one run, `cluster` for several. robust: Huber's M-estimate
    (statsmodels RLM) in place of least squares. draws, seed: of the bootstrap, which is deterministic. vocabulary:
    number of tokens, whose logarithm no entropy exceeds. controlled: the run was trained under Clip-Cov or KL-Cov.

    How often the 95 % intervals held the truth, in simulated runs of 10 to 80 points whose noise has correlation 0 to
    0.6 from one point to the next (`python -m benchmarks.law_coverage`): `ar1` 92 to 98 %, `cluster` 94 to 97 % for 2
    to 10 runs; `hac` 70 to 92 %, `bootstrap` 55 to 90 %, `ols` 64 to 96 %.

    Where the noise is not AR(1), `ar1` falls short: 83 to 93 % for AR(1) noise of 0.8 under as much white noise, 87 to
    98 % where the noise shrinks threefold along the run, 47 to 79 % for a random walk. Pool several runs if you can.

    Raises ValueError: as `fit` does, a method that is unknown, `cluster` with fewer than two runs, a level outside
    (0, 1), steps or runs of another length, a step that comes twice in a run.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if method is not None and method not in get_args(Method):
        raise ValueError(f"method {method!r} is unknown: one of {', '.join(get_args(Method))}")
    law = fit(entropy, score)  # checks the values
    points = series(entropy, score, steps, runs)
    number = int(points.run[-1]) + 1
    if method is None:
        method = "cluster" if number > 1 else "ar1"
    if method == "cluster" and number < 2:
        raise ValueError("errors clustered by run need at least two runs")

    line = line_of(points.x)
    fitted = points
    if robust:
        fitted = _pseudo_values(points, line.design(points.x))
        huber = fit(fitted.entropy, fitted.score)
        law = _judged(huber, points)
    mixture = regress(line.design(fitted.x), fitted.score, fitted.gap)
    errors = mixture if method == "ar1" else errors_by(method, line.design(fitted.x), fitted, draws, seed)
    a, b, ceiling = _intervals(errors, line.coefficients(), [law.a, law.b, law.ceiling], level)
    unit = unit_of(points.score)
    return Estimate(
        law=law,
        a=a,
        b=b,
        ceiling=ceiling,
        level=level,
        method=method,
        autocorrelation=mixture.autocorrelation,
        unit=unit,
        n=points.score.size,
        runs=number,
        robust=robust,
        warnings=tuple(_warnings(law, points, fitted, unit, number, vocabulary, controlled)),
        line=line,
        errors=errors,
    )


def line_of(x: Array) -> Line:
    """Centre and width of exp(H) [n]."""
    return Line(float(x.mean()), float(x.std()))


def unit_of(score: Array) -> Unit:
    """The unit of scores [n], told by their range: an accuracy, a percentage, or neither."""
    low, high = float(score.min()), float(score.max())
    if low < 0 or high > 100:
        return "other"
    if high <= 1:
        return "fraction"
    return "percent" if high > 5 else "other"  # rewards with a bonus go a little beyond 1


def bandwidth(n: int) -> int:
    """Bandwidth of `hac`, and length of the bootstrap's blocks, for n points (source: see the module)."""
    return min(math.ceil(1.3 * math.sqrt(n)), n - 1)


@dataclass(frozen=True)
class Student:
    """Coefficients params [2] with covariance cov [2, 2] and df degrees of freedom."""

    params: Array
    cov: Array
    df: float

    def quantiles(self, contrasts: Array, level: float) -> tuple[Array, Array]:
        """As `Errors`."""
        centre = contrasts @ self.params
        half = stdtrit(self.df, (1 + level) / 2) * self.standard_error(contrasts)
        return centre - half, centre + half

    def standard_error(self, contrasts: Array) -> Array:
        """As `Errors`."""
        return np.sqrt(np.maximum(np.einsum("kp,pq,kq->k", contrasts, self.cov, contrasts), 0.0))


@dataclass(frozen=True)
class Draws:
    """Coefficients drawn by the bootstrap, [draws, 2]."""

    params: Array

    def quantiles(self, contrasts: Array, level: float) -> tuple[Array, Array]:
        """As `Errors`: the percentile interval."""
        low, high = np.quantile(self.params @ contrasts.T, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def standard_error(self, contrasts: Array) -> Array:
        """As `Errors`."""
        return (self.params @ contrasts.T).std(0, ddof=1)


def errors_by(method: Method, design: Array, points: Series, draws: int, seed: int) -> Errors:
    """Uncertainty of the coefficients of scores on design [n, 2] by one method of the module."""
    if method == "ar1":
        return regress(design, points.score, points.gap)
    if method == "bootstrap":
        return _bootstrap(design, points, draws, seed)
    from statsmodels.regression.linear_model import OLS  # here: its import takes a second, which `fit` need not pay

    n, several = len(points.score), points.run[-1] > 0
    width = bandwidth(n if not several else int(np.bincount(points.run).max()))
    options: dict[str, Any] = {}
    df = float(n - 2)
    if method == "hac":
        # statsmodels counts lags, and its Bartlett weights end at maxlags + 1: that sum is the bandwidth.
        kind, options = "HAC", {"maxlags": width - 1, "use_correction": not several}
        if several:
            kind, options = "hac-panel", {**options, "groups": points.run, "use_correction": "hac"}
        df = min(df, 1.5 * n / width)
    elif method == "cluster":
        kind, options, df = "cluster", {"groups": points.run}, float(points.run[-1])
    else:
        kind = "nonrobust"
    result = OLS(points.score, design).fit(cov_type=kind, cov_kwds=options, use_t=True)
    return Student(result.params, result.cov_params(), df)


def _bootstrap(design: Array, points: Series, draws: int, seed: int) -> Draws:
    rng = np.random.default_rng(seed)
    solve = np.linalg.pinv(design)
    params = solve @ points.score
    leverage = np.einsum("np,pn->n", design, solve)
    residual = (points.score - design @ params) / np.sqrt(np.maximum(1 - leverage, 1e-9))
    pieces = []
    for run in range(int(points.run[-1]) + 1):
        own = residual[points.run == run]
        n = own.size
        length = bandwidth(n) if n > 2 else 1
        starts = rng.integers(0, n, (draws, -(-n // length), 1))
        index = ((starts + np.arange(length)) % n).reshape(draws, -1)[:, :n]
        pieces.append((own - own.mean())[index])
    return Draws(params + np.concatenate(pieces, axis=1) @ solve.T)


def _pseudo_values(points: Series, design: Array) -> Series:
    """Scores whose least-squares line is Huber's: the line plus psi(residual) (Huber 1981, chapter 7).

    So every way to find errors works on robust fits as it stands. Points on one line, or more than half of them, have
    no scale to judge the rest by: they are left as they are.
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
    return Series(points.entropy, line + unit * psi, points.gap, points.run, points.order)


def _judged(law: LawFit, points: Series) -> LawFit:
    """The law with r2 and rmse against the points themselves."""
    residual = points.score - law.predict(points.entropy)
    variance = float(points.score.var())
    square = float(np.mean(residual**2))
    return LawFit(law.a, law.b, law.ceiling, 1 - square / variance if variance > 0 else math.nan, square**0.5, law.n)


def _intervals(errors: Errors, contrasts: Array, values: Sequence[float], level: float) -> list[Interval]:
    low, high = errors.quantiles(contrasts, level)
    se = errors.standard_error(contrasts)
    return [
        Interval(float(value), float(s), float(lo), float(hi))
        for value, s, lo, hi in zip(values, se, low, high, strict=True)
    ]


def bend(points: Series) -> tuple[float, float]:
    """(p, sign) of a quadratic term in exp(H): p two-sided under AR(1) noise, sign +1 where the score curves up.

    Newey-West errors, too small with these few points, would call too many straight runs bent.
    """
    line = line_of(points.x)
    design = line.design(points.x)
    design = np.concatenate((design, design[:, 1:] ** 2), axis=1)
    mixture = regress(design, points.score, points.gap)
    return mixture.tail(np.array([0.0, 0.0, 1.0])), float(np.sign(mixture.weight @ mixture.params[:, 2]))


def _warnings(
    law: LawFit, points: Series, fitted: Series, unit: Unit, runs: int, vocabulary: int | None, controlled: bool
) -> list[str]:
    said = []
    n, x = points.score.size, points.x
    highest = float(points.entropy.max())
    if n < FEW_POINTS:
        said.append(f"Only {n} points: the intervals rest on {n - 2} degrees of freedom, and no test sees a bend.")
    if law.a <= 0:
        said.append(
            f"a = {law.a:.3g} is not positive: the score did not rise as entropy fell, so the law does not describe "
            "this run."
        )
    ratio = float((x.min() - 1) / np.ptp(x))
    if ratio > 1:
        said.append(
            f"The ceiling is an extrapolation: from the lowest entropy to H = 0, exp(H) has {ratio:.1f} times as far "
            "to go as it has come."
        )
    if vocabulary is not None and highest > math.log(vocabulary):
        said.append(
            f"Entropy {highest:.3g} is above ln({vocabulary}) = {math.log(vocabulary):.3g}: it cannot be in nats per "
            "token (bits? a sum over tokens?)."
        )
    elif highest > MOST_ENTROPY:
        said.append(
            f"Entropy {highest:.3g} is above what a vocabulary of 160,000 tokens allows: it is hardly in nats per "
            "token (bits? a sum over tokens?)."
        )
    if float(points.entropy.min()) < 0:
        said.append(f"Entropy {points.entropy.min():.3g} is negative: the entropy of a policy over tokens cannot be.")
    if n >= FEW_POINTS and np.unique(x).size > 3 and law.rmse > 1e-9 * float(np.abs(points.score).max()):
        p, sign = bend(fitted)
        if p < BEND_P:
            ends = "up" if sign > 0 else "down"
            said.append(
                f"The points bend away from the law (quadratic term in exp(H): p = {p:.1g}), {ends}ward at both ends: "
                "its ceiling is not to be trusted."
            )
    if unit == "percent":
        said.append(
            f"The score goes up to {points.score.max():.3g} and is taken for percent: a, b and the ceiling are in "
            "points, 100 times the paper's."
        )
    if runs == 2:
        said.append("Two runs: what they say of the difference between runs rests on one degree of freedom.")
    if controlled:
        said.append("A run under Clip-Cov or KL-Cov is not expected to follow the vanilla law.")
    return said
