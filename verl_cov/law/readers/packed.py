"""Logs that gzip has packed, `run.csv.gz` of a study or `train.log.gz`, read as if they were not."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)


def unpacked(path: Path) -> Path:
    """The path that a packed log has without the packing: `a.csv` for `a.csv.gz`; any other path as it is."""
    return path.with_suffix("") if path.suffix == ".gz" else path


def stem(path: Path) -> str:
    """The file's name without its ending, packed or not."""
    return unpacked(path).stem


def without_copies(paths: Sequence[Path]) -> list[Path]:
    """The paths but those of packed logs that lie there unpacked too."""
    there = set(paths)
    return [path for path in paths if unpacked(path) == path or unpacked(path) not in there]


def is_packed(path: Path) -> bool:
    """Whether gzip has packed the file, whatever it is called. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def open_log(path: Path) -> BinaryIO:
    """Open a log for its bytes, packed or not. A packed one ends where it is damaged (`damage` says so)."""
    if not is_packed(path):
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_Unpacked(gzip.open(path)), _CHUNK))


def damage(path: Path) -> str:
    """Why a packed log cannot be read to its end; "" for a whole one, and for one that is not packed."""
    if not is_packed(path):
        return ""
    try:
        with gzip.open(path) as file:
            while file.read1(_CHUNK):
                pass
    except _DAMAGE as error:
        return f"what gzip packed is cut off or damaged: {error}"
    return ""


class _Unpacked(io.RawIOBase):
    """What a packed file holds, to its end or to its first damage."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._file.read1(len(buffer))
        except _DAMAGE:
            return 0
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
