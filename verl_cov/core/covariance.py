"""The paper's token covariance over a mini-batch that is spread over ranks. Knows nothing about verl.

    cov_i = (log_prob_i - mean log_prob) * (A_i - mean A)          (arXiv 2505.22617, Eq. 10)

Means are taken over all tokens of one optimizer mini-batch. They are accumulated on a grid, so that they come out the
same, to the last bit, in whatever order and on however many ranks the tokens are summed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.collectives import all_reduce

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


def update_kind_masks(log_prob: Tensor, advantage: Tensor, mean_log_prob: Tensor, mean_advantage: Tensor) -> Tensor:
    """[4, tokens] bool: the one of :data:`~verl_cov.core.update_kinds.UPDATE_KINDS` that each token is.

    Arguments as in :func:`token_covariance`.
    """
    likely = log_prob.double() > mean_log_prob  # in float64, as the covariance: a rounded mean would flip signs
    good = advantage.double() > mean_advantage
    return torch.stack([likely & good, ~(likely | good), good & ~likely, likely & ~good])


@dataclass(frozen=True)
class Covariances:
    """The token covariances of a mini-batch.

    Args:
        values: [slots] float32, this rank's; NaN where the slot holds no finite token.
        tokens, non_finite: int64 scalars of all ranks: finite valid tokens (N of the paper), and valid tokens left out
            because log-prob or advantage is not finite.
        centre: mean log-probability and mean advantage over the mini-batch, float64 scalars.
        moments: [10] float64, of this rank only, so that they can travel with other sums: the covariance and its square
            summed over the tokens, then how many tokens each of ``UPDATE_KINDS`` has, and the covariance they sum up to
            (these eight are 0 unless asked for).
    """

    values: Tensor
    tokens: Tensor
    non_finite: Tensor
    centre: tuple[Tensor, Tensor]
    moments: Tensor

    @classmethod
    def compute(
        cls,
        log_prob: Tensor,
        advantage: Tensor,
        valid: Tensor,
        group: ProcessGroup | None = None,
        update_kinds: bool = False,
    ) -> Covariances:
        """Covariances of the mini-batch whose response slots on this rank are ``log_prob``, ``advantage`` ([slots], any
        float dtype, computed with in float32) where ``valid`` ([slots] bool).

        Tokens whose log-probability or advantage is not finite (or beyond :data:`LARGEST`) take no part.
        """
        log_prob, advantage = log_prob.detach().float(), advantage.detach().float()
        counted = torch.empty_like(valid)
        sums = torch.zeros(6, dtype=torch.int64, device=valid.device)
        for part in parts(valid):
            finite = log_prob[part].abs().lt(LARGEST)  # false for NaN and infinity
            finite &= advantage[part].abs().lt(LARGEST)
            torch.logical_and(finite, valid[part], out=counted[part])
            sums[:5] += fixed_point_sums(log_prob[part], advantage[part], counted[part])
            sums[5] += (valid[part] & ~finite).sum()
        sums = all_reduce(sums, group)
        centre = means(sums)

        values = torch.empty_like(log_prob)
        moments = torch.zeros(10, dtype=torch.float64, device=valid.device)
        for part in parts(valid):
            product = token_covariance(log_prob[part], advantage[part], *centre)
            values[part] = torch.where(counted[part], product, torch.nan)
            product = torch.where(counted[part], product, 0.0)
            moments[:2] += torch.stack([product.sum(), torch.dot(product, product)])
            if update_kinds:
                masks = update_kind_masks(log_prob[part], advantage[part], *centre) & counted[part]
                moments[2:6] += masks.sum(1)
                moments[6:] += torch.where(masks, product, 0.0).sum(1)
        return cls(values, sums[0], sums[5], centre, moments)


def on_host(tensor: Tensor) -> bool:
    """True where Python may look at values without waiting for a device."""
    return tensor.device.type == "cpu"


def parts(slots: Tensor) -> Iterator[slice]:
    """Slices to work through ``slots`` in: on a CPU small enough for its cache, which is four times as fast."""
    size = 1 << 16 if on_host(slots) else 1 << 22
    for start in range(0, slots.numel(), size):
        yield slice(start, start + size)
