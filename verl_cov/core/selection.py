"""Selects the tokens of an optimizer mini-batch that a control acts on: exactly, and the same for every batch layout.

The mini-batch is spread over data-parallel ranks and cut into micro-batches. The functions here see one rank's response
slots as flat tensors and use collectives over ``group``: every rank must call them, also a rank without tokens.
:mod:`.radix` finds the largest covariances over all ranks and makes the draws.

On an accelerator nothing here waits for the device, until :attr:`Selected.totals` is read. Knows nothing about verl.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.collectives import all_reduce
from verl_cov.core.covariance import Covariances, on_cpu, parts
from verl_cov.core.radix import draw, first_histogram, marked_slots, nth_largest, several_nth_largest


@dataclass(frozen=True)
class Control:
    """How many tokens a control selects, and by which rule.

    Args:
        ratio: share of the mini-batch's valid tokens (r or k in the paper), a fraction in (0, 1].
        band: None to take the largest covariances (KL-Cov); (low, high) to draw uniformly, without replacement, from
            the tokens with low < covariance < high (Clip-Cov).
        seed: any 64-bit integer.
        step: counter of optimizer steps, the same on every rank; each step draws anew.
    """

    ratio: float
    band: tuple[float, float] | None = None
    seed: int = 0
    step: int = 0


class Totals(NamedTuple):
    """Numbers of the whole mini-batch, equal on every rank, as plain Python numbers.

    ``kind_tokens`` and ``kind_covariance_sums`` are in the order of :data:`~verl_cov.core.update_kinds.UPDATE_KINDS`.
    """

    tokens: int  # finite valid tokens, N in the paper
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


NUMBERS = 18  # numbers in Totals, those of its tuples counted one by one


@dataclass(frozen=True)
class Selected:
    """The result of :func:`select_tokens` on one rank.

    Args:
        mask: this rank's selected tokens.
        covariance: this rank's, NaN where the slot holds no finite token.
        numbers: :class:`Totals`, still on the device.
    """

    mask: Bool[Tensor, " slots"]
    covariance: Float32[Tensor, " slots"]
    numbers: Float64[Tensor, " 18"]

    @functools.cached_property
    def totals(self) -> Totals:
        """The numbers on the host. On an accelerator the first access waits for the device."""
        return totals_of(self.numbers.tolist())


def totals_of(values: list[float]) -> Totals:
    """Names the numbers of :func:`count` (12) or :class:`Selected` (18).

    Sums of several selections are accepted too; their ``threshold`` then means nothing.
    """
    *counts, covariance_sum, covariance_square_sum = values[:4]
    tokens, non_finite = map(int, counts)
    kinds, sums, chosen, rest = tuple(map(int, values[4:8])), tuple(values[8:12]), map(int, values[12:16]), values[16:]
    return Totals(tokens, non_finite, covariance_sum, covariance_square_sum, kinds, sums, *chosen, *rest)


def count(covariances: Covariances, group: ProcessGroup | None = None) -> Float64[Tensor, " 12"]:
    """Adds up over all ranks the numbers of :class:`Totals` that need no selection."""
    return torch.cat([_token_counts(covariances), all_reduce(covariances.moments.clone(), group)])


def _token_counts(covariances: Covariances) -> Float64[Tensor, " 2"]:
    return torch.stack([covariances.tokens, covariances.non_finite]).double()


def select_tokens(
    log_prob: Float[Tensor, " slots"],
    advantage: Float[Tensor, " slots"],
    valid: Bool[Tensor, " slots"],
    identity: Callable[[Tensor], Tensor],
    control: Control,
    group: ProcessGroup | None = None,
    barred: Bool[Tensor, " slots"] | None = None,
) -> Selected:
    """Selects the tokens of the mini-batch that a control acts on (paper Eq. 11 and 13).

    Args:
        log_prob: log-probs in nats; computed with in float32.
        valid: the slots that hold a response token.
        identity: gives the int64 identities (:mod:`verl_cov.core.identity`) of [n] slots. It is called on every rank
            or on none, so that it may use collectives.
        control: how many tokens, and by which rule.
        group: data-parallel process group; None for a single rank.
        barred: tokens that count in N and in the means but must not be selected.

    Tokens whose log-prob or advantage is not finite are left out of N, of the means and of the selection.
    """
    return select(Covariances.compute(log_prob, advantage, valid, group), advantage, identity, control, group, barred)


def select(
    covariances: Covariances,
    advantage: Float[Tensor, " slots"],
    identity: Callable[[Tensor], Tensor],
    control: Control,
    group: ProcessGroup | None = None,
    barred: Bool[Tensor, " slots"] | None = None,
) -> Selected:
    """Selects as :func:`select_tokens` does, by covariances that have been computed before."""
    cov = covariances.values
    wanted = quota(control.ratio, covariances.tokens)
    choosable = cov if barred is None else torch.where(barred, torch.nan, cov)
    if control.band is None:
        mask, candidates, tied, threshold = take_largest(choosable, wanted, identity, control.seed, control.step, group)
    else:
        inside = (choosable > control.band[0]) & (choosable < control.band[1])
        mask = draw(inside, wanted, identity, control.seed, control.step, group)
        candidates = all_reduce(inside.sum(), group)
        tied = torch.zeros_like(candidates)
        threshold = torch.zeros_like(wanted)

    # Measured on the selected slots only, where finding them does not wait for a device.
    at = marked_slots(mask)
    chosen = mask[at]
    selected_cov = torch.where(chosen, cov[at], 0.0).double().sum()
    negative = (chosen & (advantage[at] < 0)).sum().double()
    local = torch.stack([chosen.sum().double(), negative, selected_cov])
    sums = all_reduce(torch.cat([covariances.moments, local]), group)
    moments, selected = sums[:-3], sums[-3:]
    cut = torch.stack([tied.double(), selected[2], threshold.double().nan_to_num()])
    numbers = torch.cat([_token_counts(covariances), moments, candidates.double().reshape(1), selected[:2], cut])
    return Selected(mask, cov, numbers)


def take_largest(
    cov: Float32[Tensor, " slots"],
    wanted: Int64[Tensor, ""],
    identity: Callable[[Tensor], Tensor],
    seed: int,
    step: int,
    group: ProcessGroup | None,
) -> tuple[Bool[Tensor, " slots"], Int64[Tensor, ""], Int64[Tensor, ""], Float32[Tensor, ""]]:
    """Returns the mask of the ``wanted`` largest, the number of candidates, how many tied, and the smallest taken.

    A slot whose covariance is NaN is no candidate.
    """
    first = first_histogram(cov, group)
    candidates = first.sum()
    threshold, left, equal = nth_largest(cov, first, torch.minimum(wanted, candidates), group)
    if on_cpu(cov) and left == equal:  # usual: no two tokens share the threshold, so nothing is to be drawn
        return cov >= threshold, candidates, torch.zeros_like(candidates), threshold
    tied = torch.where(left == equal, 0, equal)
    mask = (cov > threshold) | draw(cov == threshold, left, identity, seed, step, group)
    return mask, candidates, tied, threshold


def quota(ratio: float, tokens: Int64[Tensor, ""], up: bool = False) -> Int64[Tensor, ""]:
    """How many tokens to select: floor(ratio * tokens), at least 1, and never more than there are.

    up: the ceiling in place of the floor.

    Paper Eq. 11 and 13; the floor of 1 is the released code's. Computed on the decimal the user wrote, to nine digits:
    in binary, 0.29 * 100 is 28.999999999999996.
    """
    top, bottom = _fraction(ratio)
    more = bottom - 1 if up else 0
    if on_cpu(tokens):
        number = int(tokens)
        return torch.tensor(min(max((number * top + more) // bottom, 1), number))
    # tokens * top may not fit into int64.
    whole = tokens // bottom * top + (tokens % bottom * top + more) // bottom
    return torch.minimum(whole.clamp(min=1), tokens)


@functools.cache
def _fraction(ratio: float) -> tuple[int, int]:
    exact = Fraction(repr(float(ratio))).limit_denominator(10**9)
    return exact.numerator, exact.denominator


def largest_values(
    cov: Float32[Tensor, " slots"], shares: tuple[float, ...], group: ProcessGroup | None = None
) -> Float32[Tensor, " shares"]:
    """Returns, for each share, the n-th largest covariance, n being the :func:`quota` of the share.

    Args:
        cov: NaN where the slot holds no token.
        shares: fractions in (0, 1].

    Returns:
        Equal on every rank; NaN if there is no token.
    """
    return _cuts(cov, shares, group)[0]


def largest_means(
    cov: Float32[Tensor, " slots"], shares: tuple[float, ...], group: ProcessGroup | None = None
) -> Float64[Tensor, " shares"]:
    """Returns for each share the mean of the n largest covariances, n = :func:`quota` of the share (paper Table 1).

    Arguments as in :func:`largest_values`. Equal on every rank; NaN if there is no token.
    """
    cuts, wanted = _cuts(cov, shares, group)
    larger = torch.zeros(2, len(shares), dtype=torch.float64, device=cov.device)
    for part in parts(cov):
        above = cov[part] > cuts[:, None]
        larger[0] += above.sum(1)
        larger[1] += torch.where(above, cov[part], 0.0).sum(1, dtype=torch.float64)
    larger = all_reduce(larger, group)
    # Tokens tied at the cut are alike: as many of them count as are wanted.
    return (larger[1] + (wanted - larger[0]) * cuts.double()) / wanted


def _cuts(
    cov: Float32[Tensor, " slots"], shares: tuple[float, ...], group: ProcessGroup | None
) -> tuple[Float32[Tensor, " shares"], Int64[Tensor, " shares"]]:
    """Returns the smallest of the n largest covariances for each share, and n."""
    first = first_histogram(cov, group)
    tokens = first.sum()
    wanted = torch.stack([quota(share, tokens) for share in shares])
    return several_nth_largest(cov, first, wanted, group), wanted
