"""Estimates pass@k, the chance that at least one of k responses to a prompt is a success. Knows nothing about verl.

Source: Chen et al. 2021 (arXiv 2107.03374), Eq. 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

USUAL = (1, 4, 16, 64)


class NoSuccess(ValueError):
    """A reward function gave a value that is neither a success nor none."""


class NoThreshold(NoSuccess):
    """A reward function gave a number of which nobody said whether it is a success."""


def pass_at_k(samples: int, successes: int, k: int) -> float:
    """Estimates from n samples of a prompt, c of them successes, how often k samples have a success: without bias.

    1 - C(n-c, k) / C(n, k), in whole numbers and rounded once, so that it is exact to the last bit at any n.

    Raises:
        ValueError: not 0 <= c <= n, or not 1 <= k <= n. From fewer than k samples there is no unbiased estimate.
    """
    if not (0 <= successes <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} cannot be estimated from {samples} samples with {successes} successes")
    subsets = math.comb(samples, k)
    return (subsets - math.comb(samples - successes, k)) / subsets


def is_success(value: object, least: float | None = None) -> bool:
    """Tells whether a response that a reward function gave ``value`` is a success.

    least: the lowest value that is one. None: 1 is one and 0 is none.

    Raises:
        NoSuccess: not a finite number.
        NoThreshold: without ``least``, neither 0 nor 1, such as a share of passed tests.
    """
    try:
        if isinstance(value, (str, bytes)):  # verl takes text for no number either, not even digits
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise NoSuccess(f"{value!r} is no number") from None
    if not math.isfinite(number):
        raise NoSuccess(f"{number} is no finite number")
    if least is None and number not in (0.0, 1.0):
        raise NoThreshold(f"{number:g} is neither 0 nor 1")
    return number >= (1.0 if least is None else least)


def tally(
    prompts: Iterable[str],
    values: Iterable[object],
    least: float | None = None,
    expected: Mapping[str, int] | None = None,
) -> list[tuple[int, int]]:
    """Counts (samples, successes) of each prompt of a set, from one entry a response.

    Args:
        prompts: the prompt that each response answers.
        values: what the reward function gave it; None, where it gave nothing, is left out.
        least: as in :func:`is_success`.
        expected: {prompt: responses requested}. One that never came is no success, as verl counts it.

    Raises:
        NoSuccess: as :func:`is_success`.
        ValueError: there is not one value a response.
    """
    seen: dict[str, list[bool]] = defaultdict(list, {prompt: [] for prompt in expected or ()})
    for prompt, value in zip(prompts, values, strict=True):
        if value is not None:
            seen[prompt].append(is_success(value, least))
    counts = [(max(len(hits), (expected or {}).get(prompt, 0)), sum(hits)) for prompt, hits in seen.items()]
    return [(samples, hits) for samples, hits in counts if samples]


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float | None:
    """Averages pass@k over prompts, given as (samples, successes); None without prompts, or if one has fewer than k."""
    counts = list(counts)
    if not counts or min(samples for samples, _ in counts) < k:
        return None
    return math.fsum(pass_at_k(samples, hits, k) for samples, hits in counts) / len(counts)
