"""The lines of a log that a terminal or a job wrote, read in pieces: such a file may be larger than the memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from verl_cov.law.readers.run import Tell

_CHUNK = 1 << 20
_LONGEST_LINE = 16 << 20  # longer than any record: a file without line ends must not fill the memory
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
