"""Finds the runs in files and folders.

A file is a run. In a folder the first of these formats that is present counts, so that a run with several loggers is
reported once:

| what                                        | levels below | a run is            | its name                      |
|---------------------------------------------|--------------|---------------------|-------------------------------|
| metrics.jsonl                               | 0, 1         | a file              | the folder's                  |
| *.jsonl of verl's `file` logger             | 0, 1         | a file              | the file's, without .jsonl    |
| 001.jsonl, 002.jsonl, ... of the same       | 0, 1         | all in a folder     | the folder's                  |
| TensorBoard's event files                   | 0 to 3       | all in a folder     | the folder's                  |
| W&B's run-ID.wandb                          | 0 to 3       | all files of one ID | what W&B shows                |
| *.csv, *.tsv with a step column             | 0            | a file, or a column | the file's, or the column's   |
| *.log, *.out, *.txt of the `console` logger | 0, 1         | a file              | the file's (train.log: folder)|
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_cov.law.readers import console, jsonl, table, tensorboard, wandb
from verl_cov.law.readers.run import NoLog

METRICS = "metrics.jsonl"
_NAMED_BY_FOLDER = (METRICS, "train.log", "trainer_state.json")


@dataclass
class _FoundRun:
    name: str
    folder: Path  # its parts tell runs of the same name apart
    paths: list[Path]


def find_runs(arguments: Sequence[Path]) -> list[tuple[str, list[Path]]]:
    """The runs that the arguments name, each once, in order: (name, paths for `read_metrics`).

    An argument is a log, a run's folder, a folder of runs, or FILE::RUN for one run of a table that holds several. Runs
    of the same name are told apart by the folders before it. Exported charts of one run, each a table, become one run.

    Raises NoLog, which says what was looked for.
    """
    collected: list[_FoundRun] = []
    for argument in arguments:
        runs = _search(argument)
        if not runs:
            raise NoLog(
                f"{argument} holds no metrics: give a JSON-lines file of verl's `file` logger (trainer.logger=[file], "
                "VERL_FILE_LOGGER_PATH), verl's console output, a TensorBoard or W&B folder, a CSV with a step column, "
                "or a folder of those"
            )
        for run in runs:
            _add(collected, run)
    return list(zip(_distinct(collected), (run.paths for run in collected), strict=True))


def log_files(path: Path) -> list[Path]:
    """The files of the log `path`: the file itself, or the logs in the folder. Raises NoLog."""
    if path.is_dir():
        files = tensorboard.event_files(path) or sorted(path.glob(wandb.PATTERN))
        files = files or [path / METRICS] * (path / METRICS).is_file()
        if not files:
            raise NoLog(f"no log in the folder {path}: looked for event files, {wandb.PATTERN} and {METRICS}")
        return files
    if not table.split_run(path)[0].is_file():
        raise NoLog(f"no metrics file at {path}: give a log of verl, TensorBoard or W&B, or a table")
    return [path]


def _search(argument: Path) -> list[_FoundRun]:
    if argument.is_dir():
        for look in (_metrics, _verl, _events, _wandb, _tables, _consoles):
            if runs := look(argument):
                return runs
        return []
    file, run = table.split_run(argument)
    if run is not None and file.is_file():
        return [_FoundRun(run, file.parent, [argument])]
    return _file_run(argument) if argument.is_file() else []


def _file_run(path: Path) -> list[_FoundRun]:
    if wandb.recognises(_head(path)):
        return [_wandb_run([path])]
    if tensorboard.recognises(_head(path)) or path.name in _NAMED_BY_FOLDER:
        return [_in_folder(path, [path])]
    top = table.header(path) if table.recognises(_head(path)) else None
    if top is not None and top.runs() not in ([], [""]):
        return [_FoundRun(run, path.parent, [Path(f"{path}::{run}")]) for run in top.runs()]
    return [_FoundRun(path.stem, path.parent, [path])]


def _metrics(folder: Path) -> list[_FoundRun]:
    own = [folder / METRICS] * (folder / METRICS).is_file()
    return [_in_folder(path, [path]) for path in own or sorted(folder.glob(f"*/{METRICS}"))]


def _verl(folder: Path) -> list[_FoundRun]:
    for pattern in ("*.jsonl", "*/*.jsonl"):
        # By content: verl's dumps of rollouts are *.jsonl too, and numbered. (A run that has just begun has none yet.)
        heads = {path: _head(path) for path in sorted(folder.glob(pattern))}
        paths = [path for path, head in heads.items() if not head or jsonl.is_verl(head)]
        segments: dict[Path, list[Path]] = {}
        for path in paths:
            if path.stem.isdigit():
                segments.setdefault(path.parent, []).append(path)
        runs = [_in_folder(parts[0], sorted(parts, key=lambda path: int(path.stem))) for parts in segments.values()]
        runs += [_FoundRun(path.stem, path.parent, [path]) for path in paths if not path.stem.isdigit()]
        if runs:
            return runs
    return []


def _events(folder: Path) -> list[_FoundRun]:
    folders = sorted({path.parent for path in _below(folder, tensorboard.PATTERN)})
    return [_in_folder(path / "events", [path]) for path in folders]


def _wandb(folder: Path) -> list[_FoundRun]:
    runs: dict[str, list[Path]] = {}
    for path in {path.resolve(): path for path in _below(folder, wandb.PATTERN)}.values():  # latest-run is a link
        runs.setdefault(path.stem, []).append(path)
    # A resumed run has a folder a launch, with the time in its name after "run-" or "offline-run-".
    return [_wandb_run(sorted(paths, key=lambda path: path.parent.name.split("run-")[-1])) for paths in runs.values()]


def _tables(folder: Path) -> list[_FoundRun]:
    paths = sorted([*folder.glob("*.csv"), *folder.glob("*.tsv")])
    return [run for path in paths if table.recognises(_head(path)) for run in _file_run(path)]


def _consoles(folder: Path) -> list[_FoundRun]:
    for level in ("", "*/"):
        paths = sorted(path for ending in ("log", "out", "txt") for path in folder.glob(f"{level}*.{ending}"))
        if runs := [run for path in paths if console.has_record(path) for run in _file_run(path)]:
            return runs
    return []


def _below(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for level in range(4) for path in folder.glob("*/" * level + pattern) if path.is_file())


def _in_folder(path: Path, paths: list[Path]) -> _FoundRun:
    parent = path.parent.resolve()
    return _FoundRun(parent.name, parent.parent, paths)


def _wandb_run(paths: list[Path]) -> _FoundRun:
    return _FoundRun(wandb.run_name(paths[0]) or paths[0].stem.removeprefix("run-"), paths[0].parent, paths)


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(1 << 16)


def _add(collected: list[_FoundRun], run: _FoundRun) -> None:
    if any(set(run.paths) <= set(other.paths) for other in collected):
        return
    chart = _chart(run)
    for other in collected:
        known = [_chart(_FoundRun(other.name, other.folder, [path])) for path in other.paths]
        if chart and run.name == other.name and all(keys and not keys & chart for keys in known):
            other.paths += run.paths
            return
    collected.append(run)


def _chart(run: _FoundRun) -> set[str]:
    """The keys of a run that is a column of an exported chart; empty for any other run."""
    path, name = table.split_run(run.paths[0])
    top = table.header(path) if name is not None else None
    return top.keys(name) if top is not None and name is not None else set()


def _distinct(collected: list[_FoundRun]) -> list[str]:
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
