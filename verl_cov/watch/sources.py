"""Where runs are and what is new in them.

A run is a file of verl's `file` logger. It is named by its folder where the file is called metrics.jsonl, as the demo's
are, and otherwise by its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_cov.law.readers import Run, read_metrics

METRICS = "metrics.jsonl"


@dataclass
class Source:
    """One run's file, read again whenever it has changed (a resumed run's is truncated by verl)."""

    name: str
    path: Path
    run: Run | None = None
    _seen: tuple[int, int] | None = None

    def poll(self) -> bool:
        """Read the file if it is new or has changed; returns whether it was read."""
        try:
            status = self.path.stat()
            seen = (status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return False
            self.run, self._seen = read_metrics(self.path), seen
        except OSError:  # gone or not readable just now: what was there stays on the board
            return False
        return True


def find(arguments: Sequence[Path]) -> list[Source]:
    """The runs that the arguments mean: a metrics file, a run's folder, or a folder of either.

    Names that two runs share get their folders put before them. Raises FileNotFoundError, with what was looked for.
    """
    paths: list[Path] = []
    for argument in arguments:
        found = _files(argument)
        if not found:
            raise FileNotFoundError(
                f"{argument} holds no metrics: give a JSON-lines file of verl's `file` logger (trainer.logger=[file], "
                f"VERL_FILE_LOGGER_PATH) or a folder with {METRICS} or *.jsonl in it or one level below"
            )
        paths += [path for path in found if path not in paths]
    return [Source(name, path) for name, path in zip(_names(paths), paths, strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    whole = [(path.parent if path.name == METRICS else path.with_suffix("")).resolve().parts for path in paths]
    length = [1] * len(paths)
    while True:
        names = ["/".join(parts[-count:]) for parts, count in zip(whole, length, strict=True)]
        clashes = [at for at, name in enumerate(names) if names.count(name) > 1 and length[at] < len(whole[at])]
        if not clashes:
            return names
        for at in clashes:
            length[at] += 1


def _files(argument: Path) -> list[Path]:
    if argument.is_file():
        return [argument]
    if (argument / METRICS).is_file():
        return [argument / METRICS]
    below = sorted(argument.glob(f"*/{METRICS}"))
    return below or sorted(argument.glob("*.jsonl")) or sorted(argument.glob("*/*.jsonl"))
