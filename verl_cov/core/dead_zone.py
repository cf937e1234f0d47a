"""How far a log-prob must have moved before KL-Cov's absolute penalty acts on it.

|x| has slope +1 or -1 on either side of 0. Where the policy has not moved, x = log pi - log pi_old is rounding: another
micro-batch size gives it another sign, and the released penalty's gradient, which has the full size, follows that sign.
In the first update of a rollout on log-probs that this very policy gave, *every* x is rounding. The penalty rests
there, and what x is measures the noise; later updates of the rollout leave tokens alone that moved no further than
that. Knows nothing about verl.
"""

from __future__ import annotations

import math

# Rounding in float32 stays below it: 1e-6 in log-probs of some nats. A drift of this size is no reason for a penalty.
FLOOR = 1e-5  # nats
# Of the mean |x|; 99.9 % of Gaussian noise stays within.
MULTIPLE = 4.0
ALL = math.inf  # the zone that holds every token


def from_noise(mean_abs: float) -> float:
    """Returns the dead zone in nats for a noise whose mean magnitude was measured as ``mean_abs`` nats.

    A power of two times :data:`FLOOR`, so that layouts whose noise differs a little have one zone. A mean that is not
    finite, as that of no token, gives :data:`FLOOR`.
    """
    if not FLOOR / MULTIPLE < mean_abs < math.inf:
        return FLOOR
    return FLOOR * 2.0 ** math.ceil(math.log2(MULTIPLE * mean_abs / FLOOR))
