"""The lines of a log that a terminal or a job wrote, read in pieces: such a file may be larger than the memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from verl_cov.law.readers.run import Tell

_CHUNK = 1 << 20
_LONGEST_LINE = 16 << 20  # longer than any record: a file without line ends must not fill the memory
_MOST_LINES = 500  # of a wrapped record: a table as wide as the record must not be tried line by line for ever
_ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_RAY = re.compile(r"\s*\([^()]*\bpid=\d+[^()]*\)")


def lines(file: BinaryIO, tell: Tell) -> Iterator[tuple[bytes, bool]]:
    """The lines, each with whether it has a line end. A carriage return is one: the text before it was overwritten."""
    rest = b""
    done = 0
    while chunk := file.read(_CHUNK):
        if chunk.endswith(b"\r"):
            chunk += file.read(1)  # the \n of a \r\n, or it would count as an empty line
        done += len(chunk)
        *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in whole:
            yield line, True
        if len(rest) > _LONGEST_LINE:
            rest = b""
        tell(done)
    if rest:
        yield rest, False


def plain(line: bytes) -> str:
    """The text of a line without colours."""
    return _ANSI.sub(b"", line).decode("utf-8", "replace")


def of_ray(text: str) -> bool:
    """Whether Ray wrote the name of a process before the line: then it begins something, and continues nothing."""
    return _RAY.match(text) is not None


def continues(wrapped: Sequence[str], text: str) -> bool:
    """Whether `text` may go on with a record that a terminal has `wrapped` so far: its lines fill a width, and no one
    else wrote it. The width may differ by one column, as copying from a terminal loses a blank at the edge."""
    width = len(wrapped[0])
    return (
        len(wrapped) < _MOST_LINES
        and abs(len(wrapped[-1]) - width) <= 1
        and 0 < len(text) <= width + 1
        and not of_ray(text)
    )
