"""Countdown, a toy task: write digits that add up to a target. Many answers to a prompt are right: for entropy studies.

A prompt is `2459:19`, an answer `955`. The rules, which only `verify` enforces:

- two to six digits, all of them digits of the prompt, in any order and any number of times;
- their sum is the target.

Many right answers matter: a policy can keep its entropy (many answers) or lose it (one answer) at the same reward, so
if entropy falls, the optimizer did it, not the task.

    python -m verl_cov.tasks.countdown DIR [--level medium]

writes `DIR/train.parquet` and `DIR/validation.parquet` in verl's format. In verl's config the reward is
`reward.custom_reward_function.path=pkg://verl_cov.tasks.countdown` with `name=compute_score`.

The module knows nothing of a model, and needs only the standard library (to write files: pyarrow).
"""

# No `from __future__ import annotations`: verl may load this file by its path, as a module that is not in sys.modules,
# where dataclasses cannot look up annotations that are strings.

import argparse
import hashlib
import itertools
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from verl_cov.tasks import toy_files

DATA_SOURCE = "verl_cov/countdown"
MAX_TERMS = 6  # digits of the longest answer the rules allow
FORMAT = 2  # raise it when the same settings would give other files: it is part of the fingerprints

# [0-9] and not \d, which also matches the digits of other scripts; fullmatch and not `$`, which lets a newline by.
_PROBLEM = re.compile(r"([1-9]{1,9}):([1-9][0-9]?)")
_ANSWER = re.compile(rf"[1-9]{{2,{MAX_TERMS}}}")


@dataclass(frozen=True, order=True)
class Problem:
    """A prompt. numbers: its digits, ascending and distinct. target: the sum to reach, 1 to 99."""

    numbers: tuple[int, ...]
    target: int

    @property
    def text(self) -> str:
        """The prompt as text, which is also the ground truth that `compute_score` gets: `2459:19`."""
        return "".join(map(str, self.numbers)) + f":{self.target}"

    @classmethod
    def parse(cls, text: str) -> "Problem":
        """The inverse of `text`. Raises ValueError on anything else: a damaged data set must not silently score 0."""
        match = _PROBLEM.fullmatch(text) if isinstance(text, str) else None
        problem = match and cls(tuple(map(int, match[1])), int(match[2]))
        if problem is None or list(problem.numbers) != sorted(set(problem.numbers)):
            raise ValueError(f"not a countdown problem: {text!r}; expected something like '2459:19'")
        return problem


@dataclass(frozen=True)
class Settings:
    """What to generate. The first four settings make it easy or hard; `LEVELS` has three useful combinations.

    numbers: digits in a prompt (2 to 6). More digits give more right answers, and more wrong ones.
    max_terms: a problem is kept if it has an answer of at most this many digits (2 to 6). More is harder.
    min_target, max_target: range of the target (1 to 54). A larger target needs longer sums.
    train, validation: prompts in each file; `generate` raises if there are not that many.
    validation_share: share of the digit sets that only validation sees. A set is on one side with all its targets, so a
        validation prompt differs from every training prompt in more than its target.
    seed: decides which prompts are drawn, in which order, and which digit sets are held out.
    """

    numbers: int = 4
    max_terms: int = 5
    min_target: int = 5
    max_target: int = 20
    train: int = 1280
    validation: int = 256
    validation_share: float = 0.2
    seed: int = 0

    def __post_init__(self):
        if not 2 <= self.numbers <= 6:
            raise ValueError(f"numbers must be 2 to 6, got {self.numbers}")
        if not 2 <= self.max_terms <= MAX_TERMS:
            raise ValueError(f"max_terms must be 2 to {MAX_TERMS}, got {self.max_terms}")
        if not 1 <= self.min_target <= self.max_target <= 9 * MAX_TERMS:
            raise ValueError(f"targets must be 1 to {9 * MAX_TERMS}, got {self.min_target} to {self.max_target}")
        if self.train < 1 or self.validation < 1:
            raise ValueError(f"train and validation must be positive, got {self.train} and {self.validation}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be inside (0, 1), got {self.validation_share}")


LEVELS = {
    "easy": Settings(numbers=3, max_terms=4, max_target=14, train=448, validation=64),
    "medium": Settings(),
    "hard": Settings(numbers=4, max_terms=6, min_target=12, max_target=40, train=2048),
}


def verify(answer: str, problem: Problem) -> bool:
    """Whether `answer`, to the character, solves `problem`. Every string gets a verdict, in constant time."""
    if _ANSWER.fullmatch(answer) is None:  # looks at seven characters at most
        return False
    digits = [int(character) for character in answer]
    return set(digits) <= set(problem.numbers) and sum(digits) == problem.target


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> float:
    """verl's custom reward function: 1.0 for a right answer, else 0.0. verl adds the metric `acc` itself.

    solution_str: the decoded response without special tokens; compared as it is, so a trailing space is a mistake.
    ground_truth: `Problem.text`; raises ValueError for anything else. The other arguments are verl's, and unused.
    """
    return float(verify(solution_str, Problem.parse(ground_truth)))


def answers(problem: Problem, max_terms: int = MAX_TERMS) -> list[str]:
    """The right answers of at most `max_terms` digits, sorted."""

    def extend(prefix: str, rest: int) -> Iterator[str]:
        if rest == 0 and len(prefix) >= 2:
            yield prefix
        if len(prefix) < max_terms:
            for number in problem.numbers:
                if number <= rest:
                    yield from extend(prefix + str(number), rest - number)

    return sorted(extend("", problem.target))


def count_answers(problem: Problem, max_terms: int = MAX_TERMS) -> int:
    """`len(answers(...))`, without listing them."""
    sums, total = Counter({0: 1}), 0
    for terms in range(1, max_terms + 1):
        longer: Counter[int] = Counter()
        for partial, ways in sums.items():
            for number in problem.numbers:
                longer[partial + number] += ways
        sums = longer
        total += sums[problem.target] if terms >= 2 else 0
    return total


def _held_out(numbers: tuple[int, ...], settings: Settings) -> bool:
    """Whether validation owns this digit set. A hash decides, so the side of a set does not depend on other sets."""
    digest = hashlib.sha256(f"{settings.seed}:{numbers}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < settings.validation_share * 2**64


def all_problems(settings: Settings, split: str) -> list[Problem]:
    """Every problem of one side ("train" or "validation"), in a fixed order. Raises ValueError on another `split`."""
    if split not in ("train", "validation"):
        raise ValueError(f"split must be 'train' or 'validation', got {split!r}")
    candidates = (
        Problem(numbers, target)
        for numbers in itertools.combinations(range(1, 10), settings.numbers)
        if _held_out(numbers, settings) == (split == "validation")
        for target in range(settings.min_target, settings.max_target + 1)
    )
    return [problem for problem in candidates if count_answers(problem, settings.max_terms)]


def generate(settings: Settings, split: str) -> list[Problem]:
    """The prompts of one split: drawn without replacement, in random order; a pure function of the settings.

    Raises ValueError if the split has fewer problems than the settings want.
    """
    problems = all_problems(settings, split)
    wanted = settings.train if split == "train" else settings.validation
    if wanted > len(problems):
        raise ValueError(f"{split}={wanted} prompts are too many: these settings have {len(problems)}")
    # A string as a seed goes through SHA-512, which, unlike the hash() of a tuple, is the same in every process.
    return random.Random(f"{settings.seed}:{split}").sample(problems, wanted)


def rows(problems: Iterable[Problem], split: str) -> list[dict[str, Any]]:
    """The rows in verl's format. extra_info.answers: how many answers are right, so how easy it is."""
    return [
        toy_files.row(DATA_SOURCE, problem.text, split, index, answers=count_answers(problem))
        for index, problem in enumerate(problems)
    ]


def write_parquet(directory: str | os.PathLike[str], settings: Settings = LEVELS["medium"]) -> tuple[Path, Path]:
    """Write `train.parquet` and `validation.parquet`; returns their paths. A second call does nothing.

    Whole files only, and a stamp `countdown.json` beside them (:mod:`verl_cov.tasks.toy_files`).
    """
    stamp = {"format": FORMAT, "settings": asdict(settings)}
    return toy_files.write_parquet(directory, "countdown", stamp, lambda split: rows(generate(settings, split), split))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m verl_cov.tasks.countdown", description="Write the data set.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--level", choices=LEVELS, default="medium")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for path in write_parquet(options.directory, replace(LEVELS[options.level], seed=options.seed)):
        print(path)


if __name__ == "__main__":
    main()
