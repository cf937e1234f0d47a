"""A parquet file and the stamp beside it, a JSON file that says what it was made of.

A file appears whole or not at all, and only one process at a time makes it. The stamp is removed before the file is
replaced and written afterwards, so that a stamp never stands beside a file of other content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from verl_cov.tasks.data.rows import SCHEMA

FORMAT = 1  # raise it when the same source would give another file: prepared files of older formats are made again

Stamp = dict[str, Any]  # JSON: what a file was made of

# verl's reader decodes a row group at once, and a single row of code tests can take megabytes.
_GROUP_ROWS, _GROUP_CHARACTERS = 4096, 32_000_000


def lock(path: Path) -> FileLock:
    """The right to make `path`, to hold by `with`: others wait. The kernel frees the lock of a process that dies."""
    return FileLock(path.with_name(f".{path.name}.lock"))


@contextmanager
def replacing(path: Path) -> Iterator[tuple[Path, Callable[[Stamp | None], None]]]:
    """Yields (where to write, a function that puts the file in place with its stamp). Hold `lock` meanwhile.

    If the function is not called, `path` stays as it was. What a killed process left behind is overwritten.
    """
    partial = path.with_name(f".{path.name}.partial")  # always this name, since the lock is held
    partial_stamp = path.with_name(f".{stamp_of(path).name}.partial")

    def finish(stamp: Stamp | None) -> None:
        if stamp is not None:  # written before anything is replaced, since it may fail (a full disk)
            text = json.dumps(stamp, indent=2, ensure_ascii=False) + "\n"
            # A source's name need not be Unicode; what "backslashreplace" makes of it is also JSON's escape.
            partial_stamp.write_bytes(text.encode(errors="backslashreplace"))
        stamp_of(path).unlink(missing_ok=True)
        os.replace(partial, path)
        if stamp is not None:
            os.replace(partial_stamp, stamp_of(path))

    try:
        yield partial, finish
    finally:
        partial.unlink(missing_ok=True)
        partial_stamp.unlink(missing_ok=True)


def stamp_of(path: Path) -> Path:
    """The path of the stamp of `path`."""
    return path.with_suffix(".json")


def read_stamp(path: Path) -> Stamp | None:
    """The stamp of a file; None without one, or if the file was changed since or has an older format."""
    try:
        stamp = json.loads(stamp_of(path).read_text(encoding="utf-8"))
        rows = pq.read_metadata(path).num_rows
        return stamp if stamp["format"] == FORMAT and stamp["rows"]["written"] == rows else None
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's are OSError and ValueError
        return None


class RowWriter:
    """Writes rows of `rows.SCHEMA` to a parquet file, in row groups of bounded size."""

    def __init__(self, path: Path):
        self._file = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._characters = 0

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._flush()
        finally:
            self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        """Write a row, at the latest when the writer is closed."""
        self._rows.append(row)
        self._characters += len(row["reward_model"]["ground_truth"])
        if len(self._rows) >= _GROUP_ROWS or self._characters >= _GROUP_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
            self._rows, self._characters = [], 0
