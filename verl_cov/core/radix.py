"""Finds the n-th largest of numbers that lie on many ranks, digit by digit (radix-select), and draws tokens by hash.

Each pass counts how many candidates have each value of the next 11 bits of an integer key, adds up the counts of all
ranks, and keeps the candidates of one bin. Covariances are 32-bit keys whose order is their own: three passes. Draws
take five passes over 55 bits of a hash of (seed, step, token identity). So at most 131 kB a rank go into collectives,
whatever the number of tokens, of selected tokens or of ranks.

On an accelerator nothing here waits for the device (no ``.item()``, ``nonzero`` or boolean indexing). On a CPU, where
reading a value costs nothing, candidates are compacted after each pass.

``group`` is the data-parallel process group, None for a single rank; every rank must call these functions, also a rank
without tokens. Knows nothing about verl.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.collectives import all_reduce
from verl_cov.core.covariance import on_cpu, parts
from verl_cov.core.identity import mix

DIGIT_BITS = 11
BINS = 1 << DIGIT_BITS
VALUE_BITS = 33  # float32 keys have 32 bits; three digits
TICKET_BITS = 55  # five digits; two of 1e7 candidates meet at the cut once in 1e9 draws
EXCLUDED = -1


def first_histogram(cov: Float32[Tensor, " slots"], group: ProcessGroup | None) -> Int64[Tensor, " bins"]:
    """Counts the tokens of all ranks by the first digit of their key. NaN marks a slot without a token."""
    histogram = torch.zeros(BINS, dtype=torch.int64, device=cov.device)
    for part in parts(cov):
        digits = to_keys(cov[part]) >> (VALUE_BITS - DIGIT_BITS)
        histogram.scatter_add_(0, digits, torch.ones_like(digits))
    histogram[_NAN_BIN] = 0
    return all_reduce(histogram, group)


def nth_largest(
    cov: Float32[Tensor, " slots"],
    first: Int64[Tensor, " bins"],
    wanted: Int64[Tensor, ""],
    group: ProcessGroup | None,
) -> tuple[Float32[Tensor, ""], Int64[Tensor, ""], Int64[Tensor, ""]]:
    """Returns the ``wanted``-th largest covariance, how many equal to it are wanted, and how many there are.

    first: :func:`first_histogram` of ``cov``.
    """
    digit, wanted, _ = _find_bin(first, wanted)
    shift = VALUE_BITS - DIGIT_BITS
    inside = (cov >= from_keys(digit << shift)) & (cov <= from_keys(((digit + 1) << shift) - 1))
    keys = to_keys(cov[inside]) if on_cpu(cov) else torch.where(inside, to_keys(cov), EXCLUDED)
    key, wanted, equal = _descend(keys, wanted, shift, group, prefix=digit)
    return from_keys(key), wanted, equal


def several_nth_largest(
    cov: Float32[Tensor, " slots"],
    first: Int64[Tensor, " bins"],
    wanted: Int64[Tensor, " several"],
    group: ProcessGroup | None,
) -> Float32[Tensor, " several"]:
    """Returns the n-th largest covariance for each n in ``wanted``, in the same number of passes as for one n."""
    prefix, left, _ = _find_bin(first.expand(wanted.numel(), -1), wanted)
    for shift in range(VALUE_BITS - 2 * DIGIT_BITS, -1, -DIGIT_BITS):
        histogram = torch.zeros(wanted.numel(), BINS, dtype=torch.int64, device=cov.device)
        for part in parts(cov):
            keys = to_keys(cov[part])
            inside = (keys >> (shift + DIGIT_BITS)) == prefix[:, None]
            if on_cpu(cov):
                keys = keys.expand_as(inside)[inside]
                rows = inside.nonzero()[:, 0]
                histogram.view(-1).index_add_(0, rows * BINS + ((keys >> shift) & (BINS - 1)), torch.ones_like(keys))
            else:
                digits = ((keys >> shift) & (BINS - 1)).expand_as(inside)
                histogram.scatter_add_(1, digits, inside.long())
        digit, left, _ = _find_bin(all_reduce(histogram, group), left)
        prefix = (prefix << DIGIT_BITS) | digit
    return from_keys(prefix)


def draw(
    candidates: Bool[Tensor, " slots"],
    wanted: Int64[Tensor, ""],
    identity: Callable[[Tensor], Tensor],
    seed: int,
    step: int,
    group: ProcessGroup | None,
) -> Bool[Tensor, " slots"]:
    """Draws ``wanted`` of the candidates uniformly without replacement; all of them if there are fewer.

    identity: gives the int64 identities (:mod:`verl_cov.core.identity`) of slots. It is called on every rank, so that
    it may use collectives.
    """
    at = marked_slots(candidates)
    tickets = mix(identity(at) ^ _draw_key(seed, step, at.device)) & ((1 << TICKET_BITS) - 1)
    mask = torch.zeros_like(candidates)
    mask[at] = select_largest(torch.where(candidates[at], tickets, EXCLUDED), wanted, TICKET_BITS, group)
    return mask


def select_largest(
    keys: Int64[Tensor, " slots"], wanted: Int64[Tensor, ""], bits: int, group: ProcessGroup | None = None
) -> Bool[Tensor, " slots"]:
    """Marks exactly the ``wanted`` largest of all ranks' keys; all of them if there are fewer.

    Args:
        keys: in [0, 2^bits); entries equal to :data:`EXCLUDED` are never marked.
        wanted: the same on every rank.
        bits: a multiple of 11.

    Returns:
        This rank's share. Equal keys (a collision of 55-bit hashes) are taken from the lowest rank first.

    Raises:
        ValueError: ``bits`` is not a multiple of 11.
    """
    if bits % DIGIT_BITS:
        raise ValueError(f"bits={bits} must be a multiple of {DIGIT_BITS}")
    threshold, left, _ = _descend(keys, wanted, bits, group)
    ties = keys == threshold
    before = ties.cumsum(0)
    if group is not None:
        counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=keys.device)
        rank = dist.get_rank(group)
        counts[rank] = ties.sum()
        before += all_reduce(counts, group)[:rank].sum()
    return (keys > threshold) | (ties & (before <= left))


def marked_slots(mask: Bool[Tensor, " slots"]) -> Int64[Tensor, " marked"]:
    """Returns slot numbers that cover all marked slots.

    Exactly those on a CPU; every slot on an accelerator, where finding them would mean waiting for the device.
    """
    return mask.nonzero().squeeze(1) if on_cpu(mask) else torch.arange(mask.numel(), device=mask.device)


def to_keys(x: Float32[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Maps float32 to int64 in [0, 2^32) so that integer order is numeric order. -0.0 counts as 0.0."""
    bits = (x + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & _MASK_31)).long() + (1 << 31)


def from_keys(key: Int64[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Maps a key back to its float32: the inverse of :func:`to_keys`."""
    bits = (key - (1 << 31)).to(torch.int32)
    return (bits ^ ((bits >> 31) & _MASK_31)).view(torch.float32)


_MASK_31 = (1 << 31) - 1
_NAN_BIN = (BINS >> 1) - 1  # first digit of the key of torch.nan; infinity is one below


def _descend(
    keys: Tensor, wanted: Tensor, bits: int, group: ProcessGroup | None, prefix: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the wanted-th largest key of all ranks, how many keys equal to it are wanted, and how many there are.

    ``bits`` of the keys are still unknown; ``prefix`` is what is known above them.
    """
    prefix = torch.zeros_like(wanted) if prefix is None else prefix
    equal = wanted
    for shift in range(bits - DIGIT_BITS, -1, -DIGIT_BITS):
        inside = (keys >> (shift + DIGIT_BITS)) == prefix  # EXCLUDED has no prefix
        if on_cpu(keys):
            keys = keys[inside]
            inside = torch.ones_like(keys)
        digits = (keys >> shift) & (BINS - 1)
        histogram = torch.zeros(BINS, dtype=torch.int64, device=keys.device)
        histogram = all_reduce(histogram.scatter_add_(0, digits, inside.to(torch.int64)), group)
        digit, wanted, equal = _find_bin(histogram, wanted)
        prefix = (prefix << DIGIT_BITS) | digit
    return prefix, wanted, equal


def _find_bin(
    histogram: Int64[Tensor, "*several bins"], wanted: Int64[Tensor, "*several"]
) -> tuple[Int64[Tensor, "*several"], Int64[Tensor, "*several"], Int64[Tensor, "*several"]]:
    """Returns the bin of the wanted-th largest, how many of that bin are wanted, and how many it holds.

    If there are fewer than ``wanted``, all are.
    """
    or_higher = histogram.flip(-1).cumsum(-1).flip(-1)
    wanted = torch.minimum(wanted, or_higher[..., 0])
    digit = (or_higher >= wanted[..., None]).sum(-1) - 1
    # Not histogram[digit]: torch reads a scalar index back from the device.
    in_bin, in_bin_or_higher = (table.gather(-1, digit[..., None])[..., 0] for table in (histogram, or_higher))
    return digit, wanted - (in_bin_or_higher - in_bin), in_bin


def _draw_key(seed: int, step: int, device: torch.device) -> Int64[Tensor, " 1"]:
    seeds, steps = (torch.full((1,), number, dtype=torch.int64, device=device) for number in (seed, step))
    return mix(mix(seeds) + steps)
