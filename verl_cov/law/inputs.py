"""The runs that a command was given: logs, labelled logs, or the example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from verl_cov.law import arguments, examples
from verl_cov.law.points import Points, points
from verl_cov.law.runs import load


@dataclass(frozen=True)
class Inputs:
    """What the command line says of the runs. labels: NAME=RUN each. example: take the example instead of runs."""

    runs: Sequence[Path] | None
    labels: Sequence[str] | None = None
    entropy_key: str | None = None
    score_key: str | None = None
    example: bool = False

    def named(self) -> list[tuple[str, Path]]:
        """The labels as (name, run). Raises ValueError: one is not NAME=RUN, or there is no run at all."""
        named = [arguments.label(text) for text in self.labels or ()]
        if not (self.runs or named or self.example):
            raise ValueError("give a RUN: a log, a folder with a log, or a folder of such folders")
        return named

    def paths(self) -> list[Path]:
        """All that is read, so that no output overwrites it."""
        return [*(self.runs or ()), *(path for _, path in self.named())]

    def load(self) -> list[Points]:
        """The points of the runs. Raises ValueError or OSError with one line that names the run."""
        named = self.named()
        if self.example:
            run = points(examples.run(), "example", self.entropy_key, self.score_key)
            return [replace(run, notes=(examples.RUN_NOTE, *run.notes))]
        return load(self.runs or (), self.entropy_key, self.score_key, named)
