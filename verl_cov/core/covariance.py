"""Computes the paper's token covariance over a mini-batch that is spread over ranks. Knows nothing about verl.

    cov_i = (log_prob_i - mean log_prob) * (A_i - mean A)          (arXiv 2505.22617, Eq. 10)

The means are over all tokens of one optimizer mini-batch. They are summed on a fixed-point grid, so that the order of
the tokens and the number of ranks do not change a single bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.collectives import all_reduce

# 2^-24 is finer than the spacing of float32 near 1.
FIXED_POINT_BITS = 24
# A log-prob or advantage beyond this is nonsense, and covariances would overflow: it counts as not finite.
LARGEST = 2.0**30

# Adding this float64 and subtracting it again leaves the nearest multiple of 2^-24.
_TO_GRID = 1.5 * 2.0 ** (52 - FIXED_POINT_BITS)


def fixed_point_sums(
    log_prob: Float32[Tensor, " tokens"], advantage: Float32[Tensor, " tokens"], counted: Bool[Tensor, " tokens"]
) -> Int64[Tensor, " 5"]:
    """Counts tokens and sums their log-probs and advantages so that the order of summation does not matter.

    Args:
        log_prob: in nats.
        counted: the tokens to sum; the others may hold anything, NaN included.

    Returns:
        The number of tokens, the sums of log_prob and of advantage rounded down, then their remainders times 2^24. In
        two parts, so that no sum of finite tokens can wrap round. Sums of parts of a mini-batch may be added.

    Multiples of 2^-24 add without rounding in float64 while their sum stays below 2^29: a mean magnitude of 8,192 in
    calls of 65,536 tokens, 128 in calls of 4 million. Above, sums are good to 16 digits.
    """
    scale = float(1 << FIXED_POINT_BITS)
    on_grid = [torch.where(counted, x, 0.0).double().add_(_TO_GRID).sub_(_TO_GRID).sum() for x in (log_prob, advantage)]
    whole = torch.stack(on_grid)
    down = whole.floor()
    return torch.cat([counted.sum().reshape(1), down.to(torch.int64), ((whole - down) * scale).to(torch.int64)])


def means(sums: Int64[Tensor, " sums"]) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
    """Computes the mean log-prob and the mean advantage from :func:`fixed_point_sums`, whose 5 numbers come first."""
    count = sums[0].clamp(min=1).double()
    scale = float(1 << FIXED_POINT_BITS)
    log_prob, advantage = (sums[1:3].double() + sums[3:5].double() / scale) / count
    return log_prob, advantage


def token_covariance(
    log_prob: Float32[Tensor, " tokens"],
    advantage: Float32[Tensor, " tokens"],
    mean_log_prob: Float64[Tensor, ""],
    mean_advantage: Float64[Tensor, ""],
) -> Float64[Tensor, " tokens"]:
    """Computes each token's covariance (Eq. 10), in nats times advantage.

    The means are over the whole mini-batch, see :func:`means`. The mean of the result over the mini-batch is the
    covariance of Theorem 2.
    """
    # In float64: with float32 differences, tokens near the mean lose their order.
    return log_prob.double().sub_(mean_log_prob).mul_(advantage.double().sub_(mean_advantage))


def update_kind_masks(
    log_prob: Float32[Tensor, " tokens"],
    advantage: Float32[Tensor, " tokens"],
    mean_log_prob: Float64[Tensor, ""],
    mean_advantage: Float64[Tensor, ""],
) -> Bool[Tensor, "4 tokens"]:
    """Sorts tokens into the four :data:`~verl_cov.core.update_kinds.UPDATE_KINDS`: one mask for each.

    Arguments as in :func:`token_covariance`.
    """
    likely = log_prob.double() > mean_log_prob  # in float64, as the covariance: a rounded mean would flip signs
    good = advantage.double() > mean_advantage
    return torch.stack([likely & good, ~(likely | good), good & ~likely, likely & ~good])


@dataclass(frozen=True)
class Covariances:
    """The token covariances of a mini-batch.

    Args:
        values: this rank's; NaN where the slot holds no finite token.
        tokens: finite valid tokens of all ranks, N in the paper.
        non_finite: valid tokens of all ranks that are left out because log-prob or advantage is not finite.
        centre: mean log-prob and mean advantage over the mini-batch.
        moments: this rank's sums over its tokens, so that they can be reduced together with others: the covariance, its
            square, the number of tokens of each of ``UPDATE_KINDS``, and the covariance of each of them. The last
            eight are 0 unless :meth:`compute` is called with ``update_kinds``.
    """

    values: Float32[Tensor, " slots"]
    tokens: Int64[Tensor, ""]
    non_finite: Int64[Tensor, ""]
    centre: tuple[Float64[Tensor, ""], Float64[Tensor, ""]]
    moments: Float64[Tensor, " 10"]

    @classmethod
    def compute(
        cls,
        log_prob: Float[Tensor, " slots"],
        advantage: Float[Tensor, " slots"],
        valid: Bool[Tensor, " slots"],
        group: ProcessGroup | None = None,
        update_kinds: bool = False,
    ) -> Covariances:
        """Computes the covariances of the mini-batch from this rank's response slots, in float32.

        Tokens whose log-prob or advantage is not finite (or beyond :data:`LARGEST`) are left out.
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


def on_cpu(tensor: Shaped[Tensor, " ..."]) -> bool:
    """Returns True if reading a value of ``tensor`` waits for no device."""
    return tensor.device.type == "cpu"


def parts(slots: Shaped[Tensor, " slots"]) -> Iterator[slice]:
    """Yields slices to work through ``slots`` in: on a CPU they fit into its cache, which is four times as fast."""
    size = 1 << 16 if on_cpu(slots) else 1 << 22
    for start in range(0, slots.numel(), size):
        yield slice(start, start + size)
