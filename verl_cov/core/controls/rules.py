"""Rules over all tokens of a mini-batch, on whatever ranks: exact, and the same for every batch layout.

Each takes a score of this rank's slots and the tokens to look ``among``; the answer is that over all ranks. Every rank
must call them, also a rank without tokens. A score that is not finite takes no part. The n largest are found by
:mod:`verl_cov.core.radix`; sums are made of integers, so that their order does not matter. On an accelerator nothing
here waits for the device. Knows nothing about verl.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from verl_cov.core.collectives import all_reduce, largest_of_ranks
from verl_cov.core.controls.tokens import Tokens
from verl_cov.core.radix import draw, first_histogram, nth_largest
from verl_cov.core.selection import quota, take_largest

# Sums are in units of 2^-36 of the largest magnitude, so that 2^26 tokens, and not one bit fewer, fit into int64.
_SUM_BITS = 36


def count(among: Bool[Tensor, " slots"], tokens: Tokens) -> Int64[Tensor, ""]:
    """Counts the tokens of all ranks."""
    return all_reduce(among.sum(), tokens.group)


def largest(
    score: Float[Tensor, " slots"], among: Bool[Tensor, " slots"], share: float, tokens: Tokens, up: bool = False
) -> Bool[Tensor, " slots"]:
    """Marks the n tokens with the largest score, n = floor(share of them), at least 1; ties are cut by the hash.

    up: n is rounded up instead.
    """
    values = _only(score.float(), among)
    wanted = quota(share, count(values == values, tokens), up)
    return take_largest(values, wanted, tokens.identity, tokens.seed, tokens.step, tokens.group)[0]


def smallest(
    score: Float[Tensor, " slots"], among: Bool[Tensor, " slots"], share: float, tokens: Tokens, up: bool = False
) -> Bool[Tensor, " slots"]:
    """Marks the n tokens with the smallest score, as :func:`largest` marks the largest."""
    return largest(-score, among, share, tokens, up)


def band(
    score: Float[Tensor, " slots"], among: Bool[Tensor, " slots"], low: float, high: float, share: float, tokens: Tokens
) -> Bool[Tensor, " slots"]:
    """Draws n tokens uniformly from those with low < score < high; n = floor(share of all), at least 1."""
    values = _only(score.float(), among)
    wanted = quota(share, count(values == values, tokens))
    return draw((values > low) & (values < high), wanted, tokens.identity, tokens.seed, tokens.step, tokens.group)


def upper_quantile(
    score: Float[Tensor, " slots"], among: Bool[Tensor, " slots"], share: float, tokens: Tokens, beyond: int = 0
) -> Float32[Tensor, ""]:
    """Returns the n-th largest score, n = floor(share of the tokens), at least 1; NaN if there is no token.

    beyond: that many places further down, or the smallest score.
    """
    values = _only(score.float(), among)
    first = first_histogram(values, tokens.group)
    wanted = torch.minimum(quota(share, first.sum()) + beyond, first.sum())
    value = nth_largest(values, first, wanted, tokens.group)[0]
    return torch.where(wanted > 0, value, torch.nan)


def maximum(score: Float[Tensor, " slots"], among: Bool[Tensor, " slots"], tokens: Tokens) -> Float[Tensor, ""]:
    """Returns the largest score; -infinity if there is no token."""
    values = _only(score, among).nan_to_num(-torch.inf)
    return largest_of_ranks(torch.cat([values, values.new_full((1,), -torch.inf)]).max(), tokens.group)


def minimum(score: Float[Tensor, " slots"], among: Bool[Tensor, " slots"], tokens: Tokens) -> Float[Tensor, ""]:
    """Returns the smallest score; infinity if there is no token."""
    return -maximum(-score, among, tokens)


def mean(score: Float[Tensor, " slots"], among: Bool[Tensor, " slots"], tokens: Tokens) -> Float64[Tensor, ""]:
    """Returns the mean score, to 2^-36 of the largest magnitude and the same to the bit in every layout; 0 of none."""
    values = _only(score.double(), among)
    number = count(values == values, tokens).clamp(min=1)
    size = largest_of_ranks(torch.cat([values.abs().nan_to_num(0.0), values.new_zeros(1)]).max(), tokens.group)
    unit = torch.ldexp(torch.ones_like(size), torch.frexp(size)[1] - _SUM_BITS)
    in_units = (values / unit).round().nan_to_num(0.0).to(torch.int64).sum()
    return all_reduce(in_units, tokens.group).double() * unit / number


def standard_deviation(
    score: Float[Tensor, " slots"], among: Bool[Tensor, " slots"], tokens: Tokens
) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
    """Returns the mean score and its population standard deviation."""
    centre = mean(score, among, tokens)
    return centre, mean((score.double() - centre).square(), among, tokens).sqrt()


def z_score(score: Float[Tensor, " slots"], among: Bool[Tensor, " slots"], tokens: Tokens) -> Float64[Tensor, " slots"]:
    """Returns each slot's distance from the mean in standard deviations; 0 where all scores are equal."""
    centre, deviation = standard_deviation(score, among, tokens)
    return torch.where(deviation > 0, (score.double() - centre) / deviation, 0.0)


def _only(score: Float[Tensor, " slots"], among: Bool[Tensor, " slots"]) -> Float[Tensor, " slots"]:
    """Makes NaN of what takes no part."""
    return torch.where(among & score.isfinite(), score, torch.nan)
