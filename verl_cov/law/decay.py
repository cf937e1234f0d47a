"""Extrapolates a run's entropy as a decay to a floor, averaged over how it decays.

H(t) = floor + fall x shape(t), where the shape is exponential, exp(-t / tau), or a power, (1 + t / tau)^-k. Given the
shape this is a regression, so it is done as the law's is (:mod:`verl_cov.law.ar1`): generalised least squares under
AR(1) noise, weighed by restricted likelihood over a grid of tau, k and the noise's correlation, without an optimiser.
The noise is relative to the entropy, as its fluctuations shrink with it. Decays whose floor is below 0 are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verl_cov.law.ar1 import RHO, Mixture, correlation, regress
from verl_cov.law.fit import Array

FEWEST = 6  # points: a decay has four numbers, and its noise two
_TAU = np.geomspace(0.05, 20, 48)  # of the exponential, in lengths of the run
_POWER_TAU, _K = np.geomspace(0.02, 5, 24), (0.5, 1.0, 2.0)
_ROUNDING = 0.01  # of the largest entropy: a floor so little below 0 may be the grid's
_KEPT = 0.02  # of the draws with a floor of at least 0; with fewer the entropy is not decaying to one


@dataclass(frozen=True)
class Draws:
    """Draws of a run's entropy at K steps after its last point, each [draws, K] unless said otherwise.

    entropy: with its own noise. level: without. now: [draws], the level at the last point. decays: whether the entropy
    so far is compatible with a decay to a floor of 0 or more; if not, what falls below 0 is put to 0.
    """

    entropy: Array
    level: Array
    now: Array
    decays: bool


@dataclass(frozen=True)
class Decay:
    """Decays fitted to the entropies of n points, with weights. typical: [n], about how large each entropy is."""

    mixtures: tuple[Mixture, ...]
    weights: Array
    taus: Array
    powers: Array
    first: float
    last: float
    usual: float
    typical: Array

    def draw(self, steps: Array, count: int, rng: np.random.Generator) -> Draws:
        """`count` draws of the entropy at `steps` [K], ascending and after the last point."""
        span = self.last - self.first
        gap = np.diff(steps, prepend=self.last) / self.usual
        entropy, levels, now, floors = [], [], [], []
        for at, number in enumerate(rng.multinomial(count, self.weights)):
            if number == 0:
                continue
            shape = _shape(self.taus[at], self.powers[at], (np.append(steps, np.inf) - self.first) / span)
            ahead = _between(shape, *_shape(self.taus[at], self.powers[at], np.array([0.0, 1.0])))
            beta, rho, scale = coefficients(self.mixtures[at], number, rng)
            level = beta @ ahead.T
            remains = self.typical[-1] * (self.mixtures[at].last_value - beta @ self.mixtures[at].last_row)
            noise = scale[:, None] * np.abs(level[:, :-1])
            entropy.append(level[:, :-1] + walk(remains, rho, noise, gap, rng))
            levels.append(level[:, :-1])
            now.append(beta[:, 1])
            floors.append(level[:, -1])
        floor = np.concatenate(floors)
        kept = floor >= -_ROUNDING * self.typical.max()
        decays = bool(kept.mean() >= _KEPT)
        kept = kept if decays else np.ones_like(kept)
        clipped = [np.maximum(np.concatenate(part)[kept], 0.0) for part in (entropy, levels, now)]
        return Draws(clipped[0], clipped[1], clipped[2], decays)


def decay(steps: Array, entropy: Array, gap: Array) -> Decay:
    """Fit decays to entropies [n] at ascending steps [n]. gap: [n], as in `Series`, of one run.

    Raises ValueError: fewer than 6 points, or an entropy that is not above 0.
    """
    if entropy.size < FEWEST:
        raise ValueError(f"a decay needs at least {FEWEST} points, got {entropy.size}")
    if entropy.min() <= 0:
        raise ValueError("entropy must be above 0 to be extrapolated")
    taus = np.concatenate((_TAU, np.repeat(_POWER_TAU, len(_K))))
    powers = np.concatenate((np.full(_TAU.size, np.inf), np.tile(_K, _POWER_TAU.size)))
    designs = _designs(steps, taus, powers)
    typical = _typical(designs, entropy)
    mixtures = tuple(regress(d / typical[:, None], entropy / typical, gap, rho=RHO[::5]) for d in designs)
    evidence = np.array([mixture.evidence for mixture in mixtures])
    # Exponentials and powers count the same, however many of each are on the grid.
    family = np.where(np.isinf(powers), np.log(_TAU.size), np.log(_POWER_TAU.size * len(_K)))
    weights = np.exp(evidence - family - (evidence - family).max())
    weights /= weights.sum()
    usual = float(np.median(np.diff(steps)))
    return Decay(mixtures, weights, taus, powers, steps[0], steps[-1], usual, typical)


def noise(steps: Array, entropy: Array) -> Array:
    """Standard deviation [n] of each of at least 6 entropies [n] about the exponential decay closest to them."""
    typical = _typical(_designs(steps, _TAU, np.full(_TAU.size, np.inf)), entropy)
    return typical * np.sqrt(np.sum((entropy / typical - 1) ** 2) / (entropy.size - 4))


def _designs(steps: Array, taus: Array, powers: Array) -> list[Array]:
    time = (steps - steps[0]) / (steps[-1] - steps[0])
    shapes = [_shape(tau, power, time) for tau, power in zip(taus, powers, strict=True)]
    return [_between(shape, shape[0], shape[-1]) for shape in shapes]


def _typical(designs: list[Array], entropy: Array) -> Array:
    """Fit with equal noise, which tells about how large the entropy is at each point."""
    levels = [design @ np.linalg.lstsq(design, entropy, rcond=None)[0] for design in designs]
    best = min(levels, key=lambda level: float(((entropy - level) ** 2).sum()))
    return np.maximum(best, 1e-3 * entropy.max())


def coefficients(mixture: Mixture, count: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """`count` draws from a regression: its coefficients [count, p], the noise's correlation and scale, each [count]."""
    part = rng.choice(mixture.weight.size, count, p=mixture.weight)
    shrink = np.sqrt(mixture.df / rng.chisquare(mixture.df, count))
    factor = np.linalg.cholesky(mixture.cov + 1e-300 * np.eye(mixture.cov.shape[-1]))[part]
    normal = rng.standard_normal((count, factor.shape[-1]))
    beta = mixture.params[part] + shrink[:, None] * np.einsum("cpq,cq->cp", factor, normal)
    return beta, mixture.rho[part], shrink * mixture.scale[part]


def walk(remains: Array, rho: Array, scale: Array, gap: Array, rng: np.random.Generator) -> Array:
    """[count, K] draws of AR(1) noise at K later points. remains: [count], the last point's. scale: [count, K]."""
    steps = correlation(rho, gap)
    noise = np.empty_like(steps)
    before = remains
    for at in range(gap.size):
        fresh = np.sqrt(1 - steps[:, at] ** 2) * scale[:, at]
        before = noise[:, at] = steps[:, at] * before + fresh * rng.standard_normal(remains.size)
    return noise


def _shape(tau: float, power: float, time: Array) -> Array:
    """From 1 at time 0 to 0 at infinity; time in lengths of the run."""
    return np.exp(-time / tau) if np.isinf(power) else (1 + time / tau) ** -power


def _between(shape: Array, first: float, last: float) -> Array:
    """Design [n, 2] whose coefficients are the entropies at the first and the last point: alike for all shapes."""
    share = (shape - last) / (first - last)
    return np.stack((share, 1 - share), axis=-1)
