"""How far a study is: a row for each kind of run, and how long the rest takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from verl_cov.law.readers import NoLog
from verl_cov.recipes.progress import duration
from verl_cov.recipes.train import in_use
from verl_cov.study import runner
from verl_cov.study.protocol import Cell, Protocol
from verl_cov.study.result import Result
from verl_cov.study.results import Found
from verl_cov.study.runner import Places


@dataclass(frozen=True)
class State:
    """A run that has no result yet. step: the last that it has logged, None if it has not begun. running: whether a
    training holds its folder."""

    cell: Cell
    step: int | None
    running: bool


def states(protocol: Protocol, found: Found, places: Places) -> list[State]:
    """The runs without a result."""
    return [_state(protocol, cell, places) for cell in protocol.cells if cell.name not in found.results]


def _state(protocol: Protocol, cell: Cell, places: Places) -> State:
    folder = places.folder(protocol, cell)
    step = None
    if folder.is_dir():
        try:
            logged = runner.metrics(folder).steps
            step = int(logged[-1]) if logged.size else 0
        except (NoLog, ValueError, OSError):
            step = 0
    return State(cell, step, in_use(folder))


def seconds_left(protocol: Protocol, missing: list[State], results: Mapping[str, Result]) -> float | None:
    """How long the missing runs take, at the mean of the finished ones; None before there is one.

    A run's kind decides, if some of it are finished (all levels but the replicate's are the kind); else all that are.
    """
    if not results:
        return None
    every = [result.seconds for result in results.values()]
    kinds: dict[str, list[float]] = {}
    for result in results.values():
        kinds.setdefault(_kind(result.levels, protocol.replicate), []).append(result.seconds)
    left = 0.0
    for state in missing:
        alike = kinds.get(_kind(state.cell.levels, protocol.replicate), every)
        done = (state.step or 0) / state.cell.steps if state.cell.steps else 0.0
        left += sum(alike) / len(alike) * max(1 - done, 0.0)
    return left


def _kind(levels: Mapping[str, str], without: str) -> str:
    return " ".join(level for factor, level in levels.items() if factor != without)


def table(protocol: Protocol, found: Found, missing: list[State]) -> Table:
    """A row for each kind of run: how many are done, running, begun and missing."""
    title = f"{protocol.name} version {protocol.version}: {len(found.results)} of {len(protocol.cells)} runs"
    result = Table("runs", "done", "running", "stopped at step", "missing", title=title, title_justify="left", box=None)
    for column in result.columns[1:]:
        column.justify = "right"
    rows: dict[str, list[Cell]] = {}
    for cell in protocol.cells:
        rows.setdefault(_kind(cell.levels, protocol.replicate), []).append(cell)
    by_name = {state.cell.name: state for state in missing}
    for kind, cells in rows.items():
        others = [by_name[cell.name] for cell in cells if cell.name in by_name]
        running = [str(state.step or 0) for state in others if state.running]
        begun = [str(state.step) for state in others if not state.running and state.step is not None]
        result.add_row(
            kind,
            f"{len(cells) - len(others)}/{len(cells)}",
            f"at step {', '.join(running)}" if running else "",
            ", ".join(begun),
            str(len(others) - len(running) - len(begun) or ""),
        )
    return result


def line(protocol: Protocol, found: Found, missing: list[State]) -> str:
    """How long the rest takes, in words."""
    if not missing:
        return "All runs are done."
    left = seconds_left(protocol, missing, found.results)
    runs = f"{len(missing)} runs" if len(missing) > 1 else "1 run"
    return f"{runs} left: " + ("no run has finished yet" if left is None else f"about {duration(left)} one by one")


def as_json(protocol: Protocol, found: Found, missing: list[State]) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "study": protocol.name,
        "version": protocol.version,
        "protocol": protocol.digest,
        "runs": len(protocol.cells),
        "done": sorted(found.results),
        "left": [{"run": state.cell.name, "step": state.step, "running": state.running} for state in missing],
        "seconds_left": seconds_left(protocol, missing, found.results),
        "problems": list(found.problems),
    }
