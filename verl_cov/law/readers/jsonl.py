"""JSON lines: records of verl's `file` logger, `{"step": n, "data": {key: value}}`, and flat records with a step.

Traps of verl's file (0.9.1, utils/tracking.py): it is opened "wb", so a resumed run truncates it, and a run is often
several segment files; a killed run leaves half a line at the end; nan and infinity arrive as null.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from verl_cov.law.readers.packed import open_log
from verl_cov.law.readers.run import FRACTION_KEY, NoPoints, Record, Records, Tell, step_key, whole_step

_ENTROPY = re.compile(r"(?:^|[^a-z])entropy(?:[^a-z]|$)", re.IGNORECASE)


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` is JSON lines."""
    lines = [line.strip() for line in _lines(head)]
    first = next((line for line in lines if line), b"")
    return first.startswith((b'{"', b"{ ", b"{}")) or any(_object(line) is not None for line in lines)


def is_log(head: bytes) -> bool:
    """Whether a file that begins with `head` is a log, and no dump of what was sampled: verl's `file` logger wrote it,
    or it has a step and an entropy."""
    for line in _lines(head):
        record = _object(line)
        if record is not None and (
            parse_line(line) is not None
            or FRACTION_KEY in record
            or (step_key(record) is not None and any(map(_ENTROPY.search, record)))
        ):
            return True
    return False


def records(path: Path, tell: Tell, wanted: str | None = None) -> Records:
    """The records of one file. wanted: the key of the step. Raises NoPoints if no record has a step."""
    done = 0
    stepless: dict[str, object] = {}
    found = False
    with open_log(path) as file:
        for line in file:
            done += len(line)
            tell(done)
            if line.strip():
                record, data = _record(line, wanted)
                found |= record is not None
                stepless = stepless or data
                yield record
    if stepless and not found:
        asked = f"no step {wanted!r}" if wanted is not None else "no step"
        raise NoPoints(f"{asked} among the columns of {path}: choose one with --step-key: {', '.join(stepless)}")


def parse_line(line: bytes | str) -> tuple[int, dict[str, object]] | None:
    """(step, data) of one line of verl's file, or None if it is not a record."""
    record = _object(line)
    if record is None:
        return None
    step, data = record.get("step"), record.get("data")
    if type(step) is not int or whole_step(step) is None or not isinstance(data, dict):
        return None
    return step, data


def _record(line: bytes, wanted: str | None) -> tuple[Record, dict[str, object]]:
    """The record of a line, and its numbers if it has no step."""
    if wanted is None and (record := parse_line(line)) is not None:
        return record, {}
    found = _object(line)
    if found is None:
        return None, {}
    inner = found.get("data")
    if isinstance(inner, dict):
        if wanted is None:
            return None, {}
        found = inner | {"step": found.get("step")}
    step: int | None = None
    if wanted is None and isinstance(fraction := found.get(FRACTION_KEY), str):
        step = whole_step(fraction.partition("/")[0])
    elif (key := step_key(found, wanted)) is not None:
        step = whole_step(found.pop(key))
    data: dict[str, object] = {key: number for key, value in found.items() if (number := _number(value)) is not None}
    return (None, data) if step is None or not data else ((step, data), {})


def _number(value: object) -> int | float | None:
    if isinstance(value, (int, float)):
        return value
    try:
        return float(value) if isinstance(value, str) else None  # transformers writes '0.3051'
    except ValueError:
        return None


def _lines(head: bytes) -> list[bytes]:
    return head.removeprefix(b"\xef\xbb\xbf").split(b"\n")[:20]


def _object(line: bytes | str) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # ValueError: also what is not UTF-8
        return None
    return value if isinstance(value, dict) else None
