"""JSON lines: records of verl's `file` logger, `{"step": n, "data": {key: value}}`, and flat records with a step.

Traps of verl's file (0.9.1, utils/tracking.py): it is opened "wb", so a resumed run truncates it, and a run is often
several segment files; a killed run leaves half a line at the end; nan and infinity arrive as null.
"""

from __future__ import annotations

import json
from pathlib import Path

from verl_cov.law.readers.run import Records, Tell, step_key, whole_step


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` is JSON lines."""
    lines = [line.strip() for line in head.removeprefix(b"\xef\xbb\xbf").split(b"\n")[:20]]
    first = next((line for line in lines if line), b"")
    return first.startswith(b"{") or any(_object(line) is not None for line in lines)


def is_verl(head: bytes) -> bool:
    """Whether a file that begins with `head` was written by verl's `file` logger."""
    return any(parse_line(line) is not None for line in head.split(b"\n")[:20])


def records(path: Path, tell: Tell) -> Records:
    """The records of one file."""
    done = 0
    with path.open("rb") as file:
        for line in file:
            done += len(line)
            tell(done)
            if line.strip():
                yield parse_line(line) or _flat(line)


def parse_line(line: bytes | str) -> tuple[int, dict[str, object]] | None:
    """(step, data) of one line of verl's file, or None if it is not a record."""
    record = _object(line)
    if record is None:
        return None
    step, data = record.get("step"), record.get("data")
    if type(step) is not int or not 0 <= step < 2**63 or not isinstance(data, dict):
        return None
    return step, data


def _flat(line: bytes) -> tuple[int, dict[str, object]] | None:
    """A record that has its step among its metrics, as other loggers write it."""
    record = _object(line)
    key = step_key(record) if record else None
    if record is None or key is None or isinstance(record.get("data"), dict):
        return None
    step = whole_step(record.pop(key))
    data: dict[str, object] = {k: value for k, value in record.items() if isinstance(value, (int, float))}
    return (step, data) if step is not None and data else None


def _object(line: bytes | str) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # ValueError: also what is not UTF-8
        return None
    return value if isinstance(value, dict) else None
