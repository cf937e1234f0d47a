"""What every reader returns: the metrics of one run, one record for each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

AVERAGE_KEY = "val-cov/acc/sample_weighted"  # verl-cov: over all generations of all data sources
SCORE_PREFIX = "val-core/"  # verl: val-core/{data source}/{variable}/mean@N

# One record of a log: (step, its metrics). None stands for a damaged line, or a damaged part of a line.
Record: TypeAlias = "tuple[int, dict[str, object]] | None"
Tell: TypeAlias = Callable[[int], None]  # called with the number of bytes read so far


@dataclass(frozen=True)
class Aside:
    """What a reader says between the records. damage: why a line was left out. note: a sentence on how the log was
    read. table: that it is anyone's table, whose columns need not be a trainer's."""

    damage: str = ""
    note: str = ""
    table: bool = False


Records: TypeAlias = "Iterator[Record | Aside]"

# Columns that hold the step, the best first. A trainer's own count comes before its logger's, as W&B counts calls of
# `log` (the Hugging Face trainers log training and evaluation of one step in two calls).
STEP_KEYS = (
    "training/global_step",  # verl
    "trainer/global_step",  # SkyRL, Lightning
    "train/global_step",  # Hugging Face, OpenRLHF
    "eval/global_step",  # OpenRLHF: evaluations are records of their own
    "system/step",  # ROLL
    "global_step",
    "step",
    "rollout/step",  # slime, miles
    "train/step",
    "eval/step",
    "_step",  # W&B
)
FRACTION_KEY = "global_step/max_steps"  # ms-swift: "10/438"


Join: TypeAlias = Literal["auto", "same", "next"]


@dataclass(frozen=True)
class Wanted:
    """The columns that the user asked for, None where they are to be detected, and how score and entropy are joined:
    at the same step, the score with the entropy of the next step, or as the keys say ("auto"). score: may be a glob.
    """

    entropy: str | None = None
    score: str | None = None
    step: str | None = None
    join: Join = "auto"


DETECTED = Wanted()


class NoPoints(ValueError):
    """The input gives no points to fit. The message is one line that names the fix."""


class NoLog(NoPoints, FileNotFoundError):
    """There is no log at the given path."""


@dataclass(frozen=True)
class Run:
    """The metrics of one run.

    steps: [n], ascending, distinct. records: one dict for each step. damaged: number of lines dropped, whole or in
    part. repeats: how often a record had no later step than the record before it and replaced most of its step's
    values. A resumed run does so once at each launch; if it happens often, several runs write to one log. left_over:
    number of last steps that were written before the log last began again from its first step: they are of another run.
    wanted: how the run is to be read. damage: why a damaged line was left out, of the first where that is known. notes:
    how the log was read. table: whether it is anyone's table.
    """

    steps: NDArray[np.int64]
    records: tuple[dict[str, object], ...]
    damaged: int = 0
    repeats: int = 0
    left_over: int = 0
    wanted: Wanted = DETECTED
    damage: str = ""
    notes: tuple[str, ...] = ()
    table: bool = False

    @cached_property
    def known(self) -> list[str]:
        """The keys that have a finite value at some step, sorted."""
        found: set[str] = set()
        for record in self.records:
            found.update(key for key, value in record.items() if key not in found and math.isfinite(_number(value)))
        return sorted(found)

    def column(self, key: str) -> NDArray[np.float64]:
        """Values [n] of `key`, one for each step; nan if the step has no value or the value is not a number."""
        return np.array([_number(record.get(key)) for record in self.records], dtype=np.float64)

    def values(self, key: str) -> NDArray[np.float64]:
        """The values [m] of `key` at the steps that have a finite one."""
        column = self.column(key)
        return column[np.isfinite(column)]

    def keys(self) -> list[str]:
        """All keys of all steps, sorted."""
        return sorted({key for record in self.records for key in record})


def pick_score(keys: Iterable[str]) -> str | None:
    """The key of the validation score among `keys`, or None.

    It is verl-cov's average over the data sources, or else the first key under `val-core/` in sorted order, means
    first: with N samples for each prompt verl logs `best@N` too, and the best of N is not the policy's score.
    """
    keys = set(keys)
    if AVERAGE_KEY in keys:
        return AVERAGE_KEY
    scores = sorted(key for key in keys if key.startswith(SCORE_PREFIX))
    return next((key for key in scores if "/mean@" in key), scores[0] if scores else None)


def merge(records: Iterable[Record | Aside]) -> Run:
    """The records of one run, in the order they were written, by step.

    A step in several records keeps every key; where a key comes twice the last value wins. (A resumed verl run first
    validates, and logs that under the step it resumes from: a record with nothing but `val-*` keys.)
    """
    merged: dict[int, dict[str, object]] = {}
    damaged = repeats = 0
    damage, table = "", False
    notes: list[str] = []
    last = furthest = -1  # furthest: since the log last began again from its first step
    for record in records:
        if record is None:
            damaged += 1
            continue
        if isinstance(record, Aside):
            damaged += bool(record.damage)
            damage = damage or record.damage
            notes += [record.note] * (bool(record.note) and record.note not in notes)
            table |= record.table
            continue
        step, data = record
        known = merged.get(step)
        if known is None:
            merged[step] = data
        else:
            # Half of the values, or the time of logging would make a repeat of a step's second record.
            replaced = sum(key in known and known[key] != value for key, value in data.items())
            repeat = step <= last and 2 * replaced > len(data) - ("epoch" in data)  # the step in other words
            repeats += repeat
            if repeat and step == min(merged):
                furthest = -1
            known.update(data)
        last = step
        furthest = max(furthest, step)
    steps = sorted(merged)
    left_over = sum(step > furthest for step in steps)
    return Run(
        np.array(steps, dtype=np.int64),
        tuple(merged[step] for step in steps),
        damaged,
        repeats,
        left_over,
        damage=damage,
        notes=tuple(notes),
        table=table,
    )


def step_key(keys: Iterable[str], wanted: str | None = None) -> str | None:
    """The key among `keys` that holds the step, or None: the one that is wanted, or else one of `STEP_KEYS`, for which
    upper case and blanks do not matter."""
    if wanted is not None:
        return next((key for key in keys if key.strip() == wanted), None)
    known = {key.strip().lower().replace(" ", "_"): key for key in keys}
    return next((known[key] for key in STEP_KEYS if key in known), None)


def whole_step(value: object) -> int | None:
    """A step out of a number or its text, or None if it is not a whole number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
        return int(number) if number.is_integer() and 0 <= number < 2**53 else None
    except (ValueError, OverflowError):
        return None


def _number(value: object) -> float:
    if not isinstance(value, (int, float)):
        return float("nan")
    try:
        return float(value)
    except OverflowError:  # JSON integers have no bound
        return float("nan")
