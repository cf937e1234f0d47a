"""Where a run will stand at a later step: its entropy extrapolated, and carried through the law.

The uncertainty of the entropy's decay, of the law's coefficients and of the score's own noise are all in the interval.
docs/law.md shows how often it held.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from verl_cov.law.ar1 import regress
from verl_cov.law.decay import coefficients, decay, walk
from verl_cov.law.fit import Array, Interval
from verl_cov.law.series import line_of, series

_DRAWS = 4000
_FARTHEST = 1e9  # steps; no training has as many


@dataclass(frozen=True)
class Ahead:
    """A run at `step`, which it has not reached.

    entropy, score: of a validation there, with intervals at `level`. gain: what the steps from the last point to `step`
    are worth by the law, without the noise of single scores. last_step: of the run. warnings: one sentence each.
    """

    step: float
    last_step: float
    entropy: Interval
    score: Interval
    gain: Interval
    level: float
    warnings: tuple[str, ...]


def ahead(
    steps: ArrayLike, entropy: ArrayLike, score: ArrayLike, *, to: float, level: float = 0.95, seed: int = 0
) -> Ahead:
    """Extrapolate one run to step `to`.

    steps, entropy (nats per token), score: [n]. level: of the intervals. seed: of the draws that they are made of.

    Raises ValueError: as `fit`, `series` and `decay` do, or `to` is not after the last step or beyond any training.
    """
    points = series(entropy, score, steps)
    at = np.asarray(steps, dtype=np.float64)[points.order]
    if not at[-1] < to <= _FARTHEST:
        raise ValueError(
            f"step {to:g} is not after the last pair of score and entropy, at step {at[-1]:g}, or beyond {_FARTHEST:g}"
        )
    scores, entropies, gains, decays = draw(at, points.entropy, points.score, points.gap, np.array([to]), seed=seed)
    reached = _interval(scores[:, 0], level)
    warnings = []
    if not decays:
        warnings.append("The entropy so far does not decay to a floor of 0 or more: its extrapolation is a guess.")
    if to - at[-1] > at[-1] - at[0]:
        warnings.append(f"Step {to:g} is farther away than the run is long: no back-test of this run reaches that far.")
    if reached.high - reached.low > np.ptp(points.score):
        warnings.append("This says nothing: the interval of the score is wider than all scores so far.")
    return Ahead(
        float(to),
        float(at[-1]),
        _interval(entropies[:, 0], level),
        reached,
        _interval(gains[:, 0], level),
        level,
        tuple(warnings),
    )


def draw(
    steps: Array, entropy: Array, score: Array, gap: Array, to: Array, *, seed: int = 0, count: int = _DRAWS
) -> tuple[Array, Array, Array, bool]:
    """Draws of the scores, entropies and gains at steps `to` [K], each [draws, K], and `Draws.decays`."""
    rng = np.random.default_rng(seed)
    found = decay(steps, entropy, gap)
    draws = found.draw(to, count, rng)
    line = line_of(np.exp(entropy))
    mixture = regress(line.design(np.exp(entropy)), score, gap)
    beta, rho, scale = coefficients(mixture, len(draws.now), rng)

    def law(entropies: Array) -> Array:
        x = (np.exp(entropies) - line.centre) / line.width
        return beta[:, :1] + beta[:, 1:] * x

    later = np.diff(to, prepend=steps[-1]) / found.usual
    remains = mixture.last_value - beta @ mixture.last_row
    noise = walk(remains, rho, np.repeat(scale[:, None], to.size, axis=1), later, rng)
    return law(draws.entropy) + noise, draws.entropy, law(draws.level) - law(draws.now[:, None]), draws.decays


def _interval(draws: Array, level: float) -> Interval:
    low, middle, high = np.quantile(draws, [(1 - level) / 2, 0.5, (1 + level) / 2])
    # A robust spread: with few points single draws of Student's t lie anywhere.
    se = (np.quantile(draws, 0.841345) - np.quantile(draws, 0.158655)) / 2
    return Interval(float(middle), float(se), float(low), float(high))
