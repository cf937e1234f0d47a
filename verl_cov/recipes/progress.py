"""Shows how far trainings are: a line redrawn in place on a terminal, a line a step elsewhere, or verl's own log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich import progress as rich_progress
from rich.console import Console
from rich.text import Text

from verl_cov.law.points import ENTROPY_KEY
from verl_cov.law.readers import pick_score

Record = tuple[int, dict[str, Any]]  # step, metrics
SCORE_KEY = "critic/score/mean"  # mean score of the step's rollouts, by the policy before the update

_SAY_EVERY_S = 15.0  # without a terminal, while the training starts


class Progress:
    """The progress of several trainings, one after the other. Use it as a context manager.

    steps: of each training, None where only verl knows; with several, "run 2 of 3" and the time left for all.
    verbose: print verl's log as it comes, and no progress. step: the current training's last step, None before the
    first.
    """

    def __init__(self, console: Console, steps: Sequence[int | None] = (), *, verbose: bool = False):
        self._console, self._verbose = console, verbose
        self._coming = list(steps)
        self._runs = len(steps)
        self._start_s: float | None = None  # from a training's begin to the end of its first step here
        self._step_s: float | None = None
        self._live = console.is_terminal and not verbose
        # The pace is over all steps of a launch: rich's is over the last 30 s, which may be less than a step.
        self._bars = rich_progress.Progress(
            _Line(), console=console, disable=not self._live, speed_estimate_period=math.inf
        )
        self._line_of_all = self._bars.add_task(self._number(), total=None) if self._runs > 1 else None
        self._task: rich_progress.Task | None = None
        self._said = ("", -math.inf)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @property
    def step(self) -> int | None:
        return self._current.fields["step"]

    @property
    def _current(self) -> rich_progress.Task:
        assert self._task is not None, "no training has begun"
        return self._task

    def begin(self, name: str, total: int | None) -> None:
        """A training starts. total: its steps, None if only verl knows."""
        del self._coming[:1]
        task = self._bars.add_task(
            name, total=total, phase="starting", step=None, entropy=None, score=None, validation=None
        )
        self._task = next(each for each in self._bars.tasks if each.id == task)
        self._said = ("", -math.inf)
        if self._line_of_all is not None:
            self._bars.update(self._line_of_all, description=self._all())
        if self._runs > 1 and not self._live and not self._verbose:
            self.say(f"{self._all()}: {name}")

    def update(self, phase: str, total: int | None, records: Sequence[Record], log: str = "") -> None:
        """Show what is new. phase, total: of the log (`LogTail`); log: its new text."""
        task = self._current
        fields: dict[str, Any] = {"phase": phase}
        completed = None
        for step, data in records:
            key = pick_score(data)
            keys = {"entropy": ENTROPY_KEY, "score": SCORE_KEY, **({"validation": key} if key else {})}
            fields |= {field: data[key] for field, key in keys.items() if isinstance(data.get(key), int | float)}
            if ENTROPY_KEY in data or SCORE_KEY in data:  # not a validation alone
                fields["step"] = completed = step
        self._bars.update(task.id, total=total if total is not None else task.total, completed=completed, **fields)
        if completed is not None:
            self._start_s = task.elapsed if task.speed is None else self._start_s
            self._step_s = 1 / task.speed if task.speed else self._step_s
        if self._line_of_all is not None:
            self._bars.update(self._line_of_all, description=self._all())
        if self._verbose:
            self._console.file.write(log)
            self._console.file.flush()
        elif not self._live:
            self._say_news(task)

    def _say_news(self, task: rich_progress.Task) -> None:
        """One line a step; before the first one for each phase, and one every 15 s."""
        news = task.fields["phase"] if task.fields["step"] is None else str(task.fields["step"])
        before, when = self._said
        now = self._console.get_time()
        if news != before or (task.fields["step"] is None and now - when > _SAY_EVERY_S):
            self._said = (news, now)
            self.say(describe(task) + (f"  {self._all()}" if self._runs > 1 and task.fields["step"] else ""))

    def _number(self) -> str:
        return f"run {self._runs - len(self._coming)} of {self._runs}"

    def _all(self) -> str:
        """`run 2 of 3`, and the time until all are done, as soon as there is a pace; later ones may start faster."""
        left = self._current.time_remaining
        if self._start_s is None or self._step_s is None or None in self._coming:
            return self._number()
        if left is None:  # it is only starting
            left = max(self._start_s - (self._current.elapsed or 0), 0) + (self._current.remaining or 0) * self._step_s
        left += sum(self._start_s + steps * self._step_s for steps in self._coming if steps is not None)
        return f"{self._number()}, all in {duration(left)}"

    def say(self, text: str) -> None:
        """Print a line, above the one that is redrawn."""
        self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def end(self, outcome: str) -> None:
        """The training is over: finished, stopped or failed."""
        self._bars.update(self._current.id, phase=outcome)
        self._bars.stop_task(self._current.id)
        if not self._live:
            self.say(f"{self._current.description}: {outcome}, {duration(self._current.elapsed)}")


class _Line(rich_progress.ProgressColumn):
    """`describe`, as the only column; cut at the terminal's width."""

    def render(self, task: rich_progress.Task) -> Text:
        return Text(describe(task) if task.fields else task.description, no_wrap=True, overflow="ellipsis")


def describe(task: rich_progress.Task) -> str:
    """One line: `kl_cov 12/25  entropy 0.531  score 0.402  val 0.310  7.1 s/step  ETA 1m32s`; at first its phase."""
    fields = task.fields
    if fields["step"] is None:
        validation = "" if fields["validation"] is None else f"  val {number(fields['validation'])}"
        return f"{task.description}: {fields['phase']}, {duration(task.elapsed)}{validation}"
    total = "?" if task.total is None else f"{task.total:.0f}"
    parts = [f"{task.description} {fields['step']}/{total}"]
    named = (("entropy", "entropy"), ("score", "score"), ("val", "validation"))
    parts += [f"{name} {number(fields[field])}" for name, field in named if fields[field] is not None]
    if task.stop_time is not None:
        return "  ".join([*parts, f"{fields['phase']}, {duration(task.elapsed)}"])
    if task.speed:
        parts.append(f"{1 / task.speed:.1f} s/step")
    if task.time_remaining is not None:
        parts.append(f"ETA {duration(task.time_remaining)}")
    return "  ".join(parts)


def duration(seconds: float | None) -> str:
    """`42s`, `3m05s`, `2h07m`; a dash for None."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; a dash for what is not there or not finite."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
