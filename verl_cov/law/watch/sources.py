"""What is new in the runs: `verl_cov.law.readers` finds and reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_cov.law.readers import Run, find_runs, log_files, read_metrics


@dataclass
class Source:
    """One run's log, read again whenever it has changed (a resumed run's is truncated by verl)."""

    name: str
    paths: Sequence[Path]
    run: Run | None = None
    _seen: tuple[tuple[int, int], ...] | None = None

    def poll(self) -> bool:
        """Read the log if it is new or has changed; returns whether it was read."""
        try:
            states = [file.stat() for path in self.paths for file in log_files(path)]
            seen = tuple((state.st_mtime_ns, state.st_size) for state in states)
            if seen == self._seen:
                return False
            self.run, self._seen = read_metrics(self.paths), seen
        except OSError:  # NoLog among them: gone or not readable just now; what was there stays on the board
            return False
        return True


def find(arguments: Sequence[Path]) -> list[Source]:
    """The runs that the arguments mean. Raises NoLog, with what was looked for."""
    return [Source(name, paths) for name, paths in find_runs(arguments)]
