"""trainer_state.json of the Hugging Face trainers, TRL's among them, which they write without any logger.

Every checkpoint has one, with the history so far: `{"log_history": [{"step": n, key: value, ...}, ...], ...}`.
Training and evaluation of one step are two entries.
"""

from __future__ import annotations

import json
from pathlib import Path

from verl_cov.law.readers.run import Records, Tell, whole_step


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` is a trainer's state. (The keys are sorted: the history comes early.)"""
    return head.lstrip().startswith(b"{") and b'"log_history": [' in head


def records(path: Path, tell: Tell) -> Records:
    """The records of one file."""
    content = path.read_bytes()
    try:
        history = json.loads(content)["log_history"]
    except (ValueError, LookupError, TypeError, RecursionError):
        yield None
        return
    for entry in history:
        step = whole_step(entry.pop("step", None)) if isinstance(entry, dict) else None
        yield None if step is None else (step, entry)
    tell(len(content))
