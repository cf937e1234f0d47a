"""A number for each token that depends on its content, not on where the batch happens to hold it.

Equal covariances are cut, and Clip-Cov's draw is made, by a hash of (seed, step, token identity). For that to come out
the same for every layout of a mini-batch, a token's identity is derived from its sequence (token ids, log-probs,
advantages) and its position, never from row numbers, ranks or a random number generator.

Knows nothing about verl.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.collectives import gather_rows


def token_identity(row_ids: Tensor, positions: Tensor) -> Tensor:
    """[tokens] int64 from the token's row identity and its position in the response (both [tokens] int64)."""
    return mix(row_ids + mix(positions.long()))


def row_identity(
    values: Tensor,
    lengths: Tensor,
    response_lengths: Tensor,
    used: Tensor,
    row_values: Tensor,
    group: ProcessGroup | None = None,
) -> Tensor:
    """A number for each sequence. Every rank of ``group`` must call this, also one without any row.

    Args:
        values: [sum of lengths] token ids of the packed sequences (prompt and response).
        lengths: [rows] tokens a sequence; response_lengths: [rows], how many of them are the response.
        used: [rows] bool, False for padding rows, which often repeat a real one.
        row_values: [rows] int64, see :func:`row_values`.
        group: data-parallel process group; None for a single rank.

    Returns:
        [rows] int64. Identical sequences differ by an occurrence number, so that each of their tokens can be drawn
        separately; which copy gets which number does not matter, since the copies are alike in everything.
    """
    rows, positions = slots(lengths, values.numel())
    # A sum of hashes of (position, token): one pass over packed tokens, in any order.
    content = torch.zeros(lengths.numel(), dtype=torch.int64, device=values.device)
    content.index_add_(0, rows, mix(mix(values.long()) + positions))
    content = mix(content ^ mix(response_lengths.long())) + row_values
    return mix(content + _occurrence(content, used, group))


def row_values(lengths: Tensor, valid: Tensor, log_prob: Tensor, advantage: Tensor) -> Tensor:
    """A hash of each row's log-probs and advantages, [rows] int64.

    Rows with the same tokens can have different rewards (a noisy judge, a prompt twice in a batch): only rows that are
    alike in this too are interchangeable.

    Args:
        lengths: [rows] response slots a row.
        valid, log_prob, advantage: [slots], row by row; only valid slots count.
    """
    rows, positions = slots(lengths, valid.numel())
    bits = (mix(x.float().contiguous().view(torch.int32).long()) for x in (log_prob, advantage))
    token = torch.where(valid, mix(sum(bits, start=mix(positions))), 0)
    return torch.zeros(lengths.numel(), dtype=torch.int64, device=token.device).index_add_(0, rows, token)


def slots(lengths: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Row and position in the row of each slot of a packed batch: two [total] int64, from [rows] lengths."""
    rows = torch.arange(lengths.numel(), device=lengths.device)
    # With output_size, repeat_interleave need not read the lengths back from an accelerator.
    rows = torch.repeat_interleave(rows, lengths, output_size=total)
    return rows, torch.arange(total, device=lengths.device) - (lengths.cumsum(0) - lengths)[rows]


def mix(x: Tensor) -> Tensor:
    """SplitMix64's output function (Steele, Lea and Flood 2014) on int64, with its wrap-around arithmetic."""
    x = x + _INCREMENT
    # torch's >> on int64 copies the sign bit in; the generator is defined with zeros.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MULTIPLY_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MULTIPLY_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_MULTIPLY_1, _MULTIPLY_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_INCREMENT = _signed(0x9E3779B97F4A7C15)


def _occurrence(content: Tensor, used: Tensor, group: ProcessGroup | None) -> Tensor:
    """How many used rows with the same content come before each row, counting rank by rank. [rows] int64.

    24 bytes a row of the mini-batch travel, and the host reads one number, the largest row count of a rank, which on an
    accelerator waits for what is queued: once an optimizer step.
    """
    gathered, _, mine = gather_rows(torch.stack([content, used.long()], 1), group)
    key, present = gathered.unbind(1)
    order = torch.sort(key, stable=True).indices
    before = present[order].cumsum(0) - present[order]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = key[order][1:] != key[order][:-1]
    base = torch.where(first, before, 0).cummax(0).values
    occurrence = torch.empty_like(before)
    occurrence[order] = before - base
    return occurrence[mine]
