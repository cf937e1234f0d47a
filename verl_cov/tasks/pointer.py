"""Pointer chasing, a toy task: follow the arrows of a cycle for some hops, and say where you arrive.

A prompt is `2bktCEN:35`: the table of a cycle over the nodes 0 to 6, then how many hops (3), then the start (5). Each
character of the table is an arrow: number 8 x + y of `ALPHABET` is the arrow from x to y, at place x. An answer is one
to six nodes, of which only the last one counts: `4` at once, or `024`, each node on the way. The rules, which only
`verify` enforces:

- one to six digits, all of them nodes of the table;
- the last one is where that many arrows lead to.

Two ways to answer matter. Answering at once is short and, for a small model, right for one hop and a guess for more.
Writing out the hops is right for any number, longer, and worth nothing before all of it is right. A policy that spends
its entropy on the first way never finds the second one.

    python -m verl_cov.tasks.pointer DIR [--seed 0]

writes `DIR/train.parquet` and `DIR/validation.parquet` in verl's format. In verl's config the reward is
`reward.custom_reward_function.path=pkg://verl_cov.tasks.pointer` with `name=compute_score`.

The module knows nothing of a model, and needs only the standard library (to write files: pyarrow).
"""

# No `from __future__ import annotations`: see countdown.py.

import argparse
import hashlib
import os
import random
import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from verl_cov.tasks import toy_files

DATA_SOURCE = "verl_cov/pointer"
ALPHABET = string.digits + string.ascii_lowercase + string.ascii_uppercase + "-_"  # an arrow each
MOST_NODES = 8
MAX_ANSWER = 6  # nodes of the longest answer that the rules allow
_MOST_MISSES = 10_000  # one after the other: a side that owns one table of a hundred is never missed so often
FORMAT = 1  # raise it when the same settings would give other files: it is part of the fingerprints

_PROBLEM = re.compile(r"([\w-]{2,8}):([1-9])([0-7])", re.ASCII)
_ANSWER = re.compile(rf"[0-7]{{1,{MAX_ANSWER}}}")


@dataclass(frozen=True, order=True)
class Problem:
    """A prompt. table: the node that each node points to, one cycle over all of them. hops: 1 to 9. start: a node."""

    table: tuple[int, ...]
    hops: int
    start: int

    @property
    def text(self) -> str:
        """The prompt as text, which is also the ground truth that `compute_score` gets: `2bktCEN:35`."""
        arrows = (ALPHABET[MOST_NODES * node + to] for node, to in enumerate(self.table))
        return "".join(arrows) + f":{self.hops}{self.start}"

    @property
    def path(self) -> str:
        """The nodes on the way, the start left out: the answer with its hops. Its last node is the answer at once."""
        node, path = self.start, ""
        for _ in range(self.hops):
            node = self.table[node]
            path += str(node)
        return path

    @classmethod
    def parse(cls, text: str) -> "Problem":
        """The inverse of `text`. Raises ValueError on anything else: a damaged data set must not silently score 0."""
        match = _PROBLEM.fullmatch(text) if isinstance(text, str) else None
        if match is not None:
            arrows = [divmod(ALPHABET.index(character), MOST_NODES) for character in match[1]]
            problem = cls(tuple(to for _, to in arrows), int(match[2]), int(match[3]))
            if [node for node, _ in arrows] == list(range(len(arrows))) and problem._is_one_cycle():
                return problem
        raise ValueError(f"not a pointer problem: {text!r}; expected something like {EXAMPLE!r}")

    def _is_one_cycle(self) -> bool:
        nodes = len(self.table)
        if self.start >= nodes or max(self.table) >= nodes:
            return False
        around = replace(self, hops=nodes).path
        return len(set(around)) == nodes


EXAMPLE = Problem((2, 3, 4, 5, 6, 0, 1), 3, 5).text


@dataclass(frozen=True)
class Settings:
    """What to generate.

    nodes: of a table (3 to 8). More nodes make a guess worse. max_hops: a prompt has one to this many hops (1 to 6),
    each as often. train, validation: prompts in each file. validation_share: share of the tables that only validation
    sees, with all their starts and hops. seed: decides which prompts are drawn, and which tables are held out.
    """

    nodes: int = 7
    max_hops: int = 4
    train: int = 4096
    validation: int = 256
    validation_share: float = 0.2
    seed: int = 0

    def __post_init__(self):
        if not 3 <= self.nodes <= MOST_NODES:
            raise ValueError(f"nodes must be 3 to {MOST_NODES}, got {self.nodes}")
        if not 1 <= self.max_hops <= MAX_ANSWER:
            raise ValueError(f"max_hops must be 1 to {MAX_ANSWER}, got {self.max_hops}")
        if self.train < 1 or self.validation < 1:
            raise ValueError(f"train and validation must be positive, got {self.train} and {self.validation}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be inside (0, 1), got {self.validation_share}")


def verify(answer: str, problem: Problem) -> bool:
    """Whether `answer`, to the character, solves `problem`. Every string gets a verdict, in constant time."""
    if _ANSWER.fullmatch(answer) is None:  # looks at seven characters at most
        return False
    return max(map(int, answer)) < len(problem.table) and answer[-1] == problem.path[-1]


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> float:
    """verl's custom reward function: 1.0 for a right answer, else 0.0. verl adds the metric `acc` itself.

    solution_str: the decoded response without special tokens; compared as it is, so a trailing space is a mistake.
    ground_truth: `Problem.text`; raises ValueError for anything else. The other arguments are verl's, and unused.
    """
    return float(verify(solution_str, Problem.parse(ground_truth)))


def draw(settings: Settings, split: str, dice: random.Random) -> Iterator[Problem]:
    """Problems of one side ("train" or "validation"), without end.

    Raises ValueError on another `split`, and if that side owns no table.
    """
    if split not in toy_files.SPLITS:
        raise ValueError(f"split must be 'train' or 'validation', got {split!r}")
    misses = 0
    while misses < _MOST_MISSES:
        order = dice.sample(range(settings.nodes), settings.nodes)
        table = [0] * settings.nodes
        for node, to in zip(order, order[1:] + order[:1], strict=True):
            table[node] = to
        if _held_out(tuple(table), settings) != (split == "validation"):
            misses += 1
            continue
        misses = 0
        yield Problem(tuple(table), dice.randint(1, settings.max_hops), dice.randrange(settings.nodes))
    raise ValueError(
        f"{split} owns no table of {settings.nodes} nodes at validation_share={settings.validation_share} and "
        f"seed={settings.seed}: raise nodes, or change the other two"
    )


def _held_out(table: tuple[int, ...], settings: Settings) -> bool:
    """Whether validation owns this table. A hash decides, so the side of a table does not depend on other tables."""
    digest = hashlib.sha256(f"{settings.seed}:{table}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < settings.validation_share * 2**64


def generate(settings: Settings, split: str) -> list[Problem]:
    """The prompts of one split, all different, in random order; a pure function of the settings.

    Raises ValueError if the split may not have as many problems as the settings want.
    """
    wanted = settings.train if split == "train" else settings.validation
    drawn: dict[Problem, None] = {}
    for tries, problem in enumerate(draw(settings, split, random.Random(f"{settings.seed}:{split}"))):
        drawn[problem] = None
        if len(drawn) == wanted:
            return list(drawn)
        if tries > 100 * wanted + 1000:
            break
    raise ValueError(f"{split}={wanted} prompts are too many: these settings have hardly more than {len(drawn)}")


def rows(problems: Iterable[Problem], split: str) -> list[dict[str, Any]]:
    """The rows in verl's format. extra_info.hops: how many."""
    return [
        toy_files.row(DATA_SOURCE, problem.text, split, index, hops=problem.hops)
        for index, problem in enumerate(problems)
    ]


def write_parquet(directory: str | os.PathLike[str], settings: Settings | None = None) -> tuple[Path, Path]:
    """Write `train.parquet` and `validation.parquet`; returns their paths. A second call does nothing.

    Whole files only, and a stamp `pointer.json` beside them (:mod:`verl_cov.tasks.toy_files`).
    """
    settings = settings or Settings()
    stamp = {"format": FORMAT, "settings": asdict(settings)}
    return toy_files.write_parquet(directory, "pointer", stamp, lambda split: rows(generate(settings, split), split))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m verl_cov.tasks.pointer", description="Write the data set.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for path in write_parquet(options.directory, Settings(seed=options.seed)):
        print(path)


if __name__ == "__main__":
    main()
