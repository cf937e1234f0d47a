"""Which tokens of an optimizer mini-batch a control acts on: exactly, and the same ones for every layout of the batch.

The mini-batch is spread over data-parallel ranks and cut into micro-batches. The functions here see one rank's response
slots as flat tensors and talk to the other ranks through ``group``: every rank must call them, also one without tokens.

The n-th largest of numbers that lie on many ranks is found digit by digit (radix-select): each pass counts how many
candidates have each value of the next 11 bits of an order-preserving integer key, adds the counts of all ranks up, and
keeps the candidates of one bin. Covariances take three passes. Equal covariances are cut, and Clip-Cov's draw is made,
by five passes over a hash of (seed, step, token identity). So 131 kB a rank at most go into collectives, whatever the
number of tokens, of selected ones or of ranks.

On an accelerator nothing here waits for the device (no ``.item()``, ``nonzero`` or boolean indexing); on a CPU, where
looking costs nothing, candidates are compacted after each pass and passes without work are skipped.

Knows nothing about verl.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.collectives import all_reduce
from verl_cov.core.covariance import Covariances, on_host, parts
from verl_cov.core.identity import mix


@dataclass(frozen=True)
class Control:
    """What to select.

    Args:
        ratio: share of the mini-batch's valid tokens (r or k of the paper), a fraction in (0, 1].
        band: None to take the largest covariances (KL-Cov); (low, high) to draw uniformly, without replacement, from
            the tokens with low < covariance < high (Clip-Cov).
        seed: any integer of 64 bits.
        step: counter of optimizer steps, the same on every rank; another step is another draw.
    """

    ratio: float
    band: tuple[float, float] | None = None
    seed: int = 0
    step: int = 0


class Totals(NamedTuple):
    """Numbers of the whole mini-batch, equal on every rank. The kinds are those of ``UPDATE_KINDS``."""

    tokens: int  # finite valid tokens, N of the paper
    non_finite: int  # valid tokens left out because log-prob or advantage is not finite
    covariance_sum: float  # nats times advantage, over N
    covariance_square_sum: float
    kind_tokens: tuple[int, ...]  # 0, like the next, unless the covariances were made with update_kinds=True
    kind_covariance_sums: tuple[float, ...]
    candidates: int = 0  # tokens that the control could choose from
    selected: int = 0  # tokens chosen
    negative: int = 0  # tokens chosen that have a negative advantage
    tied: int = 0  # tokens with the smallest chosen covariance, if some of them had to be left out; else 0
    selected_covariance_sum: float = 0.0
    threshold: float = 0.0  # the smallest chosen covariance, where the largest are chosen (0 if there is none)


NUMBERS = 18  # of Totals, one by one


@dataclass(frozen=True)
class Selected:
    """The result of :func:`select_tokens` on one rank.

    ``mask`` ([slots] bool) and ``covariance`` ([slots] float32, NaN where the slot holds no finite token) are this
    rank's; ``numbers`` ([18] float64) are :class:`Totals` that are still on the device.
    """

    mask: Tensor
    covariance: Tensor
    numbers: Tensor

    @functools.cached_property
    def totals(self) -> Totals:
        """The numbers on the host. On an accelerator the first access waits for it."""
        return totals_of(self.numbers.tolist())


def totals_of(values: list[float]) -> Totals:
    """Name the numbers of :func:`count` (the first 12) or of :class:`Selected` (18, several added up, too: then without
    a meaning for the threshold)."""
    *counts, covariance_sum, covariance_square_sum = values[:4]
    tokens, non_finite = map(int, counts)
    kinds, sums, chosen, rest = tuple(map(int, values[4:8])), tuple(values[8:12]), map(int, values[12:16]), values[16:]
    return Totals(tokens, non_finite, covariance_sum, covariance_square_sum, kinds, sums, *chosen, *rest)


def count(covariances: Covariances, group: ProcessGroup | None = None) -> Tensor:
    """[12] float64, the numbers of :class:`Totals` without those of a selection."""
    return torch.cat([_everyone(covariances), all_reduce(covariances.moments.clone(), group)])


def _everyone(covariances: Covariances) -> Tensor:
    return torch.stack([covariances.tokens, covariances.non_finite]).double()


def select_tokens(
    log_prob: Tensor,
    advantage: Tensor,
    valid: Tensor,
    identity: Callable[[Tensor], Tensor],
    control: Control,
    group: ProcessGroup | None = None,
    barred: Tensor | None = None,
) -> Selected:
    """Choose the tokens of the mini-batch that ``control`` asks for.

    Args:
        log_prob: [slots] log-probabilities in nats, any float dtype (computed with in float32).
        advantage: [slots].
        valid: [slots] bool, the slots that hold a response token.
        identity: gives the [n] int64 identities (:mod:`verl_cov.core.identity`) of the [n] slots it is asked for.
            Called on every rank or on none, so that it may talk to the other ranks.
        control: what to choose.
        group: data-parallel process group; None for a single rank.
        barred: [slots] bool, tokens that count in N and in the means but may not be chosen.

    Tokens whose log-probability or advantage is not finite take no part: they are not counted in N, not in the means.
    """
    return select(Covariances.compute(log_prob, advantage, valid, group), advantage, identity, control, group, barred)


def select(
    covariances: Covariances,
    advantage: Tensor,
    identity: Callable[[Tensor], Tensor],
    control: Control,
    group: ProcessGroup | None = None,
    barred: Tensor | None = None,
) -> Selected:
    """:func:`select_tokens` by covariances that have been computed."""
    cov = covariances.values
    wanted = quota(control.ratio, covariances.tokens)
    choosable = cov if barred is None else torch.where(barred, torch.nan, cov)
    if control.band is None:
        mask, candidates, tied, threshold = _take_largest(choosable, wanted, identity, control, group)
    else:
        inside = (choosable > control.band[0]) & (choosable < control.band[1])
        mask = _draw(inside, wanted, identity, control, group)
        candidates = all_reduce(inside.sum(), group)
        tied = torch.zeros_like(candidates)
        threshold = torch.zeros_like(wanted)

    # What depends on the selection, from the few selected slots where looking for them is free.
    at = _slots_of(mask)
    chosen = mask[at]
    selected_cov = torch.where(chosen, cov[at], 0.0).double().sum()
    negative = (chosen & (advantage[at] < 0)).sum().double()
    local = torch.stack([chosen.sum().double(), negative, selected_cov])
    sums = all_reduce(torch.cat([covariances.moments, local]), group)
    moments, selected = sums[:-3], sums[-3:]
    everyone = torch.stack([tied.double(), selected[2], threshold.double().nan_to_num()])
    return Selected(
        mask,
        cov,
        torch.cat([_everyone(covariances), moments, candidates.double().reshape(1), selected[:2], everyone]),
    )


def quota(ratio: float, tokens: Tensor) -> Tensor:
    """floor(ratio * tokens), at least 1 (paper Eq. 11 and 13; the floor of 1 is the released code's). Int64 scalar.

    Computed on the decimal the user wrote, to nine digits: in binary, 0.29 * 100 is 28.999999999999996.
    """
    top, bottom = _fraction(ratio)
    if on_host(tokens):
        there = int(tokens)
        return torch.tensor(min(max(there * top // bottom, 1), there))
    # tokens * top may not fit into int64.
    whole = tokens // bottom * top + tokens % bottom * top // bottom
    return torch.minimum(whole.clamp(min=1), tokens)


@functools.cache
def _fraction(ratio: float) -> tuple[int, int]:
    exact = Fraction(repr(float(ratio))).limit_denominator(10**9)
    return exact.numerator, exact.denominator


def largest_values(cov: Tensor, shares: tuple[float, ...], group: ProcessGroup | None = None) -> Tensor:
    """Where the largest tokens begin: for each share s the n-th largest covariance, n = :func:`quota` of s.

    Args:
        cov: [slots] float32, NaN where the slot holds no token.
        shares: fractions in (0, 1].

    Returns:
        [shares] float32, equal on every rank; NaN if there is no token.
    """
    return _cuts(cov, shares, group)[0]


def largest_means(cov: Tensor, shares: tuple[float, ...], group: ProcessGroup | None = None) -> Tensor:
    """Mean of the n largest covariances for each share, n = :func:`quota` of it (paper Table 1).

    Arguments as in :func:`largest_values`. Returns [shares] float64, equal on every rank; NaN if there is no token.
    """
    cuts, wanted = _cuts(cov, shares, group)
    larger = torch.zeros(2, len(shares), dtype=torch.float64, device=cov.device)
    for part in parts(cov):
        above = cov[part] > cuts[:, None]
        larger[0] += above.sum(1)
        larger[1] += torch.where(above, cov[part], 0.0).sum(1, dtype=torch.float64)
    larger = all_reduce(larger, group)
    # Tokens that share the covariance at the cut are alike: as many of them count as are wanted.
    return (larger[1] + (wanted - larger[0]) * cuts.double()) / wanted


def _cuts(cov: Tensor, shares: tuple[float, ...], group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """([shares] float32 smallest of the n largest, [shares] int64 n): :func:`_nth_largest` for all shares in one go."""
    first = _first_histogram(cov, group)
    tokens = first.sum()
    wanted = torch.stack([quota(share, tokens) for share in shares])
    prefix, left, _ = _find(first.expand(len(shares), -1), wanted)
    for shift in range(VALUE_BITS - 2 * DIGIT_BITS, -1, -DIGIT_BITS):
        histogram = torch.zeros(len(shares), BINS, dtype=torch.int64, device=cov.device)
        for part in parts(cov):
            keys = _keys(cov[part])
            inside = (keys >> (shift + DIGIT_BITS)) == prefix[:, None]
            if on_host(cov):
                keys = keys.expand_as(inside)[inside]
                rows = inside.nonzero()[:, 0]
                histogram.view(-1).index_add_(0, rows * BINS + ((keys >> shift) & (BINS - 1)), torch.ones_like(keys))
            else:
                digits = ((keys >> shift) & (BINS - 1)).expand_as(inside)
                histogram.scatter_add_(1, digits, inside.long())
        digit, left, _ = _find(all_reduce(histogram, group), left)
        prefix = (prefix << DIGIT_BITS) | digit
    return _value(prefix), wanted


# --- choosing ---------------------------------------------------------------------------------------------------------


def _take_largest(
    cov: Tensor,
    wanted: Tensor,
    identity: Callable[[Tensor], Tensor],
    control: Control,
    group: ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mask of the ``wanted`` largest of ``cov`` ([slots], NaN: never), how many there were to choose from, how many
    tied, and the smallest taken."""
    first = _first_histogram(cov, group)
    candidates = first.sum()
    threshold, left, equal = _nth_largest(cov, first, torch.minimum(wanted, candidates), group)
    if on_host(cov) and left == equal:  # usual: no two tokens share the threshold, so nothing is to be drawn
        return cov >= threshold, candidates, torch.zeros_like(candidates), threshold
    tied = torch.where(left == equal, 0, equal)
    mask = (cov > threshold) | _draw(cov == threshold, left, identity, control, group)
    return mask, candidates, tied, threshold


def _draw(
    candidates: Tensor,
    wanted: Tensor,
    identity: Callable[[Tensor], Tensor],
    control: Control,
    group: ProcessGroup | None,
) -> Tensor:
    """Mask of ``wanted`` of the ``candidates`` ([slots] bool), drawn uniformly without replacement (all, if fewer)."""
    at = _slots_of(candidates)
    tickets = mix(identity(at) ^ _seed_key(control, at.device)) & ((1 << TICKET_BITS) - 1)
    mask = torch.zeros_like(candidates)
    mask[at] = select_largest(torch.where(candidates[at], tickets, EXCLUDED), wanted, TICKET_BITS, group)
    return mask


def select_largest(keys: Tensor, wanted: Tensor, bits: int, group: ProcessGroup | None = None) -> Tensor:
    """Mark the ``wanted`` largest of all ranks' ``keys``, exactly that many (all, if there are fewer).

    Args:
        keys: [slots] int64 in [0, 2^bits); entries equal to :data:`EXCLUDED` are never marked.
        wanted: int64 scalar, the same on every rank.
        bits: a multiple of 11.

    Returns:
        [slots] bool, this rank's share. Equal keys (a collision of 55-bit hashes) are taken from the lowest rank first.
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


# --- radix-select -----------------------------------------------------------------------------------------------------

DIGIT_BITS = 11
BINS = 1 << DIGIT_BITS
VALUE_BITS = 33  # float32 keys have 32 bits; three digits
TICKET_BITS = 55  # five digits; two of 1e7 candidates meet at the cut once in 1e9 draws
EXCLUDED = -1


def _descend(
    keys: Tensor, wanted: Tensor, bits: int, group: ProcessGroup | None, prefix: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The wanted-th largest key of all ranks, how many keys equal to it are wanted, and how many there are.

    ``bits`` of the keys are still unknown; ``prefix`` is what is known above them.
    """
    prefix = torch.zeros_like(wanted) if prefix is None else prefix
    equal = wanted
    for shift in range(bits - DIGIT_BITS, -1, -DIGIT_BITS):
        inside = (keys >> (shift + DIGIT_BITS)) == prefix  # EXCLUDED has no prefix
        if on_host(keys):
            keys = keys[inside]
            inside = torch.ones_like(keys)
        digits = (keys >> shift) & (BINS - 1)
        histogram = torch.zeros(BINS, dtype=torch.int64, device=keys.device)
        histogram = all_reduce(histogram.scatter_add_(0, digits, inside.to(torch.int64)), group)
        digit, wanted, equal = _find(histogram, wanted)
        prefix = (prefix << DIGIT_BITS) | digit
    return prefix, wanted, equal


def _find(histogram: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The bin of the wanted-th largest, how many of that bin are wanted, and how many it holds (all, if too few).

    ``histogram`` is [BINS] with a scalar ``wanted``, or [several, BINS] with [several].
    """
    or_higher = histogram.flip(-1).cumsum(-1).flip(-1)
    wanted = torch.minimum(wanted, or_higher[..., 0])
    digit = (or_higher >= wanted[..., None]).sum(-1) - 1
    # Not histogram[digit]: torch reads a scalar index back from the device.
    here, reached = (table.gather(-1, digit[..., None])[..., 0] for table in (histogram, or_higher))
    return digit, wanted - (reached - here), here


def _first_histogram(cov: Tensor, group: ProcessGroup | None) -> Tensor:
    """[BINS] int64: how many tokens of all ranks have each first digit of :func:`_keys`."""
    histogram = torch.zeros(BINS, dtype=torch.int64, device=cov.device)
    for part in parts(cov):
        digits = _keys(cov[part]) >> (VALUE_BITS - DIGIT_BITS)
        histogram.scatter_add_(0, digits, torch.ones_like(digits))
    histogram[_NAN_BIN] = 0
    return all_reduce(histogram, group)


def _nth_largest(
    cov: Tensor, first: Tensor, wanted: Tensor, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The wanted-th largest of ``cov`` ([slots] float32), how many equal to it are wanted, and how many there are."""
    digit, wanted, _ = _find(first, wanted)
    shift = VALUE_BITS - DIGIT_BITS
    inside = (cov >= _value(digit << shift)) & (cov <= _value(((digit + 1) << shift) - 1))
    keys = _keys(cov[inside]) if on_host(cov) else torch.where(inside, _keys(cov), EXCLUDED)
    key, wanted, equal = _descend(keys, wanted, shift, group, prefix=digit)
    return _value(key), wanted, equal


_MASK_31 = (1 << 31) - 1
_NAN_BIN = (BINS >> 1) - 1  # first digit of the key of torch.nan; infinity is one below


def _keys(x: Tensor) -> Tensor:
    """Map float32 to int64 in [0, 2^32) so that integer order is numeric order. -0.0 counts as 0.0."""
    bits = (x + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & _MASK_31)).long() + (1 << 31)


def _value(key: Tensor) -> Tensor:
    """The inverse of :func:`_keys`."""
    bits = (key - (1 << 31)).to(torch.int32)
    return (bits ^ ((bits >> 31) & _MASK_31)).view(torch.float32)


# --- host or device ---------------------------------------------------------------------------------------------------


def _slots_of(marked: Tensor) -> Tensor:
    """[n] int64 slots that include all marked ones: just those on a CPU, every slot where finding them would wait."""
    return marked.nonzero().squeeze(1) if on_host(marked) else torch.arange(marked.numel(), device=marked.device)


def _seed_key(control: Control, device: torch.device) -> Tensor:
    seed, step = (torch.full((1,), number, dtype=torch.int64, device=device) for number in (control.seed, control.step))
    return mix(mix(seed) + step)
