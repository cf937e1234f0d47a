"""Puts the files that were found together to runs, names the runs, and says what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_cov.law.readers import table, wandb
from verl_cov.law.readers.run import NoLog


@dataclass(frozen=True)
class LeftOut:
    """Something that was not read, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass
class FoundRun:
    """A run: its name, and its logs in the order they were written."""

    name: str
    folder: Path  # its parts tell runs of the same name apart
    paths: list[Path]


def no_log(left_out: Sequence[LeftOut]) -> NoLog:
    """The error that there is no run, with what was looked at and what was looked for."""
    reasons = "; ".join(map(str, left_out[:5])) or "nothing was given"
    return NoLog(
        f"{reasons} (it holds no metrics: give a JSON-lines file of verl's `file` logger (trainer.logger=[file], "
        "VERL_FILE_LOGGER_PATH), a console output, a TensorBoard or W&B folder, a trainer_state.json, a CSV with a "
        "step column, or a folder of those)"
    )


def in_folder(path: Path, paths: list[Path]) -> FoundRun:
    """A run that has the name of the folder that `path` lies in."""
    parent = path.parent.resolve()
    return FoundRun(parent.name, parent.parent, paths)


def wandb_run(paths: list[Path]) -> FoundRun:
    """A run of W&B, with the name that it has there."""
    return FoundRun(wandb.run_name(paths[0]) or paths[0].stem.removeprefix("run-"), paths[0].parent, paths)


def add(collected: list[FoundRun], run: FoundRun, step_key: str | None) -> None:
    """Add a run: nothing if it is there, or to the run that it is a part of."""
    if any(set(run.paths) <= set(other.paths) for other in collected):
        return
    if run.paths[0].match(wandb.PATTERN):
        # A resumed run has a folder a launch, with the time in its name after "run-" or "offline-run-".
        for other in collected:
            if other.paths[0].name == run.paths[0].name and other.paths[0].parent.parent == run.paths[0].parent.parent:
                other.paths[:] = sorted({*other.paths, *run.paths}, key=lambda path: path.parent.name.split("run-")[-1])
                return
    chart = _chart(run, step_key)
    for other in collected:
        known = [_chart(FoundRun(other.name, other.folder, [path]), step_key) for path in other.paths]
        if chart and run.name == other.name and all(keys and not keys & chart for keys in known):
            other.paths += run.paths
            return
    collected.append(run)


def _chart(run: FoundRun, step_key: str | None) -> set[str]:
    """The keys of a run that is a column of an exported chart; empty for any other run."""
    path, name = table.split_run(run.paths[0])
    top = table.header(path, step_key) if name is not None else None
    return top.keys(name) if top is not None and name is not None else set()


def distinct_names(collected: list[FoundRun]) -> list[str]:
    """The names of the runs, with as many folders before them as tell them apart."""
    labels = [run.name for run in collected]
    for name in set(labels):
        same = [number for number, run in enumerate(collected) if run.name == name]
        if len(same) == 1:
            continue
        folders = [collected[number].folder.resolve().parts for number in same]
        depths = range(1, max(map(len, folders)) + 1)
        depth = next((depth for depth in depths if len({parts[-depth:] for parts in folders}) == len(same)), None)
        for count, (number, parts) in enumerate(zip(same, folders, strict=True), start=1):
            labels[number] = "/".join([*parts[-depth:], name]) if depth else f"{name} ({count})"
    return labels
