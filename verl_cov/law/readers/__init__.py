"""Reads the metrics of runs, whatever logger wrote them.

| log                                   | recognised by                        | module          |
|---------------------------------------|--------------------------------------|-----------------|
| W&B's local run                       | its first bytes                      | `wandb`         |
| TensorBoard's event files             | its first record                     | `tensorboard`   |
| trainer_state.json, as TRL leaves it  | its history, within the first 64 KiB | `trainer_state` |
| verl's `file` logger, flat JSON lines | a JSON object in the first 20 lines  | `jsonl`         |
| CSV, W&B's export of a chart          | a step column in the first line      | `table`         |
| verl's `console` logger               | anything else                        | `console`       |

What the numbers mean, whatever the format (verl 0.9.1, trainer/ppo/v1/trainer_base.py): at step n `actor/entropy` and
`critic/score/mean` describe the policy *before* update n (its rollouts), and `val-*` the policy *after* it; step 0
has a validation only. :mod:`verl_cov.law.points` pairs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path

from verl_cov.law.readers import console, jsonl, table, tensorboard, trainer_state, wandb
from verl_cov.law.readers.find import find_runs, log_files
from verl_cov.law.readers.jsonl import parse_line
from verl_cov.law.readers.run import (
    AVERAGE_KEY,
    SCORE_PREFIX,
    NoLog,
    NoPoints,
    Record,
    Records,
    Run,
    Tell,
    merge,
    pick_score,
)

__all__ = [
    "AVERAGE_KEY",
    "SCORE_PREFIX",
    "NoLog",
    "NoPoints",
    "Run",
    "find_runs",
    "log_files",
    "parse_line",
    "pick_score",
    "read_metrics",
]


def read_metrics(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]],
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Read one log, or several logs of one run in the order they were written.

    paths: files, or folders of TensorBoard or W&B. progress: called with (bytes read, bytes in total).

    A step with several records keeps every key; if a key occurs twice the last value wins. A line that is not a record
    (cut off, damaged) is counted in `Run.damaged` and otherwise ignored, so a file that is not a log gives a run
    without records.

    Raises NoPoints, a ValueError: a table holds several runs, or a package for this format is not installed; NoLog,
    also a FileNotFoundError: there is no such file, or no log in the folder.
    """
    if isinstance(paths, (str, PathLike)):
        paths = [paths]
    files = [file for path in paths for file in log_files(Path(path))]
    return merge(_records(files, progress or (lambda done, total: None)))


def _records(files: list[Path], progress: Callable[[int, int], None]) -> Records:
    sizes = [table.split_run(file)[0].stat().st_size for file in files]
    before, total = 0, sum(sizes)
    for file, size in zip(files, sizes, strict=True):

        def tell(done: int, before: int = before, size: int = size) -> None:
            progress(before + min(done, size), total)  # a file that is still being written grows meanwhile

        yield from _file(file, tell)
        before += size
        progress(before, total)


def _file(path: Path, tell: Tell) -> Iterable[Record]:
    path, run = table.split_run(path)
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if wandb.recognises(head):
        return wandb.records(path, tell)
    if tensorboard.recognises(head):
        return tensorboard.records(path, tell)
    if trainer_state.recognises(head):
        return trainer_state.records(path, tell)
    if jsonl.recognises(head):
        return jsonl.records(path, tell)
    if table.recognises(head):
        return table.records(path, tell, run)
    return console.records(path, tell)
