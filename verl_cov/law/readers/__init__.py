"""Reads the metrics of runs, whatever logger wrote them.

| log                                   | recognised by                        | module            |
|---------------------------------------|--------------------------------------|-------------------|
| W&B's local run                       | its first bytes                      | `wandb`           |
| TensorBoard's event files             | its first record                     | `tensorboard`     |
| trainer_state.json, as TRL leaves it  | its history, within the first 64 KiB | `trainer_state`   |
| CSV, W&B's export of a chart          | a step column in the first line      | `table`           |
| a result of `verl-cov study`          | the same below a line of JSON        | `table`           |
| verl's `file` logger, flat JSON lines | a JSON object in the first 20 lines  | `jsonl`           |
| verl's `console` logger               | anything else                        | `console, dashes` |
| dictionaries that trainers print      | anything else                        | `console, dicts`  |

All but the first two may be packed by gzip (`packed`).

What the numbers mean, whatever the format (verl 0.9.1, trainer/ppo/v1/trainer_base.py): at step n `actor/entropy` and
`critic/score/mean` describe the policy *before* update n (its rollouts), and `val-*` the policy *after* it; step 0
has a validation only. :mod:`verl_cov.law.points` pairs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path

from verl_cov.law.readers import console, jsonl, table, tensorboard, trainer_state, wandb
from verl_cov.law.readers.find import find, find_runs, log_files
from verl_cov.law.readers.gather import LeftOut, no_log
from verl_cov.law.readers.jsonl import parse_line
from verl_cov.law.readers.packed import damage, is_packed, open_log
from verl_cov.law.readers.run import (
    AVERAGE_KEY,
    DETECTED,
    SCORE_PREFIX,
    Aside,
    Join,
    NoLog,
    NoPoints,
    Records,
    Run,
    Tell,
    Wanted,
    merge,
    pick_score,
    whole_step,
)

__all__ = [
    "AVERAGE_KEY",
    "DETECTED",
    "SCORE_PREFIX",
    "Join",
    "LeftOut",
    "NoLog",
    "NoPoints",
    "Run",
    "Wanted",
    "find",
    "find_runs",
    "log_files",
    "no_log",
    "open_log",
    "parse_line",
    "pick_score",
    "read_metrics",
]


def read_metrics(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]],
    progress: Callable[[int, int], None] | None = None,
    step_key: str | None = None,
) -> Run:
    """Read one log, or several logs of one run in the order they were written.

    paths: files, or folders of one run. progress: called with (bytes read, bytes in total). step_key: the column that
    holds the step, instead of the detected one.

    A step with several records keeps every key; if a key occurs twice the last value wins. A line that is not a record
    (cut off, damaged) is counted in `Run.damaged` and otherwise ignored, so a file that is not a log gives a run
    without records.

    Raises NoPoints, a ValueError: a table or folder holds several runs, there is no step, or a package for this format
    is not installed; NoLog, also a FileNotFoundError: there is no such file, or no log in the folder.
    """
    if isinstance(paths, (str, PathLike)):
        paths = [paths]
    files = [file for path in paths for file in log_files(Path(path))]
    return merge(_records(files, progress or (lambda done, total: None), step_key))


def _records(files: list[Path], progress: Callable[[int, int], None], step_key: str | None) -> Records:
    sizes = [table.split_run(file)[0].stat().st_size for file in files]
    before, total = 0, sum(sizes)
    for file, size in zip(files, sizes, strict=True):

        def tell(done: int, before: int = before, size: int = size) -> None:
            progress(before + min(done, size), total)  # a file that is still being written grows meanwhile

        if why := damage(table.split_run(file)[0]):
            yield Aside(damage=why)
        yield from _file(file, tell, step_key)
        before += size
        progress(before, total)


def _file(path: Path, tell: Tell, step_key: str | None) -> Records:
    path, run = table.split_run(path)
    with open_log(path) as file:
        head = file.read(1 << 16)
    if is_packed(path) and (wandb.recognises(head) or tensorboard.recognises(head)):
        raise NoPoints(f"{path} is packed: unpack it with gunzip")
    if wandb.recognises(head):
        return wandb.records(path, tell, step_key)
    if tensorboard.recognises(head):
        return _by(step_key, tensorboard.records(path, tell), path)
    if trainer_state.recognises(head):
        return trainer_state.records(path, tell, step_key)
    if table.recognises(head, step_key):
        return table.records(path, tell, run, step_key)
    # A console log can begin with a configuration in JSON.
    if jsonl.recognises(head) and (jsonl.is_log(head) or not console.has_record(path, dictionaries=False)):
        return jsonl.records(path, tell, step_key)
    if columns := table.stepless(head):
        asked = f"no step {step_key!r}" if step_key is not None else "no step"
        raise NoPoints(f"{asked} among the columns of {path}: choose one with --step-key: {', '.join(columns)}")
    return _by(step_key, console.records(path, tell), path)


def _by(step_key: str | None, records: Records, path: Path) -> Records:
    """The records, numbered by one of their own values. A record without it is left out."""
    if step_key is None:
        yield from records
        return
    keys: set[str] = set()
    found = False
    for record in records:
        if isinstance(record, Aside):
            yield record
            continue
        keys.update(record[1] if record is not None else ())
        step = whole_step(record[1].get(step_key)) if record is not None else None
        found |= step is not None
        if record is None or step is not None:
            yield None if record is None or step is None else (step, record[1])
    if keys and not found:
        raise NoPoints(f"no step {step_key!r} in {path}: choose one with --step-key: {', '.join(sorted(keys)[:10])}")
