"""The paper's token covariance, as pure tensor functions. Knows nothing about verl, batches or ranks.

    cov_i = (log_prob_i - mean log_prob) * (A_i - mean A)          (arXiv 2505.22617, Eq. 10)

Means are taken over all tokens of one optimizer mini-batch. They are accumulated on a grid, so that they come out the
same, to the last bit, in whatever order and on however many ranks the tokens are summed.
"""

from __future__ import annotations

import torch
from torch import Tensor

# 2^-24 is finer than the spacing of float32 near 1.
FIXED_POINT_BITS = 24
# Beyond this a value is no log-probability or advantage, and covariances would overflow: treat it as not finite.
LARGEST = 2.0**30

# Adding and taking away this float64 leaves the nearest multiple of 2^-24.
_TO_GRID = 1.5 * 2.0 ** (52 - FIXED_POINT_BITS)


def fixed_point_sums(log_prob: Tensor, advantage: Tensor, counted: Tensor) -> Tensor:
    """Count and order-independent sums of some tokens of the mini-batch. Sums of parts add up, in any order.

    Args:
        log_prob: [tokens] float32, log-probabilities in nats.
        advantage: [tokens] float32.
        counted: [tokens] bool, the tokens to take; the others may hold anything, NaN included.

    Returns:
        [5] int64: number of tokens, the sums of log_prob and of advantage rounded down, and what that left of them
        times 2^24. In two parts, so that no sum of finite tokens can wrap round.

    Multiples of 2^-24 add without rounding in float64 while their sum stays below 2^29: a mean magnitude of 8,192 in
    calls of 65,536 tokens, 128 in calls of 4 million. Above, sums are good to 16 digits.
    """
    scale = float(1 << FIXED_POINT_BITS)
    on_grid = [torch.where(counted, x, 0.0).double().add_(_TO_GRID).sub_(_TO_GRID).sum() for x in (log_prob, advantage)]
    whole = torch.stack(on_grid)
    down = whole.floor()
    return torch.cat([counted.sum().reshape(1), down.to(torch.int64), ((whole - down) * scale).to(torch.int64)])


def means(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean log-probability and mean advantage, float64 scalars, from summed :func:`fixed_point_sums`."""
    count = sums[0].clamp(min=1).double()
    scale = float(1 << FIXED_POINT_BITS)
    log_prob, advantage = (sums[1:3].double() + sums[3:5].double() / scale) / count
    return log_prob, advantage


def token_covariance(log_prob: Tensor, advantage: Tensor, mean_log_prob: Tensor, mean_advantage: Tensor) -> Tensor:
    """Covariance contribution of each token (Eq. 10).

    Args:
        log_prob, advantage: [tokens] float32.
        mean_log_prob, mean_advantage: float64 scalars over the whole mini-batch, see :func:`means`.

    Returns:
        [tokens] float64, in nats times advantage. Its mean over the mini-batch is the covariance of Theorem 2.
    """
    # In float64: with float32 differences, tokens near the mean lose their order.
    return log_prob.double().sub_(mean_log_prob).mul_(advantage.double().sub_(mean_advantage))
