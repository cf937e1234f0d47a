"""Which tokens of an optimizer mini-batch a control acts on: exactly, and the same ones for every layout of the batch.

The mini-batch is spread over data-parallel ranks and cut into micro-batches; the functions here see one rank's valid
response tokens as flat tensors and talk to the other ranks through ``group``. What they choose depends on the set of
tokens only: equal covariances are cut, and Clip-Cov's draw is made, by a hash of (seed, step, token identity), never by
a random number generator or by the order in which rows arrive.

Knows nothing about verl. Every rank of ``group`` must call :func:`select_tokens` and :func:`row_identity`, also one
without any token.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov import covariance

# Keys are compared as int64. Everything selectable is above this.
EXCLUDED = torch.iinfo(torch.int64).min


@dataclass(frozen=True)
class Control:
    """What to select.

    Args:
        ratio: share of the mini-batch's valid tokens (r or k of the paper), a fraction in (0, 1].
        band: None to take the largest covariances (KL-Cov); (low, high) to draw uniformly, without replacement, from
            the tokens with low < covariance < high (Clip-Cov).
        seed: any integer.
        step: counter of optimizer steps, the same on every rank; another step is another draw.
    """

    ratio: float
    band: tuple[float, float] | None = None
    seed: int = 0
    step: int = 0


@dataclass(frozen=True)
class Selected:
    """The result of :func:`select_tokens` on one rank.

    ``mask`` ([tokens] bool) and ``covariance`` ([tokens] float32, NaN where the token is not finite) are this rank's.
    The rest is of the whole mini-batch, equal on every rank: ``tokens`` finite valid tokens (N of the paper),
    ``non_finite`` tokens left out, ``candidates`` tokens the control could choose from, ``count`` chosen,
    ``selected_negative`` chosen with a negative advantage; sums of the covariance, of its square, and over the chosen,
    in nats times advantage.
    """

    mask: Tensor
    covariance: Tensor
    tokens: int
    non_finite: int
    candidates: int
    count: int
    covariance_sum: float
    covariance_square_sum: float
    selected_covariance_sum: float
    selected_negative: int


def quota(ratio: float, tokens: int) -> int:
    """floor(ratio * tokens), at least 1 (paper Eq. 11 and 13; the floor of 1 is the released code's).

    Computed on the decimal the user wrote: in binary, 0.29 * 100 is 28.999999999999996.
    """
    return max(1, int(Fraction(repr(float(ratio))) * tokens)) if tokens else 0


def select_tokens(
    log_prob: Tensor, advantage: Tensor, identity: Tensor, control: Control, group: ProcessGroup | None = None
) -> Selected:
    """Choose the tokens of the mini-batch that ``control`` asks for.

    Args:
        log_prob: [tokens] log-probabilities in nats, any float dtype (computed with in float32).
        advantage: [tokens].
        identity: [tokens] int64, see :func:`token_identity`.
        control: what to choose.
        group: data-parallel process group; None for a single rank.

    Tokens whose log-probability or advantage is not finite take no part: they are not counted in N, not in the means.
    """
    log_prob, advantage = log_prob.detach().float(), advantage.detach().float()
    finite = (log_prob.abs() < covariance.LARGEST) & (advantage.abs() < covariance.LARGEST)  # false for NaN, infinity
    sums = covariance.fixed_point_sums(log_prob[finite], advantage[finite])
    sums = _all_reduce(torch.cat([sums, (~finite).sum().reshape(1)]), group)
    cov = covariance.token_covariance(log_prob, advantage, *covariance.means(sums))
    lottery = _mix(identity ^ _seed_key(control, identity.device))
    if control.band is None:
        eligible, keys = finite, (_ordered(cov) << 31) | (lottery & _MASK_31)
    else:
        low, high = control.band
        eligible, keys = finite & (cov > low) & (cov < high), lottery & _MASK_62
    keys = torch.where(eligible, keys, EXCLUDED)
    tokens = int(sums[0])
    mask = select_largest(keys, quota(control.ratio, tokens), group)
    cov = torch.where(finite, cov, torch.nan)
    totals = _all_reduce(_totals(cov, advantage, finite, eligible, mask), group).tolist()
    return Selected(
        mask=mask,
        covariance=cov,
        tokens=tokens,
        non_finite=int(sums[3]),
        candidates=int(totals[0]),
        count=int(totals[1]),
        covariance_sum=totals[2],
        covariance_square_sum=totals[3],
        selected_covariance_sum=totals[4],
        selected_negative=int(totals[5]),
    )


def select_largest(keys: Tensor, count: int, group: ProcessGroup | None = None) -> Tensor:
    """Mark the ``count`` largest of all ranks' ``keys``, exactly ``count`` of them (all, if there are fewer).

    Args:
        keys: [tokens] int64; entries equal to :data:`EXCLUDED` are never marked.
        count: the same on every rank.

    Returns:
        [tokens] bool, this rank's share.

    Keys that are equal are taken from the lowest rank first. They belong to tokens with the same content (or are a
    31-bit hash collision), so which of them is taken does not change the gradient.
    """
    mask = torch.zeros_like(keys, dtype=torch.bool)
    if count <= 0:
        return mask
    best = torch.full((count,), EXCLUDED, dtype=torch.int64, device=keys.device)
    local = torch.topk(keys, min(count, keys.numel())).values
    best[: local.numel()] = local
    everyone = _all_gather(best, group)
    threshold = torch.topk(everyone.flatten(), count).values[-1]
    if threshold == EXCLUDED:
        return keys != EXCLUDED
    rank = dist.get_rank(group) if group is not None else 0
    left = count - (everyone > threshold).sum() - (everyone[:rank] == threshold).sum()
    ties = keys == threshold
    return (keys > threshold) | (ties & (ties.cumsum(0) <= left))


def row_values(rows: Tensor, positions: Tensor, log_prob: Tensor, advantage: Tensor, count: int) -> Tensor:
    """A hash of each row's log-probs and advantages, [count] int64, from its valid tokens (four [tokens] tensors).

    Rows with the same tokens can have different rewards (a noisy judge, a prompt twice in a batch): only rows that are
    alike in this too are interchangeable.
    """
    bits = (_mix(x.float().view(torch.int32).long()) for x in (log_prob.contiguous(), advantage.contiguous()))
    token = _mix(sum(bits, start=_mix(positions.long())))
    return torch.zeros(count, dtype=torch.int64, device=token.device).index_add_(0, rows, token)


def row_identity(
    values: Tensor,
    lengths: Tensor,
    response_lengths: Tensor,
    used: Tensor,
    row_values: Tensor,
    group: ProcessGroup | None = None,
) -> Tensor:
    """A number for each sequence that depends on its content, not on where it lies.

    Args:
        values: [sum of lengths] token ids of the packed sequences (prompt and response).
        lengths: [rows] tokens a sequence; response_lengths: [rows], how many of them are the response.
        used: [rows] bool, False for padding rows, which often repeat a real one.
        row_values: [rows] int64, see :func:`row_values`.

    Returns:
        [rows] int64. Identical sequences differ by an occurrence number, so that each of their tokens can be drawn
        separately; which copy gets which number does not matter, since the copies are alike in everything.
    """
    rows = torch.repeat_interleave(torch.arange(lengths.numel(), device=values.device), lengths)
    starts = lengths.cumsum(0) - lengths
    position = torch.arange(values.numel(), device=values.device) - starts[rows]
    # A sum of hashes of (position, token): one pass over packed tokens, in any order.
    content = torch.zeros(lengths.numel(), dtype=torch.int64, device=values.device)
    content.index_add_(0, rows, _mix(_mix(values.long()) + position))
    content = _mix(content ^ _mix(response_lengths.long())) + row_values
    return _mix(content + _occurrence(content, used, group))


def token_identity(row_ids: Tensor, positions: Tensor) -> Tensor:
    """[tokens] int64 from the token's row identity and its position in the response (both [tokens] int64)."""
    return _mix(row_ids + _mix(positions.long()))


def _occurrence(content: Tensor, used: Tensor, group: ProcessGroup | None) -> Tensor:
    """How many used rows with the same content come before each row, counting rank by rank. [rows] int64."""
    sizes = _all_gather(torch.tensor([content.numel()], device=content.device), group).flatten().tolist()
    rank = dist.get_rank(group) if group is not None else 0
    padded = torch.zeros(2, max(sizes), dtype=torch.int64, device=content.device)
    padded[0, : content.numel()] = content
    padded[1, : content.numel()] = used
    gathered = _all_gather(padded, group)  # [ranks, 2, rows]
    present = gathered[:, 1].flatten()
    key = gathered[:, 0].flatten()
    order = torch.sort(key, stable=True).indices
    before = present[order].cumsum(0) - present[order]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = key[order][1:] != key[order][:-1]
    base = torch.where(first, before, 0).cummax(0).values
    occurrence = torch.empty_like(before)
    occurrence[order] = before - base
    return occurrence.view(len(sizes), -1)[rank, : content.numel()]


def _totals(cov: Tensor, advantage: Tensor, finite: Tensor, eligible: Tensor, mask: Tensor) -> Tensor:
    finite_cov = torch.where(finite, cov, 0).double()
    return torch.stack(
        [
            eligible.sum().double(),
            mask.sum().double(),
            finite_cov.sum(),
            finite_cov.square().sum(),
            torch.where(mask, finite_cov, 0).sum(),
            (mask & (advantage < 0)).sum().double(),
        ]
    )


# --- integer keys -----------------------------------------------------------------------------------------------------

_MASK_31 = (1 << 31) - 1
_MASK_62 = (1 << 62) - 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_MULTIPLY_1, _MULTIPLY_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_INCREMENT = _signed(0x9E3779B97F4A7C15)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's output function (Steele, Lea and Flood 2014) on int64, with its wrap-around arithmetic."""
    x = x + _INCREMENT
    # torch's >> on int64 copies the sign bit in; the generator is defined with zeros.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MULTIPLY_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MULTIPLY_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _seed_key(control: Control, device: torch.device) -> Tensor:
    seed, step = (torch.tensor([number], dtype=torch.int64, device=device) for number in (control.seed, control.step))
    return _mix(_mix(seed) + step)


def _ordered(x: Tensor) -> Tensor:
    """Map float32 to int64 in [-2^31, 2^31) so that integer order is numeric order. -0.0 counts as 0.0."""
    bits = (x + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, -(bits & _MASK_31) - 1, bits)


# --- collectives ------------------------------------------------------------------------------------------------------


def _all_reduce(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


def _all_gather(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """[ranks, *tensor.shape]; ``tensor`` has the same shape on every rank."""
    if group is None:
        return tensor.unsqueeze(0)
    out = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(out, tensor, group=group)
    return torch.stack(out)
