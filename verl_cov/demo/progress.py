"""Show a training's progress: a live table on a terminal, otherwise one line a step."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from verl_cov.demo.log import LogTail

from verl_cov.law.readers import pick_score

SCORE_KEY = "critic/score/mean"  # mean score of the step's rollouts, from the policy before the update
ENTROPY_KEY = "actor/entropy"  # nats per token
STEP_TIME_KEY = "timing_s/step"  # seconds, without validation

_SPEAK_EVERY_S = 15.0  # on a log, while there are no steps to report


@dataclass
class State:
    """What is known of one training at a moment. Times in seconds; `None` is not known yet."""

    name: str
    total: int | None = None
    step: int | None = None
    phase: str = "importing verl"
    score: float | None = None
    entropy: float | None = None
    validation: float | None = None
    step_s: float | None = None
    elapsed_s: float = 0.0
    started: float = field(default_factory=time.monotonic)
    first: tuple[int, float] | None = None  # step and time of this launch's first training record
    last: tuple[int, float] | None = None

    def take(self, records: Sequence[tuple[int, dict[str, Any]]], log: LogTail, now: float) -> None:
        """Take in new records and what the log says. now: `time.monotonic()`."""
        self.elapsed_s = now - self.started
        self.phase = log.phase
        self.total = log.total or self.total
        for step, data in records:
            self.step = step
            self.score = _value(data, SCORE_KEY, self.score)
            self.entropy = _value(data, ENTROPY_KEY, self.entropy)
            key = pick_score(data)
            self.validation = _value(data, key, self.validation) if key else self.validation
            if ENTROPY_KEY in data or SCORE_KEY in data:
                self.phase = "training"
                self.first = self.first or (step, now)
                self.last = (step, now)
                self.step_s = _value(data, STEP_TIME_KEY, self.step_s)

    @property
    def pace_s(self) -> float | None:
        """Seconds a step by the wall clock, so validation and checkpoints count; verl's own figure until two steps."""
        if self.first and self.last and self.last[0] > self.first[0]:
            return (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])
        return self.step_s

    @property
    def eta_s(self) -> float | None:
        if self.pace_s is None or self.total is None or self.step is None:
            return None
        return self.pace_s * max(0, self.total - self.step)


class View(Protocol):
    def update(self, state: State) -> None:
        """Show this state. Called about twice a second."""

    def note(self, text: str) -> None:
        """Say one thing."""

    def finish(self, state: State | None, outcome: str) -> None:
        """The training is over."""


def _value(data: dict[str, Any], key: str, before: float | None) -> float | None:
    """The number under `key`, or the one before: a record of validation alone does not blank the rest."""
    value = data.get(key)
    return float(value) if isinstance(value, (int, float)) else before


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
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


class PlainView:
    """Lines for a log: one a step, and one every 15 s while the training starts."""

    def __init__(self, console: Console):
        self._console = console
        self._shown: tuple[str, int | None] | None = None
        self._phase = ""
        self._spoke = 0.0
        self.last: State | None = None

    def update(self, state: State) -> None:
        self.last = state
        now = time.monotonic()
        if state.first is None and (state.phase != self._phase or now - self._spoke >= _SPEAK_EVERY_S):
            self._say(f"{state.name}: {state.phase}, {duration(state.elapsed_s)} since its start")
            self._phase, self._spoke = state.phase, now
        latest = state.last[0] if state.last else None
        if latest is not None and (state.name, latest) != self._shown:
            self._shown = (state.name, latest)
            parts = [f"{state.name}: step {state.step}/{state.total or '?'}"]
            parts += [f"score {number(state.score)}", f"entropy {number(state.entropy)}"]
            parts += [f"validation {number(state.validation)}"] if state.validation is not None else []
            parts += [f"{number(state.pace_s, 1)} s a step", f"ETA {duration(state.eta_s)}"]
            self._say(", ".join(parts))

    def note(self, text: str) -> None:
        self._say(text)

    def finish(self, state: State | None, outcome: str) -> None:
        if state is not None:
            self._say(f"{state.name}: {outcome}, {duration(state.elapsed_s)}")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveView:
    """A table that is redrawn in place: one row a run."""

    def __init__(self, console: Console, names: Sequence[str], finished: Sequence[str]):
        self._rows: dict[str, State | str] = {name: "finished" if name in finished else "waiting" for name in names}
        self._outcome: dict[str, str] = {}
        self._note = ""
        self.last: State | None = None
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, state: State) -> None:
        self._rows[state.name] = self.last = state

    def note(self, text: str) -> None:
        self._note = text

    def finish(self, state: State | None, outcome: str) -> None:
        if state is not None:
            self._outcome[state.name] = outcome
        self._note = ""

    def _draw(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("run", no_wrap=True)
        table.add_column("phase", no_wrap=True)
        for column in ("step", "score", "entropy", "validation", "s/step", "ETA"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, row in self._rows.items():
            if isinstance(row, str):
                table.add_row(name, Text(row, style="dim"), *["-"] * 6)
                continue
            outcome = self._outcome.get(name)
            training = row.first is not None
            phase = outcome or row.phase
            if outcome or not training:
                phase += f", {duration(row.elapsed_s)}"
            style = {"finished": "green", None: "cyan"}.get(outcome, "red")
            step = "-" if row.step is None else f"{row.step}/{row.total or '?'}"
            eta = "-" if outcome else duration(row.eta_s)
            values = (number(row.score), number(row.entropy), number(row.validation), number(row.pace_s, 1), eta)
            table.add_row(name, Text(phase, style=style), step, *values)
        return Group(table, Text(self._note, style="yellow")) if self._note else table
