"""What a validation says in one number: accuracy over sets of different sizes, averaged in the two usual ways.

The paper's Table 2 (arXiv 2505.22617) averages over generations: AIME 2024, AIME 2025 and AMC count 32 times a prompt,
the other sets once. The plain mean of its columns differs by up to 1.2 points. Knows nothing about verl.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Averages:
    """Accuracy over several sets, in [0, 1].

    Args:
        sample_weighted: mean over all generations of all sets (the paper's "Avg.").
        plain_mean: mean of the sets' means.
        generations: how many there were.
    """

    sample_weighted: float
    plain_mean: float
    generations: int


def averages(sets: Mapping[str, tuple[float, int]]) -> Averages | None:
    """Average the sets, given as {name: (sum of the accuracies of its generations, their number)}; None without any."""
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
    accuracies: Sequence[Any],
    expected: Mapping[tuple[str, str], int] | None = None,
) -> dict[str, tuple[float, int]]:
    """What :func:`averages` takes, from one entry a generation.

    Args:
        names, prompts: the set and the prompt (of any naming) that a generation belongs to.
        accuracies: None where the reward function gave none; empty if it never gave any. A set without any accuracy is
            left out, and one of which some are no numbers (a reward function may call "yes" its ``acc``).
        expected: {(set, prompt): generations asked for}. Those that never came count as wrong, as verl counts them.
    """
    if not len(accuracies):
        return {}
    totals: dict[str, float] = defaultdict(float)
    seen: dict[tuple[str, str], int] = defaultdict(int)
    no_numbers: set[str] = set()
    for name, prompt, accuracy in zip(names, prompts, accuracies, strict=True):
        if accuracy is None:
            continue
        try:
            if isinstance(accuracy, (str, bytes)):  # verl too averages no text, not even of digits
                raise TypeError
            totals[str(name)] += float(accuracy)
        except (TypeError, ValueError):
            no_numbers.add(str(name))
        seen[str(name), str(prompt)] += 1
    counts: dict[str, int] = defaultdict(int)
    for name, prompt in {**dict(expected or {}), **seen}:
        counts[name] += max(seen.get((name, prompt), 0), (expected or {}).get((name, prompt), 0))
    return {name: (total, counts[name]) for name, total in totals.items() if name not in no_numbers}
