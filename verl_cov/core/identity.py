"""Gives each token a number that depends on its content, not on where the batch happens to hold it.

Clip-Cov's draw, and the choice between equal covariances, go by a hash of (seed, step, token identity). To be the same
for every layout of a mini-batch, a token's identity comes from its sequence (token ids, log-probs, advantages) and its
position, never from row numbers, ranks or a random number generator.

Knows nothing about verl.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.collectives import gather_rows


def token_identity(row_ids: Int64[Tensor, " tokens"], positions: Int[Tensor, " tokens"]) -> Int64[Tensor, " tokens"]:
    """Combines the identity of a token's row with the token's position in the response."""
    return mix(row_ids + mix(positions.long()))


def row_identity(
    values: Int[Tensor, " tokens"],
    lengths: Int[Tensor, " rows"],
    response_lengths: Int[Tensor, " rows"],
    used: Bool[Tensor, " rows"],
    row_values: Int64[Tensor, " rows"],
    group: ProcessGroup | None = None,
) -> Int64[Tensor, " rows"]:
    """Hashes each sequence. Every rank of ``group`` must call this, also a rank without rows.

    Args:
        values: token ids of the packed sequences (prompt and response).
        lengths: tokens of each sequence, prompt and response; response_lengths: of the response alone.
        used: False for padding rows, which often repeat a real row.
        row_values: see :func:`row_values`.
        group: data-parallel process group; None for a single rank.

    Identical sequences differ by an occurrence number, so that each of their tokens can be drawn separately. Which copy
    gets which number does not matter, since the copies are equal in everything.
    """
    rows, positions = slots(lengths, values.numel())
    # A sum of hashes of (position, token): one pass over packed tokens, in any order.
    content = torch.zeros(lengths.numel(), dtype=torch.int64, device=values.device)
    content.index_add_(0, rows, mix(mix(values.long()) + positions))
    content = mix(content ^ mix(response_lengths.long())) + row_values
    return mix(content + _occurrence(content, used, group))


def row_values(
    lengths: Int[Tensor, " rows"],
    valid: Bool[Tensor, " slots"],
    log_prob: Float[Tensor, " slots"],
    advantage: Float[Tensor, " slots"],
) -> Int64[Tensor, " rows"]:
    """Hashes the log-probs and advantages of each row's valid slots; ``lengths`` are the rows' response slots.

    Rows with the same tokens can have different rewards (a noisy judge, a prompt that is twice in a batch): only rows
    that are equal in these values too are interchangeable.
    """
    rows, positions = slots(lengths, valid.numel())
    bits = (mix(x.float().contiguous().view(torch.int32).long()) for x in (log_prob, advantage))
    token = torch.where(valid, mix(sum(bits, start=mix(positions))), 0)
    return torch.zeros(lengths.numel(), dtype=torch.int64, device=token.device).index_add_(0, rows, token)


def slots(lengths: Int[Tensor, " rows"], total: int) -> tuple[Int64[Tensor, " total"], Int64[Tensor, " total"]]:
    """Returns the row of each slot of a packed batch, and the slot's position in that row."""
    rows = torch.arange(lengths.numel(), device=lengths.device)
    # With output_size, repeat_interleave need not read the lengths back from an accelerator.
    rows = torch.repeat_interleave(rows, lengths, output_size=total)
    return rows, torch.arange(total, device=lengths.device) - (lengths.cumsum(0) - lengths)[rows]


def mix(x: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Hashes int64 numbers: SplitMix64's output function (Steele, Lea and Flood 2014), with wrap-around arithmetic."""
    x = x + _INCREMENT
    # torch's >> on int64 shifts copies of the sign bit in; the generator is defined with zeros.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MULTIPLY_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MULTIPLY_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_MULTIPLY_1, _MULTIPLY_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_INCREMENT = _signed(0x9E3779B97F4A7C15)


def _occurrence(
    content: Int64[Tensor, " rows"], used: Bool[Tensor, " rows"], group: ProcessGroup | None
) -> Int64[Tensor, " rows"]:
    """Counts the used rows with the same content before each row, rank by rank.

    24 bytes per row of the mini-batch are gathered. The host reads one number, the largest row count of a rank, which
    on an accelerator waits for all queued work, once per optimizer step.
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
