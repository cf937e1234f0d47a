"""The logs of the watched runs, read again when they change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_cov.law.readers import Run, log_files, read_metrics
from verl_cov.law.runs import find_labelled


@dataclass
class Source:
    """One run's log. It is read whole whenever it has changed, as verl truncates the log of a resumed run."""

    name: str
    paths: Sequence[Path]
    run: Run | None = None
    _seen: tuple[tuple[int, int], ...] | None = None

    def poll(self) -> bool:
        """Read the log if it is new or has changed. Returns whether it was read."""
        try:
            states = [file.stat() for path in self.paths for file in log_files(path)]
            seen = tuple((state.st_mtime_ns, state.st_size) for state in states)
            if seen == self._seen:
                return False
            self.run, self._seen = read_metrics(self.paths), seen
        except OSError:  # includes NoLog: the log is gone or unreadable for now, and the board keeps its last state
            return False
        return True


def find(arguments: Sequence[Path], labels: Sequence[tuple[str, Path]] = ()) -> list[Source]:
    """The runs that the arguments and labels name. Raises NoLog, which says what was looked for."""
    return [Source(name, paths) for name, paths in find_labelled(arguments, labels)]
