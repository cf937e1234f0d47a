"""Other descriptions of a run beside the law, ranked by how well each predicts what it has not seen.

The law is disputed: the score falls again at high entropy (arXiv 2510.08141), and across prompts entropy and score
correlate little (2511.05993). So a run's first points are fitted by each description and its later scores predicted,
from several origins. Two kinds must be told apart: some are given the entropies of the later points, as in the paper's
Figure 5, and some know nothing but the step. Compute is the step: its cost is taken for constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from verl_cov.law.ahead import draw
from verl_cov.law.ar1 import regress
from verl_cov.law.fit import Array
from verl_cov.law.forecast import FRACTIONS
from verl_cov.law.series import line_of, series, unit_of

FEWEST = 6  # points to fit: the sigmoid has four numbers
ALIKE = 1.1  # ratio of two held-out errors below which one is not called better
Needs = Literal["entropy", "step"]


@dataclass(frozen=True)
class Known:
    """The first points of a run, each [n]; gap as in `Series`."""

    step: Array
    entropy: Array
    score: Array
    gap: Array


@dataclass(frozen=True)
class Alternative:
    """A description of a run. formula: in words for people. needs: of the later points. predict: their scores from the
    known points and the steps and entropies of the later ones."""

    name: str
    formula: str
    needs: Needs
    predict: Callable[[Known, Array, Array], Array]


@dataclass(frozen=True)
class Ranked:
    """How well a description predicted the later scores of a run.

    name, formula, needs: as in `Alternative`. errors: [origins], root of the mean squared error of the points after
    each origin, in units of the score. error: their median, as one origin from which a curve flies off is not the run.
    """

    name: str
    formula: str
    needs: Needs
    error: float
    errors: Array


def rank(
    steps: ArrayLike, entropy: ArrayLike, score: ArrayLike, *, fractions: Sequence[float] = FRACTIONS
) -> tuple[Ranked, ...]:
    """Back-test all descriptions on one run by rolling origin, the best first; empty if the run is too short.

    steps, entropy (nats per token), score: [n]. fractions: of the points that are fitted, where they are at least 6 and
    leave one to predict.

    Raises ValueError: as `series` does.
    """
    points = series(entropy, score, steps)
    step = np.asarray(steps, dtype=np.float64)[points.order]
    n = step.size
    origins = sorted({k for fraction in fractions if FEWEST <= (k := round(fraction * n)) < n})
    rounding = 1e-12 * float(np.abs(points.score).max())
    errors: dict[str, list[float]] = {each.name: [] for each in ALTERNATIVES}
    for k in origins:
        known = Known(step[:k], points.entropy[:k], points.score[:k], points.gap[:k])
        if np.unique(known.entropy).size < 4:
            continue
        for each in ALTERNATIVES:
            predicted = each.predict(known, step[k:], points.entropy[k:])
            error = float(np.sqrt(np.mean((predicted - points.score[k:]) ** 2)))
            errors[each.name].append(error if error > rounding else 0.0)
    ranked = [
        Ranked(each.name, each.formula, each.needs, float(np.median(found)), np.array(found))
        for each in ALTERNATIVES
        if (found := errors[each.name])
    ]
    return tuple(sorted(ranked, key=lambda one: one.error))


def verdict(ranked: Sequence[Ranked]) -> str:
    """Which description predicted the run best, in one sentence."""
    if not ranked:
        return f"Too few points to compare the law with other descriptions: {FEWEST} are fitted, and one predicted."
    best, law = ranked[0], next(one for one in ranked if one.name == LAW)
    rivals = [one for one in ranked if one.name != LAW]
    if best.name == LAW and rivals[0].error > ALIKE * law.error:
        return (
            f"The law predicted this run best: held-out error {law.error:.3g}, {rivals[0].name} {rivals[0].error:.3g}."
        )
    if law.error <= ALIKE * best.error:
        alike = [one.name for one in rivals if one.error <= ALIKE * best.error or one is rivals[0]]
        return f"The law and {', '.join(alike)} predicted this run about equally well: held-out error {law.error:.3g}."
    return (
        f"{best.name[0].upper()}{best.name[1:]} predicted this run better than the law: held-out error "
        f"{best.error:.3g} against {law.error:.3g}."
    )


def _law(known: Known, step: Array, entropy: Array) -> Array:
    return _polynomial(known, entropy, 1)


def _quadratic(known: Known, step: Array, entropy: Array) -> Array:
    return _polynomial(known, entropy, 2)


def _polynomial(known: Known, entropy: Array, degree: int) -> Array:
    """The law, or the law with a quadratic term, under AR(1) noise like the law itself."""
    line = line_of(np.exp(known.entropy))

    def design(values: Array) -> Array:
        return line.design(np.exp(values))[:, 1:] ** np.arange(degree + 1)

    return design(entropy) @ regress(design(known.entropy), known.score, known.gap).mean()


def _law_ahead(known: Known, step: Array, entropy: Array) -> Array:
    """The law, given no later entropy but its extrapolation; without one, the last entropy stays."""
    if known.entropy.min() <= 0:
        return _law(known, step, np.full_like(step, known.entropy[-1]))
    return np.median(draw(known.step, known.entropy, known.score, known.gap, step, count=500)[0], axis=0)


def _sigmoid(known: Known, step: Array, entropy: Array) -> Array:
    """R0 + (A - R0) / (1 + (C_mid / C)^B) (ScaleRL, arXiv 2510.13786, Eq. 1)."""

    def curve(compute: Array, numbers: Array) -> Array:
        start, end, middle, power = numbers
        return start + (end - start) / (1 + np.exp(-power * (np.log(compute) - middle)))

    low, high = float(known.score.min()), float(known.score.max())
    spread, end = max(high - low, 1e-9), _most(known.score)
    top = min(end, high + 3 * spread) if end is not None else high + 3 * spread
    bounds = ([low - spread, low, -7.0, 0.2], [high, max(top, low + spread), 3.0, 8.0])
    starts = [(low, high, middle, 1.5) for middle in (-3.0, -1.5, -0.3)]
    return _curve(curve, starts, bounds, known, step)


def _power_law(known: Known, step: Array, entropy: Array) -> Array:
    """A - c (C + C0)^-k: the error falls as a power of compute (arXiv 2509.25300). A: the highest possible score."""
    low, high = float(known.score.min()), float(known.score.max())
    spread, most = max(high - low, 1e-9), _most(known.score)
    if most is not None:

        def to_a_maximum(compute: Array, numbers: Array) -> Array:
            scale, power, early = numbers
            return most - scale * (compute + early) ** -power

        room = max(most - low, 1e-9)
        return _curve(to_a_maximum, [(room, 0.1, 0.3)], ([0, 0, 1e-3], [20 * room, 4, 10]), known, step)

    def free(compute: Array, numbers: Array) -> Array:
        end, scale, power, early = numbers
        return end - scale * (compute + early) ** -power

    bounds = ([low, 0, 0.02, 1e-3], [high + 3 * spread, 50 * spread, 4, 10])
    return _curve(free, [(high, spread, 0.5, 0.3)], bounds, known, step)


def _no_change(known: Known, step: Array, entropy: Array) -> Array:
    return np.full_like(step, known.score[-1])


def _curve(
    curve: Callable[[Array, Array], Array],
    starts: Sequence[tuple[float, ...]],
    bounds: tuple[list[float], list[float]],
    known: Known,
    step: Array,
) -> Array:
    """Least squares (scipy) from several starts. Compute is 1 at the last known point and above 0 at the first."""
    from scipy.optimize import least_squares  # here: its import takes a moment

    shift = max(0.0, 1e-3 * (known.step[-1] - known.step[0]) - known.step[0])
    compute, later = ((at + shift) / (known.step[-1] + shift) for at in (known.step, step))
    low, high = map(np.asarray, bounds)
    inside = [np.clip(start, low + 1e-6 * (high - low), high - 1e-6 * (high - low)) for start in starts]
    fits = [
        least_squares(
            lambda numbers: curve(compute, numbers) - known.score, start, bounds=(low, high), x_scale=high - low
        )
        for start in inside
    ]
    return curve(later, min(fits, key=lambda one: one.cost).x)


def _most(score: Array) -> float | None:
    """The highest score that there can be, if the unit tells."""
    return {"fraction": 1.0, "percent": 100.0}.get(unit_of(score))


LAW = "the law"
ALTERNATIVES = (
    Alternative(LAW, "-a exp(H) + b", "entropy", _law),
    Alternative("a quadratic in exp(H)", "c exp(2H) - a exp(H) + b", "entropy", _quadratic),
    Alternative("the law with extrapolated entropy", "-a exp(H(step)) + b", "step", _law_ahead),
    Alternative("a sigmoid in compute", "R0 + (A - R0) / (1 + (C0 / C)^B)", "step", _sigmoid),
    Alternative("a power law in compute", "A - c (C + C0)^-k", "step", _power_law),
    Alternative("no change", "the last score", "step", _no_change),
)
