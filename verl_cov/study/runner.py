"""Trains what a study lacks, one run after another, by the recipes' own runner, and keeps each finished one as a file.

It may be killed at any point. A run that has finished but left no file is only written; one that was cut goes on from
verl's checkpoint; checkpoints are removed once the file is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from verl_cov import terminal
from verl_cov.law.readers import Run, find_runs, read_metrics
from verl_cov.recipes import child, plan
from verl_cov.recipes.launch import Launch
from verl_cov.recipes.plan import Planned
from verl_cov.recipes.progress import Progress
from verl_cov.recipes.train import TrainingFailed, in_use
from verl_cov.study import results
from verl_cov.study.protocol import Cell, Protocol

MOST_FAILURES = 2  # one after the other: then it is not the runs


@dataclass(frozen=True)
class Places:
    """Folders. data: of the results of all studies; runs: of trainings; toy: of tiny models and toy tasks; sets: what
    `verl-cov data prepare` wrote."""

    data: Path
    runs: Path
    toy: Path
    sets: Path

    def folder(self, protocol: Protocol, cell: Cell) -> Path:
        """Where a run trains."""
        return self.runs / protocol.name / cell.name


class Stopped(Exception):
    """The study goes no further; the message is a line."""


def run(
    protocol: Protocol,
    cells: Sequence[Cell],
    places: Places,
    console: Console,
    *,
    at_most: int | None = None,
    verbose: bool = False,
) -> int:
    """Go through the cells, or the first `at_most` that are to do; returns how many of them failed or could not start.

    Raises KeyboardInterrupt, and Stopped after `MOST_FAILURES` runs in a row that failed.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    todo = list(_todo(protocol, cells, places, say))
    failed = in_a_row = 0
    for number, cell in enumerate(todo[:at_most], 1):
        say(f"{number} of {len(todo)} runs to do: {cell.name}")
        if in_use(places.folder(protocol, cell)):
            say(f"{cell.name} is being trained by another process: skipped")
            continue
        try:
            planned = _prepare(protocol, cell, places)
            if not planned.finished:
                say(planned.note)
                with Progress(console, verbose=verbose) as progress:
                    planned.train(progress)
            say(f"written: {keep(protocol, cell, places, planned)}")
            in_a_row = 0
        except (TrainingFailed, ValueError, OSError) as error:
            say(f"{cell.name}: {error if isinstance(error, TrainingFailed) else terminal.told(error)}")
            failed, in_a_row = failed + 1, in_a_row + 1
            if in_a_row == MOST_FAILURES:
                raise Stopped(f"{MOST_FAILURES} runs one after the other failed: stopped") from None
    return failed


def _todo(protocol: Protocol, cells: Sequence[Cell], places: Places, say: Callable[[str], None]) -> Iterator[Cell]:
    """The cells without a result. A damaged one is made again; one of another protocol is left, and told."""
    for cell in cells:
        try:
            if results.read(places.data, protocol, cell) is not None:
                _remove_checkpoints(places.folder(protocol, cell))
                continue
        except results.Damaged as error:
            say(str(error))
        except results.OtherProtocol as error:
            say(f"left alone: {error}")
            continue
        yield cell


def _prepare(protocol: Protocol, cell: Cell, places: Places) -> Planned:
    """The run, ready to be trained. Raises ValueError for what this machine or the configuration lacks."""
    planned, findings = child.in_child(
        plan.prepare, [cell.selection], places.sets, places.toy, places.runs / protocol.name, again=False
    )
    missing = [finding.text for finding in findings if finding.missing]
    if missing:
        raise ValueError("; ".join(missing))
    return planned[0]


def keep(protocol: Protocol, cell: Cell, places: Places, planned: Planned) -> Path:
    """Write a finished run's file, then remove its checkpoints. Returns the file's path."""
    folder = planned.launch.folder
    path = results.write(
        places.data,
        protocol,
        cell,
        metrics(folder),
        seconds=seconds(planned.launch),
        parameters=parameters(Path(planned.config.actor_rollout_ref.model.path)),
    )
    _remove_checkpoints(folder)
    return path


def metrics(folder: Path) -> Run:
    """What a run has logged so far. Raises NoLog, a ValueError."""
    [(_, paths)] = find_runs([folder])
    return read_metrics(paths)


def seconds(launch: Launch) -> float:
    """What the launches of a run took, each to its last line of metrics."""
    taken = 0.0
    for entry in launch.entries():
        log = launch.folder / entry.get("metrics", "")
        if "when" in entry and log.is_file():
            begun = datetime.strptime(entry["when"], "%Y-%m-%d %H:%M:%S %z").timestamp()
            taken += max(log.stat().st_mtime - begun, 0.0)
    return taken


def parameters(model: Path) -> int | None:
    """How many parameters a checkpoint has without its embeddings, None if its files do not say."""
    from safetensors import safe_open

    count = 0
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a mapping
                if "embed_tokens" not in name and "lm_head" not in name:
                    size = 1
                    for length in tensors.get_slice(name).get_shape():
                        size *= length
                    count += size
    return count or None


def _remove_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
