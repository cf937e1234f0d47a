"""The logs of the watched runs, read again when they change."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from verl_cov.law.estimate import Estimate, estimate
from verl_cov.law.inputs import Inputs
from verl_cov.law.readers import DETECTED, LeftOut, Run, Wanted, log_files, no_log, read_metrics
from verl_cov.law.reading import Curve, Joined, read
from verl_cov.law.runs import alike, find_labelled
from verl_cov.law.watch.pace import state, step_seconds, total_steps

_NONE = Curve(np.empty(0, dtype=np.int64), np.empty(0))
_TRIES = 20  # to find the number of steps, which a log announces while the training starts


@dataclass
class Source:
    """One run's log. It is read whole whenever it has changed, as verl truncates the log of a resumed run.

    total: the training steps, if known. changed: when the log was last written, in seconds since the epoch. scores,
    entropies: so far. law: of the points so far, or why there is none.
    """

    name: str
    paths: Sequence[Path]
    total: int | None = None
    wanted: Wanted = DETECTED
    run: Run | None = None
    changed: float = 0.0
    scores: Curve = _NONE
    entropies: Curve = _NONE
    law: Estimate | str = ""
    _seen: tuple[tuple[int, int], ...] | None = None
    _first: tuple[float, int] | None = None  # when the first step was seen, and which: a pace for logs without one
    _tries: int = field(default=0, repr=False)

    def poll(self) -> bool:
        """Read the log if it is new or has changed. Returns whether it was read."""
        try:
            states = [file.stat() for path in self.paths for file in log_files(path)]
            seen = tuple((state.st_mtime_ns, state.st_size) for state in states)
            if seen == self._seen:
                return False
            run, self._seen = read_metrics(self.paths, step_key=self.wanted.step), seen
        except (OSError, ValueError):  # the log is gone or unreadable for now, and the board keeps its last state
            return False
        run = replace(run, wanted=self.wanted)
        self.take(run, max((state.st_mtime for state in states), default=0.0))
        return True

    def take(self, run: Run, changed: float) -> None:
        """What was read, and when it was written."""
        self.run, self.changed = run, changed
        reading = read(run)
        self.scores, self.entropies = reading.scores, reading.entropies
        self.law = _law(reading.joined)
        if self.step is not None and self._first is None:
            self._first = time.time(), self.step
        if self.total is None and self._tries < _TRIES:
            self.total, self._tries = total_steps(self.paths), self._tries + 1
            if self.total is not None and self.step is not None and self.step > self.total:
                self.total = None  # of an earlier start: the run was resumed for longer

    @property
    def step(self) -> int | None:
        """The last step in the log."""
        return int(self.run.steps[-1]) if self.run is not None and self.run.steps.size else None

    def state(self, now: float) -> str:
        """In a word or two whether the run still runs, and how long it will. now: seconds since the epoch."""
        pace = step_seconds(self.run) if self.run is not None else None
        if pace is None and self._first is not None and self.step is not None and self.step > self._first[1]:
            pace = (self.changed - self._first[0]) / (self.step - self._first[1])
        return state(self.step, self.total, pace, now - self.changed)


def find(inputs: Inputs, total: int | None = None) -> tuple[list[Source], list[LeftOut]]:
    """The runs that were given, and what was left out. Raises NoLog, which says what was looked for."""
    found, left_out = find_labelled(inputs.runs or (), inputs.named(), inputs.wanted.step)
    if not found:
        raise no_log(left_out)
    return [Source(name, paths, total, inputs.wanted) for name, paths in found], left_out


def poll(sources: Sequence[Source]) -> bool:
    """Read new records, as `fit` reads them, and return whether there were any."""
    news = [source.poll() for source in sources]
    if not any(news):
        return False
    known = [(source, source.run) for source in sources if source.run is not None]
    same = alike([replace(run, wanted=source.wanted) for source, run in known])
    for (source, before), run in zip(known, same, strict=True):
        if run.wanted != before.wanted:
            source.take(run, source.changed)
    return True


def _law(joined: Joined) -> Estimate | str:
    steps, entropy, score = joined
    if not joined.usable():
        return f"{len(set(entropy))} of 3 points" if score.size else ""
    if np.ptp(score) == 0:
        return "constant score"
    try:
        law = estimate(entropy, score, steps)
    except (ValueError, ArithmeticError):
        return "no fit"
    except ModuleNotFoundError as error:  # the board needs no package of an extra, the interval does
        return f"needs {error.name}"
    return law if law.a.value > 0 else f"none: a < 0 ({law.n} points)"
