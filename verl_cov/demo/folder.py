"""Folders of the demo: which one an invocation works in, what stands in a run's, and how nothing in it gets lost.

runs/demo/            a set of runs with the same settings; the next set is runs/demo-2
  .lock               held while a demo or a training of this set is alive
  vanilla/
    status.json       state (running, stopped, failed, finished), steps, seconds, settings and their fingerprint
    metrics.jsonl     every record of verl's file logger, one a step; lines are only ever appended
    segments/         verl's own metrics files, 001.jsonl and on, one a launch
    train.log         everything the training printed, launch after launch
    command.txt       the command of every launch
    checkpoints/, hydra/
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_cov.law.readers import parse_line

NAMES = ("vanilla", "clip_cov", "kl_cov")


class DemoError(Exception):
    """Something the user has to know, in one line or few: printed without a traceback."""


def next_segment(folder: Path) -> Path:
    """The file after 001.jsonl, 002.jsonl, ... in `folder`: verl opens its log "wb", so each launch gets its own."""
    taken = (int(path.stem) for path in folder.glob("[0-9]*.jsonl") if path.stem.isdigit())
    return folder / f"{max(taken, default=0) + 1:03d}.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def segments(self) -> list[Path]:
        """verl's metrics files so far, in the order they were written."""
        return sorted((self.path / "segments").glob("[0-9]*.jsonl"))

    def next_segment(self) -> Path:
        """A path for the next launch's metrics."""
        path = next_segment(self.path / "segments")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def status(self) -> dict[str, Any] | None:
        """What status.json says, or None if it is missing or damaged."""
        try:
            status = json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return None
        return status if isinstance(status, dict) and "state" in status and "fingerprint" in status else None

    def write_status(self, **changes: Any) -> None:
        """Update status.json; a reader, or a kill, never meets half of it."""
        self.path.mkdir(parents=True, exist_ok=True)
        scratch = self.path / "status.json.tmp"
        scratch.write_text(json.dumps({**(self.status() or {}), **changes}, indent=2) + "\n")
        os.replace(scratch, self.path / "status.json")

    def finished(self) -> bool:
        return (self.status() or {}).get("state") == "finished"

    def checkpoint_step(self) -> int | None:
        """The step verl would resume from (it keeps it in a file of its own), or None if there is no checkpoint."""
        try:
            return int((self.checkpoints / "latest_checkpointed_iteration.txt").read_text())
        except (OSError, ValueError):
            return None


class Metrics:
    """metrics.jsonl of one run, fed from verl's segment files. Appends only; a record that is there is not written
    again.

    A resumed run trains the steps after its checkpoint once more: both records of such a step stand here, the valid one
    last, which is how the readers merge them.
    """

    def __init__(self, folder: RunFolder):
        self._path = folder.metrics
        self.steps: set[int] = set()
        whole = self._path.read_bytes() if self._path.exists() else b""
        self._lines = {line.strip() for line in whole.splitlines()}
        self.steps.update(record[0] for record in map(parse_line, whole.splitlines()) if record is not None)
        if whole and not whole.endswith(b"\n"):  # killed in mid-line: the next record must not be glued to the rest
            self._append(b"\n")
        for segment in folder.segments():  # what the training wrote after its runner had been killed
            Segment(segment, self).poll()

    def add(self, line: bytes, step: int) -> None:
        if line.strip() not in self._lines:
            self._append(line)
            self._lines.add(line.strip())
            self.steps.add(step)

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(line)


class Segment:
    """One of verl's metrics files, while it grows."""

    def __init__(self, path: Path, metrics: Metrics):
        self._path, self._metrics = path, metrics
        self._read, self._rest = 0, b""

    def poll(self) -> list[tuple[int, dict[str, Any]]]:
        """The records completed since the last call, each copied to metrics.jsonl. A line still being written waits."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                fresh = file.read()
        except FileNotFoundError:
            return []
        self._read += len(fresh)
        *lines, self._rest = (self._rest + fresh).split(b"\n")
        records = []
        for line in lines:
            if record := parse_line(line):
                self._metrics.add(line + b"\n", record[0])
                records.append(record)
        return records


@dataclass(frozen=True)
class Choice:
    """The folder to work in. note: one line for the user that says which and why."""

    path: Path
    note: str


def choose(runs_dir: Path, names: Sequence[str], fingerprint: str, settings: Sequence[str]) -> Choice:
    """The first of runs_dir, runs_dir-2, ... that is new, or has these settings and a run among `names` not finished.

    So nothing finished is trained again or overwritten, and runs of different settings are never mixed in one folder.
    """
    reason = ""
    for number in range(1, 10_000):
        path = runs_dir if number == 1 else runs_dir.with_name(f"{runs_dir.name}-{number}")
        if path.exists() and not path.is_dir():
            raise DemoError(f"{path} is a file: give a folder with --runs-dir")
        runs = [RunFolder(path / name) for name in NAMES]
        present = [run for run in runs if run.path.is_dir() and any(run.path.iterdir())]
        if not present:
            return Choice(path, f"New set of runs in {path}: {', '.join(names)}{reason}")
        obstacle = _other_settings(present, fingerprint, settings)
        if obstacle is None and all(run.finished() for run in runs if run.name in names):
            obstacle = "is finished"
        if obstacle is None:
            return Choice(path, f"Continuing {path}: {', '.join(_plan(path / name) for name in names)}{reason}")
        reason = f" ({path} {obstacle})"
    raise DemoError(f"no free folder beside {runs_dir}: give another one with --runs-dir")


def _other_settings(present: Sequence[RunFolder], fingerprint: str, settings: Sequence[str]) -> str | None:
    for run in present:
        status = run.status()
        if status is None:
            return f"holds something else ({run.name} has no readable status.json)"
        if status["fingerprint"] != fingerprint:
            other = [setting for setting in status.get("settings", []) if setting not in settings]
            return f"has other settings ({', '.join(other) or 'fewer overrides'})"
    return None


def _plan(path: Path) -> str:
    run = RunFolder(path)
    if run.finished():
        return f"{run.name} is finished"
    if run.status() is None:
        return f"{run.name} starts"
    step = run.checkpoint_step()
    return f"{run.name} starts over (no checkpoint yet)" if step is None else f"{run.name} resumes after step {step}"


@contextmanager
def lock(path: Path) -> Iterator[int]:
    """Hold `path` for this demo; yields a descriptor that the training inherits.

    The lock lasts as long as any process has it open. So when the runner alone is killed, its training still holds the
    folder and a second one cannot be started over it. Raises DemoError if somebody else has it.
    """
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 100).decode(errors="replace").strip() or "unknown process"
            raise DemoError(f"{path} is in use ({holder}): wait for it, end it, or give another --runs-dir") from None
        yield descriptor
    finally:
        os.close(descriptor)


def say_who(descriptor: int, text: str) -> None:
    """Write into the lock who holds it, for whoever finds it held."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode() + b"\n", 0)
