"""Warns where a fit of the law should not be believed, one sentence for each reason.

docs/law.md says how often all of them together are false alarms.
"""

from __future__ import annotations

import math

import numpy as np

from verl_cov.law.ar1 import regress
from verl_cov.law.distributions import p_text
from verl_cov.law.fit import Interval, LawFit
from verl_cov.law.series import Series, line_of, unit_of

FEW_POINTS = 8
MOST_ENTROPY = 12.0  # nats; ln of a vocabulary of 163,000 tokens
BEND_P = 0.01
LATE_P = 0.02  # one-sided
LOW_R2 = 0.5
STRONG_MEMORY = 0.8  # posterior mean of the correlation; at a true 0.6 above it in 3 % of runs of 40 points


def bend(points: Series) -> tuple[float, float]:
    """Test whether the points curve away from the law: (p, sign) of a quadratic term in exp(H).

    p is two-sided under AR(1) noise; sign is +1 if the score curves upward. (Newey-West errors are too small for so few
    points and would call too many straight runs bent.)
    """
    line = line_of(points.x)
    design = line.design(points.x)
    design = np.concatenate((design, design[:, 1:] ** 2), axis=1)
    mixture = regress(design, points.score, points.gap)
    return mixture.tail(np.array([0.0, 0.0, 1.0])), float(np.sign(mixture.mean()[2]))


def warn(
    law: LawFit,
    a: Interval,
    ceiling: Interval,
    autocorrelation: float,
    points: Series,
    fitted: Series,
    vocabulary: int | None = None,
    controlled: bool = False,
) -> tuple[str, ...]:
    """All warnings that apply to a fit.

    law, a, ceiling, autocorrelation: as in `Estimate`. points: as measured. fitted: with outliers pulled in, if the fit
    is robust. vocabulary: number of tokens, whose logarithm no entropy exceeds. controlled: the run was trained
    with Clip-Cov or KL-Cov.
    """
    warnings = [
        *_about_the_fit(law, a, points),
        *_about_the_ceiling(law, ceiling, points),
        *_about_the_noise(law, autocorrelation, points),
        *_about_the_entropy(points, vocabulary),
        *_about_the_shape(law, points, fitted),
        *_about_the_end(points, fitted),
    ]
    if unit_of(points.score) == "percent":
        warnings.append(
            f"The score goes up to {points.score.max():.3g} and is taken for percent: a, b and the ceiling are in "
            "points, 100 times the paper's."
        )
    if points.run[-1] == 1:
        warnings.append("Only two runs: the difference between runs is estimated with one degree of freedom.")
    if controlled:
        warnings.append("A run under Clip-Cov or KL-Cov is not expected to follow the vanilla law.")
    return tuple(warnings)


def _about_the_fit(law: LawFit, a: Interval, points: Series) -> list[str]:
    warnings = []
    n = points.score.size
    if n < FEW_POINTS:
        warnings.append(
            f"Only {n} points: the intervals have {_degrees(n - 2)} of freedom, and no test can detect a bend."
        )
    if law.a <= 0:
        warnings.append(
            f"a = {law.a:.3g} is not positive: the score did not rise as entropy fell, so the law does not describe "
            "this run."
        )
    elif a.low <= 0:
        warnings.append(
            f"a's interval [{a.low:.3g}, {a.high:.3g}] holds 0: these points do not show that the score rises as "
            "entropy falls."
        )
    if law.r2 < LOW_R2:
        warnings.append(
            f"R² = {law.r2:.2f}: the law leaves more than half of the score's variance unexplained"
            + (", and a constant would describe the score better." if law.r2 < 0 else ".")
        )
    return warnings


def _degrees(number: int) -> str:
    return f"{number} degree{'s' * (number != 1)}"


def _about_the_ceiling(law: LawFit, ceiling: Interval, points: Series) -> list[str]:
    warnings = []
    x, score = points.x, points.score
    ratio = float((x.min() - 1) / np.ptp(x))
    if ratio > 1:
        warnings.append(
            f"The ceiling is an extrapolation: from the lowest entropy to H = 0, exp(H) still has to fall {ratio:.1f} "
            "times as far as it has fallen so far."
        )
    inside = np.isfinite(points.gap[1:])
    if law.a <= 0 or not inside.any():
        return warnings
    # The level of a fifth of the points, as single scores above a ceiling are noise; differences of neighbours show
    # the noise also where the law fails.
    width = max(3, score.size // 5)
    reached = float(np.convolve(score, np.full(width, 1 / width), "valid").max())
    noise = math.sqrt(float(np.mean(np.diff(score)[inside] ** 2)) / 2)
    if reached - ceiling.value > math.hypot(noise, ceiling.se) + 1e-9 * abs(reached):
        warnings.append(
            f"The ceiling {ceiling.value:.3g} is below scores already reached: {width} in a row had a mean of "
            f"{reached:.3g}, and {100 * np.mean(score > ceiling.value):.0f} % of all are above it."
        )
    return warnings


def _about_the_noise(law: LawFit, autocorrelation: float, points: Series) -> list[str]:
    if autocorrelation <= STRONG_MEMORY or _on_the_law(law, points):
        return []
    return [
        f"The scores' noise has a memory close to a random walk's (correlation {autocorrelation:.2f} from one point to "
        "the next), or the law misses their shape: a score that wanders by itself can look like a law, and the "
        "intervals hold the truth less often than they say (`verl-cov docs law`). More seeds help, more points do not."
    ]


def _about_the_entropy(points: Series, vocabulary: int | None) -> list[str]:
    warnings = []
    lowest, highest = float(points.entropy.min()), float(points.entropy.max())
    if vocabulary is not None and highest > math.log(vocabulary):
        warnings.append(
            f"Entropy {highest:.3g} is above ln({vocabulary}) = {math.log(vocabulary):.3g}: it cannot be in nats per "
            "token (bits? a sum over tokens?)."
        )
    elif highest > MOST_ENTROPY:
        warnings.append(
            f"Entropy {highest:.3g} is above what a vocabulary of 160,000 tokens allows: it is hardly in nats per "
            "token (bits? a sum over tokens?)."
        )
    if lowest < 0:
        warnings.append(f"Entropy {lowest:.3g} is negative: the entropy of a policy over tokens cannot be.")
    return warnings


def _about_the_shape(law: LawFit, points: Series, fitted: Series) -> list[str]:
    if points.score.size < FEW_POINTS or np.unique(points.x).size <= 3 or _on_the_law(law, points):
        return []
    p, sign = bend(fitted)
    if p >= BEND_P:
        return []
    side = "upward" if sign > 0 else "downward"
    return [
        f"The points bend away from the law (quadratic term in exp(H): {p_text(p)}), {side} at both ends: its ceiling "
        "is not to be trusted."
    ]


def _on_the_law(law: LawFit, points: Series) -> bool:
    """Whether the residuals are rounding errors, which tell nothing."""
    return law.rmse <= 1e-9 * float(np.abs(points.score).max())


def _about_the_end(points: Series, fitted: Series) -> list[str]:
    """Whether the score of one run falls in the last third of its points although entropy goes on falling."""
    n = points.score.size
    last = -(-n // 3)
    if points.run[-1] > 0 or n < FEW_POINTS or last < 4:
        return []
    gap = fitted.gap[-last:]
    time = np.concatenate(([0.0], np.cumsum(gap[1:])))
    design = np.stack((np.ones(last), (time - time.mean()) / time.std()), axis=1)
    falls = float(np.polyfit(design[:, 1], points.entropy[-last:], 1)[0]) < 0
    trend = regress(design, fitted.score[-last:], gap)
    p = trend.tail(np.array([0.0, 1.0])) / 2
    if not falls or trend.mean()[1] >= 0 or p >= LATE_P:
        return []
    return [
        f"In the last third of the run the score falls while entropy goes on falling (one-sided {p_text(p)}): the law "
        "says that it rises, so its ceiling is not where this run goes."
    ]
