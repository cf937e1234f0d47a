"""verl's `console` logger: lines `step:12 - actor/entropy:0.53 - critic/score/mean:np.float64(0.61) - ...`.

Such a log is a terminal's or a job's whole output, so the records are mixed with everything else:

- Ray puts `(TaskRunnerV1 pid=123, ip=10.0.0.2)` and colours before a line; progress bars overwrite themselves with
  carriage returns, and no line feed separates them from a record on the same line;
- other processes' lines come between records, or tear one apart. The rest of a torn record is kept, without the value
  at the tear, and the record is counted as damaged;
- a terminal's capture is wrapped: the record goes on in the next lines, all as wide as the first. They are joined if
  the result is a complete record. (A number that is cut in two by its first wrap, and torn from its rest by another
  process at the same place, cannot be told from a whole one.)

The file is read in pieces, and only the records are kept.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from verl_cov.law.readers.run import Record, Records, Tell

_CHUNK = 1 << 20
_LONGEST_LINE = 16 << 20  # longer than any record: a file without line ends must not fill the memory
_MOST_LINES = 500  # of a wrapped record: a table as wide as the record must not be tried line by line for ever
_WIDEST_TERMINAL = 1000  # columns; verl's own lines are longer from the first update on

_START = re.compile(r"(?<![\w/.:@-])step:(\d{1,15}) - ")
_ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_RAY = re.compile(r"\s*\([^()]*\bpid=\d+[^()]*\)")
_NUMPY = re.compile(r"(?:np|numpy)\.\w+\(([^()]+)\)")
_WRAPPED_SEPARATOR = re.compile(r"\s+-\s*|-\s+")  # a terminal, or who copied from it, drops blanks at the edge
_MORE = re.compile(r"[\d.e]|\s?-\s?\w")  # the rest of a number, or the next item
_TRUTH = {"True": 1.0, "False": 0.0}


def records(path: Path, tell: Tell) -> Records:
    """The records of one log, each followed by None if a part of it could not be read."""
    wrapped: list[str] = []  # a record that may go on in the next line
    with path.open("rb") as file:
        for line, ended in _lines(file, tell):
            if not wrapped and b"step:" not in line:
                continue
            text = _ANSI.sub(b"", line).decode("utf-8", "replace")
            if wrapped:
                if _continues(wrapped, text):
                    wrapped.append(text)
                    continue
                yield from _join(wrapped)
                wrapped = []
            if _START.search(text) is None:
                continue
            if ended and len(text) <= _WIDEST_TERMINAL:
                wrapped = [text]
            else:
                yield from _whole(text, cut=not ended)
    if wrapped:
        yield from _join(wrapped)


def has_record(path: Path, within: int = 64 << 20) -> bool:
    """Whether there is a record in the first `within` bytes. (verl prints megabytes while it starts.)"""
    position = 0

    def tell(done: int) -> None:
        nonlocal position
        position = done

    with path.open("rb") as file:
        for line, _ in _lines(file, tell):
            if position > within:
                return False
            if b"step:" in line and _parse(_ANSI.sub(b"", line).decode("utf-8", "replace"))[0] is not None:
                return True
    return False


def _lines(file: BinaryIO, tell: Tell) -> Iterator[tuple[bytes, bool]]:
    """The lines, each with whether it has a line end. A carriage return is one: the text before it was overwritten."""
    rest = b""
    done = 0
    while chunk := file.read(_CHUNK):
        if chunk.endswith(b"\r"):
            chunk += file.read(1)  # the \n of a \r\n, or it would count as an empty line
        done += len(chunk)
        *lines, rest = (rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            yield line, True
        if len(rest) > _LONGEST_LINE:
            rest = b""
        tell(done)
    if rest:
        yield rest, False


def _continues(parts: list[str], text: str) -> bool:
    """Whether `text` may be the next line of the wrapped record `parts`: they fill the width, and no one else wrote it.

    The width may differ by one column, as copying from a terminal loses a blank at the edge.
    """
    width = len(parts[0])
    return (
        len(parts) < _MOST_LINES
        and abs(len(parts[-1]) - width) <= 1
        and 0 < len(text) <= width + 1
        and _RAY.match(text) is None
        and _START.search(text) is None
    )


def _join(parts: list[str]) -> Iterator[Record]:
    """The record in as many of the wrapped lines as make one: the lines after it may be of another process."""
    for count in range(len(parts), 0, -1):
        text = "".join(parts[:count])
        record, whole = _parse(text, wrapped=count > 1)
        if whole and record is not None:
            # Full to the edge: the rest of the last number may be in the next line, or have been torn off.
            if count < len(parts):
                cut = _MORE.match(parts[count]) is not None
            else:
                cut = count > 1 and abs(len(parts[-1]) - len(parts[0])) <= 1
            yield from _whole(text, cut, wrapped=count > 1)
            return
    text = "".join(parts)
    record, whole = _parse(text, wrapped=True, cut=True)
    yield from _whole(text, cut=True, wrapped=True) if whole and record is not None else _whole(parts[0])


def _whole(text: str, cut: bool = False, wrapped: bool = False) -> Iterator[Record]:
    """The record in `text`, then None if part of it is lost. cut: the last value may be half."""
    record, whole = _parse(text, wrapped, cut)
    if record is not None:
        yield record
    if cut or (record is not None and not whole):
        yield None


def _parse(text: str, wrapped: bool = False, cut: bool = False) -> tuple[Record, bool]:
    """(the record in `text` or None, whether all of it could be read)."""
    match = _START.search(text)
    if match is None:
        return None, False
    rest = text[match.end() :]
    items = _WRAPPED_SEPARATOR.split(rest) if wrapped else rest.split(" - ")
    if cut:
        del items[-1]
    data: dict[str, object] = {}
    for item in items:
        key, _, number = item.rpartition(":")
        value = _value(number)
        if value is not None and key:
            data[sys.intern(key)] = value  # every step has the same hundred keys
    # verl's keys have a slash; what a model writes about its "step:1 - total:5" has none.
    known = any("/" in key for key in data)
    return ((int(match[1]), data) if known else None), len(data) == len(items)


def _value(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    text = text.strip()
    if match := _NUMPY.fullmatch(text):
        return _value(match[1])
    return _TRUTH.get(text)
