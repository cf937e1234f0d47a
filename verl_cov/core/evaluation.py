"""Averages a validation's accuracy over sets of different sizes, in the two usual ways.

The paper's Table 2 (arXiv 2505.22617) averages over generations: AIME 2024, AIME 2025 and AMC count 32 times a prompt,
the other sets once. The plain mean of its columns differs by up to 1.2 points. Knows nothing about verl.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Averages:
    """Accuracy over several sets, in [0, 1].

    Args:
        sample_weighted: mean over all generations of all sets (the paper's "Avg.").
        plain_mean: mean of the sets' means.
        generations: number of generations in all sets.
    """

    sample_weighted: float
    plain_mean: float
    generations: int


def averages(sets: Mapping[str, tuple[float, int]]) -> Averages | None:
    """Averages sets, given as {name: (sum of its generations' accuracies, their number)}; None if all are empty."""
    counted = {name: numbers for name, numbers in sets.items() if numbers[1] > 0}
    if not counted:
        return None
    generations = sum(count for _, count in counted.values())
    return Averages(
        sample_weighted=sum(total for total, _ in counted.values()) / generations,
        plain_mean=sum(total / count for total, count in counted.values()) / len(counted),
        generations=generations,
    )


def by_set(
    names: Iterable[str],
    prompts: Iterable[str],
    accuracies: Collection[object],
    expected: Mapping[tuple[str, str], int] | None = None,
) -> dict[str, tuple[float, int]]:
    """Sums accuracies by set, for :func:`averages`, from one entry per generation.

    Args:
        names, prompts: the set and the prompt that each generation belongs to.
        accuracies: None where the reward function returned none; empty if it never returned any. A set is left out if
            it has no accuracy, or if one of them is not a number (a reward function may return "yes" as ``acc``).
        expected: {(set, prompt): generations requested}. Missing generations count as wrong, as verl counts them.

    Raises:
        ValueError: there is not one accuracy a generation. verl's lists are of different lengths if a reward function
            returns a key ``reward``, and then nobody knows whose an accuracy is.
    """
    if not len(accuracies):
        return {}
    names = list(names)
    if len(accuracies) != len(names):
        raise ValueError(f"{len(accuracies)} accuracies for {len(names)} generations: whose is which is not known")
    totals: dict[str, float] = defaultdict(float)
    seen: dict[tuple[str, str], int] = defaultdict(int)
    no_numbers: set[str] = set()
    for name, prompt, accuracy in zip(names, prompts, accuracies, strict=True):
        if accuracy is None:
            continue
        try:
            if isinstance(accuracy, (str, bytes)):  # verl does not average text either, not even digits
                raise TypeError
            totals[str(name)] += float(accuracy)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            no_numbers.add(str(name))
        seen[str(name), str(prompt)] += 1
    counts: dict[str, int] = defaultdict(int)
    for name, prompt in {**dict(expected or {}), **seen}:
        counts[name] += max(seen.get((name, prompt), 0), (expected or {}).get((name, prompt), 0))
    return {name: (total, counts[name]) for name, total in totals.items() if name not in no_numbers}
