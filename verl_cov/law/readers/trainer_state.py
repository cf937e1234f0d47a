"""trainer_state.json of the Hugging Face trainers, TRL's among them, which they write without any logger.

Every checkpoint has one, with the history so far: `{"log_history": [{"step": n, key: value, ...}, ...], ...}`.
Training and evaluation of one step are two entries. ROLL keeps such a history too, with `system/step`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from verl_cov.law.readers.packed import open_log
from verl_cov.law.readers.run import Records, Tell, step_key, whole_step

NAME = "trainer_state.json"

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_HISTORY = re.compile(rb'"log_history"\s*:\s*\[')


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` is a trainer's state. (The keys are sorted: the history comes early.)"""
    return head.lstrip().startswith(b"{") and _HISTORY.search(head) is not None


def records(path: Path, tell: Tell, wanted: str | None = None) -> Records:
    """The records of one file. wanted: the key of the step."""
    history = _history(path)
    if history is None:
        yield None
        return
    for entry in history:
        key = step_key(entry, wanted) if isinstance(entry, dict) else None
        step = whole_step(entry.pop(key)) if key is not None else None
        yield None if step is None else (step, entry)
    tell(path.stat().st_size)


def checkpoint(folder: Path) -> int | None:
    """The number of a checkpoint's folder, or None if it is none."""
    match = _CHECKPOINT.fullmatch(folder.name)
    return int(match[1]) if match else None


def last_of_each_run(states: Sequence[Path]) -> list[Path]:
    """Of several states the last of each run: those whose history does not go on in a later one. A state that cannot be
    read, such as one whose writing was interrupted, counts only if there is no other.

    states: in the order they were written.
    """
    histories = {path: history for path in states if (history := _history(path)) is not None}
    paths = list(histories)
    last = [
        path
        for at, path in enumerate(paths)
        if not any(_goes_on(histories[path], histories[later]) for later in paths[at + 1 :])
    ]
    return last or list(states[-1:])


def _goes_on(history: list[dict[str, object]], other: list[dict[str, object]]) -> bool:
    return len(history) <= len(other) and other[: len(history)] == history


def _history(path: Path) -> list[dict[str, object]] | None:
    try:
        with open_log(path) as file:
            history = json.loads(file.read())["log_history"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return history if isinstance(history, list) else None
