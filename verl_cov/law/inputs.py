"""The runs that a command was given: logs, labelled logs, or the example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from verl_cov.law import arguments, examples
from verl_cov.law.points import points
from verl_cov.law.readers import DETECTED, Join, Wanted
from verl_cov.law.runs import Loaded, load


@dataclass(frozen=True)
class Inputs:
    """What the command line says of the runs. labels: NAME=RUN each. wanted: how their logs are read. example: take
    the example instead of runs."""

    runs: Sequence[Path] | None
    labels: Sequence[str] | None = None
    wanted: Wanted = DETECTED
    example: bool = False

    def named(self) -> list[tuple[str, Path]]:
        """The labels as (name, run). Raises ValueError: one is not NAME=RUN, there is no run, or one is
        beside the example."""
        named = [arguments.label(text) for text in self.labels or ()]
        if self.example and (self.runs or named):
            raise ValueError("give runs or --example, not both")
        if not (self.runs or named or self.example):
            raise ValueError("give a RUN: a log, a folder with a log, or a folder of such folders")
        return named

    def paths(self) -> list[Path]:
        """All that is read, so that no output overwrites it."""
        return [*(self.runs or ()), *(path for _, path in self.named())]

    def load(self) -> Loaded:
        """The points of the runs. Raises ValueError or OSError with one line if there are none."""
        named = self.named()
        if self.example:
            run = points(replace(examples.run(), wanted=self.wanted), "example")
            return Loaded([replace(run, notes=(examples.RUN_NOTE, *run.notes))])
        return load(self.runs or (), self.wanted, named)


def wanted(entropy_key: str | None, score_key: str | None, step_key: str | None, join: str) -> Wanted:
    """The options that say how a log is read. Raises ValueError: there is no such join."""
    for known in get_args(Join):
        if join == known:
            return Wanted(entropy_key, score_key, step_key, known)
    raise ValueError(f"--join {join}: give same, next or auto")
