"""Finds the runs in files and folders.

A file is a run. A folder is searched to the bottom; in each folder the first of these formats that is present counts,
and in what lies below a run's folder only that one, so that a run with several loggers is reported once. (Files with
names of their own are runs of their own in all formats, but not if only the ending differs.)

| what                                               | a run is            | its name                        |
|----------------------------------------------------|---------------------|---------------------------------|
| metrics.jsonl                                      | a file              | the folder's                    |
| other *.jsonl with records of training (see jsonl) | a file              | the file's; logging.jsonl: folder |
| 001.jsonl, 002.jsonl, ... of verl's `file` logger  | all in a folder     | the folder's                    |
| trainer_state.json, also that of checkpoint-N      | the last of a run   | the folder's                    |
| TensorBoard's event files                          | all in a folder     | the folder's                    |
| W&B's run-ID.wandb                                 | all files of one ID | what W&B shows                  |
| *.csv, *.tsv with a step column                    | a file, or a column | the file's, or the column's     |
| *.log, *.out, *.txt of the console                 | a file              | the file's (train.log: folder)  |

Each of them but TensorBoard's and W&B's may be packed by gzip (`.gz`); beside its own unpacked file it does not count.

Whatever is passed over is said, with the reason: a folder or a log file without a record, a log in another format below
that of a run, what cannot be read, what lies too deep. Folders whose name begins with a dot are not looked into.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from verl_cov.law.readers import console, jsonl, table, tensorboard, trainer_state, wandb
from verl_cov.law.readers.gather import FoundRun, LeftOut, add, distinct_names, in_folder, no_log, wandb_run
from verl_cov.law.readers.packed import open_log, stem, unpacked, without_copies
from verl_cov.law.readers.run import NoLog

METRICS = "metrics.jsonl"
_NAMED_BY_FOLDER = (METRICS, "logging.jsonl", "train.log", trainer_state.NAME)
_DEEPEST = 12  # folders below the one that was given
_MOST_FOLDERS = 20_000


def find_runs(
    arguments: str | PathLike[str] | Iterable[str | PathLike[str]], step_key: str | None = None
) -> list[tuple[str, list[Path]]]:
    """The runs that the arguments name, each once, in order: (name, paths for `read_metrics`).

    An argument is a log, a run's folder, a folder of runs, or FILE::RUN for one run of a table that holds several. Runs
    of the same name are told apart by the folders before it. Exported charts of one run, each a table, become one run.

    Raises NoLog, which says what was looked for, if there is none.
    """
    runs, left_out = find(arguments, step_key)
    if not runs:
        raise no_log(left_out)
    return runs


def find(
    arguments: str | PathLike[str] | Iterable[str | PathLike[str]], step_key: str | None = None
) -> tuple[list[tuple[str, list[Path]]], list[LeftOut]]:
    """The runs as in `find_runs`, perhaps none, and what was passed over. step_key: the step column of tables."""
    given = [arguments] if isinstance(arguments, (str, PathLike)) else arguments
    search = _Search(step_key)
    for argument in map(Path, given):
        search.look(argument)
    collected: list[FoundRun] = []
    for run in search.runs:
        add(collected, run, step_key)
    names = distinct_names(collected)
    return list(zip(names, (run.paths for run in collected), strict=True)), search.left_out


def log_files(path: Path) -> list[Path]:
    """The files of the log `path`: the file itself, or the logs of the one run in the folder. Raises NoLog."""
    if path.is_dir():
        files = tensorboard.event_files(path) or sorted(path.glob(wandb.PATTERN))
        files = files or [path / METRICS] * (path / METRICS).is_file()
        if not files:
            runs, _ = find(path)
            if len(runs) > 1:
                names = ", ".join(name for name, _ in runs[:5])
                raise NoLog(f"{path} holds {len(runs)} runs ({names}): give one of them, see find_runs")
            files = [file for _, paths in runs for one in paths for file in log_files(one)]
        if not files:
            raise NoLog(f"no log in the folder {path}: looked for event files, {wandb.PATTERN}, {METRICS} and others")
        return files
    if not table.split_run(path)[0].is_file():
        raise NoLog(f"no metrics file at {path}: give a log of verl, TensorBoard or W&B, or a table")
    return [path]


def _only_pictures(folder: Path) -> bool:
    """Tells whether a folder holds what `plot` and `report` write, and nothing else."""
    names = list(folder.iterdir())
    return bool(names) and all(path.suffix in _PICTURES for path in names)


_Format = Callable[["_Search", Path, list[Path]], list[FoundRun]]


@dataclass
class _Search:
    step_key: str | None
    runs: list[FoundRun] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    _visited: set[str] = field(default_factory=set)

    def look(self, argument: Path) -> None:
        """Collect the runs of one argument."""
        before = len(self.runs), len(self.left_out)
        file, run = table.split_run(argument)
        try:
            if argument.is_dir():
                self._visited.discard(os.path.realpath(argument))
                self._walk(argument, 0, None)
                if (len(self.runs), len(self.left_out)) == before:
                    self._leave(argument, "no log of a known kind in it")
            elif run is not None and file.is_file():
                self.runs.append(FoundRun(run, file.parent, [argument]))
            elif argument.is_file():
                self.runs += self._file_run(argument)
            else:
                self._leave(argument, "no such file or folder")
        except OSError as error:
            self._leave(argument, _reason(error))

    def _walk(self, folder: Path, depth: int, above: _Format | None) -> bool:
        """Collect the runs in and below a folder. above: the format of the run that it lies below. Returns whether
        there was anything to say of it."""
        real = os.path.realpath(folder)  # a link may lead back up
        if real in self._visited:
            return True
        self._visited.add(real)
        if depth > _DEEPEST or len(self._visited) > _MOST_FOLDERS:
            return self._leave(
                folder, "it lies too deep: give it by itself" if depth > _DEEPEST else "too many folders"
            )
        try:
            entries = sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path.name))
            folders = [path for path in entries if path.is_dir() and not path.name.startswith(".")]
            files = without_copies([path for path in entries if path.is_file()])
        except OSError as error:
            return self._leave(folder, _reason(error))
        said = len(self.left_out)
        for path in entries:
            if path.is_symlink() and not path.exists() and unpacked(path).suffix in _ENDINGS:
                self._leave(path, "a link that leads nowhere")
        before = len(self.runs)
        own = next((form for form in _FORMATS if self._take(form, folder, files, above)), None)
        if own is _wandb:
            return True
        # A run has the folder to itself, with all that lies below it, unless its files have names of their own.
        whole = own is not None and any(run.name == folder.resolve().name for run in self.runs[before:])
        if own is not None and above is None:
            self._beside(own, folder, files, self.runs[before:], whole)
        found = own is not None
        silent = []
        for inner in folders:
            if own is _states and trainer_state.checkpoint(inner) is not None:
                continue
            if self._walk(inner, depth + 1, own if whole else above):
                found = True
            elif not _only_pictures(inner):
                silent.append(inner)
        if above is None and not whole:
            looked = [path.name for path in files if unpacked(path).suffix in _ENDINGS]
            if found:
                for inner in silent:
                    self._leave(inner, "no log of a known kind in it")
            elif looked and depth:
                names = ", ".join(looked[:5]) + (", ..." if len(looked) > 5 else "")
                self._leave(folder, f"no log of a known kind in it (looked at {names})")
        return found or len(self.left_out) > said

    def _take(self, form: _Format, folder: Path, files: list[Path], above: _Format | None) -> bool:
        """Collect the runs of one format in a folder; those of another than the run's above are only named."""
        said = len(self.left_out)
        runs = form(self, folder, files)
        if above is not None and form is not above:
            del self.left_out[said:]
            for run in runs:
                self._leave(run.paths[0], "it lies below the log of another run in another format: give it by itself")
            return False
        self.runs += runs
        return bool(runs)

    def _beside(self, own: _Format, folder: Path, files: list[Path], taken: list[FoundRun], whole: bool) -> None:
        """Logs in other formats in the folder of a run: other runs, unless the run has the folder to itself."""
        for form in _FORMATS[_FORMATS.index(own) + 1 :]:
            said = len(self.left_out)
            others = form(self, folder, files) if form in (_tables, _consoles) else []
            if whole:
                del self.left_out[said:]
            for run in others:
                file, _ = table.split_run(run.paths[0])
                if unpacked(file).name in _NAMED_BY_FOLDER or stem(file) in {stem(one.paths[0]) for one in taken}:
                    continue  # the same run once more
                if not whole:
                    self.runs.append(run)
                else:
                    self._leave(file, "it lies beside the log that counts for its folder: give it by itself")

    def _leave(self, path: Path, reason: str) -> bool:
        self.left_out.append(LeftOut(path, reason))
        return True

    def _file_run(self, path: Path) -> list[FoundRun]:
        head = self._head(path)
        if wandb.recognises(head):
            return [wandb_run([path])]
        if tensorboard.recognises(head) or unpacked(path).name in _NAMED_BY_FOLDER:
            return [in_folder(path, [path])]
        top = table.header(path, self.step_key) if table.recognises(head, self.step_key) else None
        if top is not None and top.runs() not in ([], [""]):
            return [FoundRun(run, path.parent, [Path(f"{path}::{run}")]) for run in top.runs()]
        return [FoundRun(stem(path), path.parent, [path])]

    def _head(self, path: Path) -> bytes:
        try:
            with open_log(path) as file:
                return file.read(1 << 16)
        except OSError as error:
            self._leave(path, _reason(error))
            return b"\0"


def _lines(search: _Search, folder: Path, files: list[Path]) -> list[FoundRun]:
    for path in files:
        if unpacked(path).name == METRICS:
            return [in_folder(path, [path])]
    # By content: verl's dumps of rollouts are *.jsonl too, and numbered. (A run that has just begun has none yet.)
    heads = {path: search._head(path) for path in files if unpacked(path).suffix == ".jsonl"}
    paths = [path for path, head in heads.items() if not head or jsonl.is_log(head)]
    segments = sorted((path for path in paths if stem(path).isdigit()), key=lambda path: int(stem(path)))
    runs = [in_folder(segments[0], segments)] if segments else []
    return runs + [run for path in paths if not stem(path).isdigit() for run in search._file_run(path)]


def _states(search: _Search, folder: Path, files: list[Path]) -> list[FoundRun]:
    numbers = {path: trainer_state.checkpoint(path) for path in folder.iterdir()}
    checkpoints = sorted((number, path) for path, number in numbers.items() if number is not None)
    states = [state for _, path in checkpoints if (state := path / trainer_state.NAME).is_file()]
    states += [path for path in files if unpacked(path).name == trainer_state.NAME]
    last = trainer_state.last_of_each_run(states)
    for path in states:
        if path not in last:
            search._leave(path, f"it is an earlier state of a run whose last is {last[-1].parent.name}")
    if len(last) == 1:
        return [in_folder(folder / trainer_state.NAME, last)]
    return [in_folder(path, [path]) for path in last]


def _events(search: _Search, folder: Path, files: list[Path]) -> list[FoundRun]:
    return [in_folder(folder / "events", [folder])] if any(path.match(tensorboard.PATTERN) for path in files) else []


def _wandb(search: _Search, folder: Path, files: list[Path]) -> list[FoundRun]:
    return [wandb_run([path]) for path in files if path.match(wandb.PATTERN)]


def _tables(search: _Search, folder: Path, files: list[Path]) -> list[FoundRun]:
    runs = []
    for path in files:
        if unpacked(path).suffix in (".csv", ".tsv"):
            head = search._head(path)
            if table.recognises(head, search.step_key):
                runs += search._file_run(path)
            elif columns := table.stepless(head):
                search._leave(path, f"no step among its columns: choose one with --step-key: {', '.join(columns)}")
    return runs


def _consoles(search: _Search, folder: Path, files: list[Path]) -> list[FoundRun]:
    runs: list[Path] = []
    others: list[Path] = []
    for path in files:
        if unpacked(path).suffix in (".log", ".out", ".txt"):
            try:
                held = console.has_record(path)
            except OSError as error:
                search._leave(path, _reason(error))
                continue
            (runs if held else others).append(path)
    for path in others if runs else []:
        search._leave(path, "no record of a training in it")
    return [run for path in runs for run in search._file_run(path)]


_FORMATS: tuple[_Format, ...] = (_lines, _states, _events, _wandb, _tables, _consoles)
_PICTURES = (".png", ".pdf", ".svg", ".html")
_ENDINGS = (".jsonl", ".csv", ".tsv", ".log", ".out", ".txt", ".json", ".wandb")


def _reason(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or error}"
