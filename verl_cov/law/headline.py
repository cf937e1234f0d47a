"""The paper's headline numbers for one run: how much of the entropy is consumed, and of the gain realised, how early.

In the paper (arXiv 2505.22617, Fig. 2), as a mean over eleven models, 73 % of the entropy is consumed and 76 % of the
gain realised after 1/12 of the run, 94 % and 93 % after 1/3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from verl_cov.law import decay
from verl_cov.law.ar1 import regress
from verl_cov.law.distributions import stdtrit
from verl_cov.law.fit import Array, Interval
from verl_cov.law.series import line_of, series

FRACTIONS = (1 / 12, 1 / 3)  # of the run
PAPER = ((0.73, 0.76), (0.94, 0.93))  # entropy, gain at each


@dataclass(frozen=True)
class Shares:
    """Shares of the change from a run's first point to its last that had happened after `fraction` of its steps.

    entropy: consumed. gain: realised. Both are of single measurements, and their intervals are those measurements'
    noise. None where the whole change is not above 0 and above twice its noise, so that it has no shares.
    """

    fraction: float
    entropy: Interval | None
    gain: Interval | None


def headline(steps: ArrayLike, entropy: ArrayLike, score: ArrayLike, *, level: float = 0.95) -> tuple[Shares, ...]:
    """The shares after 1/12 and after 1/3 of one run; empty for fewer than 6 points.

    steps, entropy (nats per token), score: [n]. Between two points the values are interpolated. The noise of the
    entropy is that about a decay (:mod:`verl_cov.law.decay`), the noise of the score that about the law.

    Raises ValueError: as `series` does.
    """
    points = series(entropy, score, steps)
    at = np.asarray(steps, dtype=np.float64)[points.order]
    if at.size < decay.FEWEST or points.entropy.min() <= 0 or np.unique(points.entropy).size < 3:
        return ()
    line = line_of(points.x)
    mixture = regress(line.design(points.x), points.score, points.gap)
    noise = np.full(at.size, float(mixture.weight @ mixture.scale**2) ** 0.5)
    blurred = decay.noise(at, points.entropy)
    times = float(stdtrit(at.size - 2, (1 + level) / 2))
    return tuple(
        Shares(
            fraction,
            _share(at, -points.entropy, blurred, fraction, times),
            _share(at, points.score, noise, fraction, times),
        )
        for fraction in FRACTIONS
    )


def _share(step: Array, value: Array, noise: Array, fraction: float, times: float) -> Interval | None:
    """Share of the rise of value [n] from first to last point at `fraction` of the run. times: half an interval in
    standard errors."""
    n = step.size
    middle = np.array([np.interp(step[0] + fraction * (step[-1] - step[0]), step, row) for row in np.eye(n)])
    first, last = np.eye(n)[0], np.eye(n)[-1]
    rise = float((last - first) @ value)
    if not rise > 2 * float(np.linalg.norm((last - first) * noise)):
        return None
    share = float((middle - first) @ value) / rise
    # The ratio's derivative by each value: the noise of the end counts in the whole as well as in the part.
    se = float(np.linalg.norm((middle - first - share * (last - first)) * noise)) / rise
    return Interval(share, se, share - times * se, share + times * se)
