"""Mental arithmetic in words, for a small language model: four kinds of questions, of which it knows some a little.

A prompt is a short chat: a system message, one example, and a question such as `What is 3 + 4?`. The answer is the
first number of the response, which may be a few words long. Without the example the model seldom begins with a number,
and would be taught little else than to do so. The kinds differ in how often the model is right, so that prompts of all
of them together have outcomes from never to nearly always:

    sum        two one-digit numbers, such as 3 + 4
    product    two one-digit numbers from 2, such as 3 * 4
    largest    the largest of three different two-digit numbers
    long_sum   two two-digit numbers, such as 31 + 46

    python -m verl_cov.tasks.arithmetic DIR

writes `DIR/KIND/train.parquet` and `DIR/KIND/validation.parquet` in verl's format for each kind and for `mixed`, which
has all four in equal parts. In verl's config the reward is
`reward.custom_reward_function.path=pkg://verl_cov.tasks.arithmetic` with `name=compute_score`.

The module knows nothing of a model, and needs only the standard library (to write files: pyarrow).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import os
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from verl_cov.tasks import toy_files

DATA_SOURCE = "verl_cov/arithmetic"  # and "/KIND": verl's validation metrics are by kind
FORMAT = 1  # raise it when the same settings would give other files
MIXED = "mixed"

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of question.

    ask: its text, with a place for each number; example: the one that each prompt shows, never asked itself; numbers:
    how many there are, from `low` to `high`.
    """

    ask: str
    answer: Callable[[Numbers], int]
    example: Numbers
    numbers: int
    low: int
    high: int
    different: bool = False

    def every(self) -> Iterable[Numbers]:
        """The numbers of every question, in each order, in a fixed sequence."""
        span = range(self.low, self.high + 1)
        return itertools.permutations(span, self.numbers) if self.different else itertools.product(span, repeat=2)


KINDS = {
    "sum": Kind("What is {} + {}?", sum, (2, 2), 2, 1, 9),
    "product": Kind("What is {} * {}?", lambda numbers: numbers[0] * numbers[1], (2, 3), 2, 2, 9),
    "largest": Kind("Which is the largest of {}, {} and {}?", max, (12, 31, 20), 3, 10, 49, different=True),
    "long_sum": Kind("What is {} + {}?", sum, (20, 15), 2, 10, 99),
}

# A number with what would make it another one: 7.5 and 1,250 are not 7 and 1. [0-9] and not \d: see countdown.
_NUMBER = re.compile(r"[-−]?[0-9]+(?:[.,][0-9]+)*")
_DIGITS = re.compile(r"[1-9][0-9]{0,3}")
_SEARCHED = 200  # characters of a response that are looked at: an answer is short


@dataclass(frozen=True)
class Problem:
    """A question. kind: a key of `KINDS`."""

    kind: str
    numbers: Numbers

    @property
    def text(self) -> str:
        """The question as the user asks it."""
        return KINDS[self.kind].ask.format(*self.numbers)

    @property
    def answer(self) -> str:
        """The right answer, which is the ground truth that `compute_score` gets."""
        return str(KINDS[self.kind].answer(self.numbers))


@dataclass(frozen=True)
class Settings:
    """What to generate.

    kinds: of the questions, in equal parts. train, validation: prompts in each file; of a kind with fewer questions the
        training file has each of them several times. validation_share: share of the questions that only validation
        asks. A question is on one side in all orders of its numbers.
    seed: decides which questions are drawn, in which order, and which are held out.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    train: int = 1024
    validation: int = 48
    validation_share: float = 0.3
    seed: int = 0

    def __post_init__(self):
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(
                f"kinds must be some of {', '.join(KINDS)}, each once, got {', '.join(self.kinds) or 'none'}"
            )
        for name in ("train", "validation"):
            count = getattr(self, name)
            if count < 1 or count % len(self.kinds):
                raise ValueError(f"{name} must be a positive multiple of the {len(self.kinds)} kinds, got {count}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be inside (0, 1), got {self.validation_share}")


# What the recipes train on: one kind, or all of them.
SETS = {MIXED: Settings()} | {kind: Settings(kinds=(kind,), train=512, validation=12) for kind in KINDS}


def verify(response: str, answer: int) -> bool:
    """Whether the first number in `response` is `answer`. Every string gets a verdict, in constant time.

    A number that goes on (7.5, 1,250) is another one; a dot or comma that ends a clause is no part of it.
    """
    found = _NUMBER.search(response[:_SEARCHED])
    return found is not None and found[0].lstrip("0") == str(answer)


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> float:
    """verl's custom reward function: 1.0 for a right answer, else 0.0. verl adds the metric `acc` itself.

    ground_truth: the answer in digits; raises ValueError for anything else: a damaged data set must not silently score
    0. The other arguments are verl's, and unused.
    """
    if not (isinstance(ground_truth, str) and _DIGITS.fullmatch(ground_truth)):
        raise ValueError(f"reward_model.ground_truth must be a positive whole number in digits, got {ground_truth!r}")
    return float(verify(solution_str, int(ground_truth)))


def all_problems(kind: str, settings: Settings, split: str) -> list[Problem]:
    """Every question of a kind on one side ("train" or "validation"), in a fixed order. Raises ValueError otherwise."""
    if split not in ("train", "validation"):
        raise ValueError(f"split must be 'train' or 'validation', got {split!r}")

    @functools.cache
    def held_out(numbers: Numbers) -> bool:  # a hash decides, so the side of a question does not depend on the others
        digest = hashlib.sha256(f"{settings.seed}:{kind}:{numbers}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < settings.validation_share * 2**64

    wanted = split == "validation"
    shown = sorted(KINDS[kind].example)
    asked = (numbers for numbers in KINDS[kind].every() if sorted(numbers) != shown)
    return [Problem(kind, numbers) for numbers in asked if held_out(tuple(sorted(numbers))) == wanted]


def generate(settings: Settings, split: str) -> list[Problem]:
    """The prompts of one split, the kinds in turn, each kind's in random order; a pure function of the settings.

    A validation asks nothing twice: raises ValueError if a kind has too few questions held out for it.
    """
    count = (settings.train if split == "train" else settings.validation) // len(settings.kinds)
    drawn = [_draw(kind, settings, split, count) for kind in settings.kinds]
    return [problem for turn in zip(*drawn, strict=True) for problem in turn]


def _draw(kind: str, settings: Settings, split: str, count: int) -> list[Problem]:
    problems = all_problems(kind, settings, split)
    if not problems or (split == "validation" and count > len(problems)):
        raise ValueError(
            f"{split}: {count} prompts of {kind} are too many: with validation_share={settings.validation_share:g} and "
            f"seed={settings.seed} there are {len(problems)}"
        )
    # A string as a seed goes through SHA-512, which, unlike the hash() of a tuple, is the same in every process.
    dice = random.Random(f"{settings.seed}:{kind}:{split}")
    drawn: list[Problem] = []
    while len(drawn) < count:
        drawn += dice.sample(problems, min(len(problems), count - len(drawn)))
    return drawn


def rows(problems: Iterable[Problem], split: str) -> list[dict[str, Any]]:
    """The rows in verl's format."""
    return [
        {
            "data_source": f"{DATA_SOURCE}/{problem.kind}",
            "prompt": prompt(problem),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"split": split, "index": index},
        }
        for index, problem in enumerate(problems)
    ]


def prompt(problem: Problem) -> list[dict[str, str]]:
    """The messages of a chat: how to answer, an example of the same kind, the question."""
    example = Problem(problem.kind, KINDS[problem.kind].example)
    return [
        {"role": "system", "content": "Answer with only a number."},
        {"role": "user", "content": example.text},
        {"role": "assistant", "content": example.answer},
        {"role": "user", "content": problem.text},
    ]


def write_parquet(directory: str | os.PathLike[str], settings: Settings = SETS[MIXED]) -> tuple[Path, Path]:
    """Write `train.parquet` and `validation.parquet`; returns their paths. A second call does nothing."""
    stamp = {"format": FORMAT, "settings": asdict(settings)}
    return toy_files.write_parquet(directory, "arithmetic", stamp, lambda split: rows(generate(settings, split), split))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m verl_cov.tasks.arithmetic", description="Write the data sets.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, settings in SETS.items():
        for path in write_parquet(options.directory / name, replace(settings, seed=options.seed)):
            print(path)


if __name__ == "__main__":
    main()
