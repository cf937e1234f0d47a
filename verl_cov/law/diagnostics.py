"""Warns where a fit of the law should not be believed, one sentence for each reason."""

from __future__ import annotations

import math

import numpy as np

from verl_cov.law.ar1 import regress
from verl_cov.law.fit import LawFit
from verl_cov.law.series import Series, line_of, unit_of

FEW_POINTS = 8
MOST_ENTROPY = 12.0  # nats; ln of a vocabulary of 163,000 tokens
BEND_P = 0.01


def bend(points: Series) -> tuple[float, float]:
    """Test whether the points curve away from the law: (p, sign) of a quadratic term in exp(H).

    p is two-sided under AR(1) noise; sign is +1 if the score curves upward. (Newey-West errors are too small for so few
    points and would call too many straight runs bent.)
    """
    line = line_of(points.x)
    design = line.design(points.x)
    design = np.concatenate((design, design[:, 1:] ** 2), axis=1)
    mixture = regress(design, points.score, points.gap)
    return mixture.tail(np.array([0.0, 0.0, 1.0])), float(np.sign(mixture.weight @ mixture.params[:, 2]))


def warn(
    law: LawFit, points: Series, fitted: Series, vocabulary: int | None = None, controlled: bool = False
) -> tuple[str, ...]:
    """All warnings that apply to a fit.

    points: as measured. fitted: the same with outliers pulled in, if the fit is robust. vocabulary: number of tokens,
    whose logarithm no entropy exceeds. controlled: the run was trained with Clip-Cov or KL-Cov.
    """
    warnings = [
        *_about_the_fit(law, points),
        *_about_the_entropy(points, vocabulary),
        *_about_the_shape(law, points, fitted),
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


def _about_the_fit(law: LawFit, points: Series) -> list[str]:
    warnings = []
    n, x = points.score.size, points.x
    if n < FEW_POINTS:
        warnings.append(
            f"Only {n} points: the intervals have {n - 2} degrees of freedom, and no test can detect a bend."
        )
    if law.a <= 0:
        warnings.append(
            f"a = {law.a:.3g} is not positive: the score did not rise as entropy fell, so the law does not describe "
            "this run."
        )
    ratio = float((x.min() - 1) / np.ptp(x))
    if ratio > 1:
        warnings.append(
            f"The ceiling is an extrapolation: from the lowest entropy to H = 0, exp(H) still has to fall {ratio:.1f} "
            "times as far as it has fallen so far."
        )
    return warnings


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
    on_the_law = law.rmse <= 1e-9 * float(np.abs(points.score).max())
    if points.score.size < FEW_POINTS or np.unique(points.x).size <= 3 or on_the_law:
        return []
    p, sign = bend(fitted)
    if p >= BEND_P:
        return []
    side = "upward" if sign > 0 else "downward"
    return [
        f"The points bend away from the law (quadratic term in exp(H): p = {p:.1g}), {side} at both ends: its ceiling "
        "is not to be trusted."
    ]
