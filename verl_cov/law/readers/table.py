"""Tables: CSV (or with tabs or semicolons) with a column for the step.

W&B's export of a chart has columns `Step`, `{run} - {key}` and, for runs it had to thin out, `{run} - {key}__MIN` and
`__MAX`, which are left out here. Such a file can hold several runs: FILE::RUN names one. Several charts of one run are
several files, merged by step.

A result of `verl-cov study` is such a table below a line of JSON that says what it is of.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from verl_cov.law.readers.packed import open_log
from verl_cov.law.readers.run import Aside, NoPoints, Records, Tell, step_key, whole_step

_DELIMITERS = (",", "\t", ";")
_NAME = re.compile(r"""[\w /.@%()*"\-]{1,120}""")  # of a column


@dataclass(frozen=True)
class Header:
    """The first line of a table. columns: (run, key) by the column's number; run is "" if none is named. lines: before
    the rows. twice: names of several columns, of which the first counts."""

    delimiter: str
    width: int
    step: int
    columns: dict[int, tuple[str, str]]
    lines: int
    twice: tuple[str, ...] = ()

    def runs(self) -> list[str]:
        return sorted({run for run, _ in self.columns.values()})

    def keys(self, run: str) -> set[str]:
        return {key for name, key in self.columns.values() if name == run}


def recognises(head: bytes, wanted: str | None = None) -> bool:
    """Whether a file that begins with `head` is a table with a step column. wanted: its name."""
    return _header(head, wanted) is not None


def header(path: Path, wanted: str | None = None) -> Header | None:
    """The header of a table, or None if the file is not a table with a step column."""
    with open_log(path) as file:
        return _header(file.readline() + file.readline(), wanted)


def stepless(head: bytes) -> list[str]:
    """The columns of a table without a step column; empty if `head` is not the head of a table."""
    lines = head.split(b"\n")[:2]
    if len(lines) == 2:
        for delimiter in _DELIMITERS:
            names, first = (line.decode("utf-8-sig", "replace").strip("\r").split(delimiter) for line in lines)
            if not 1 < len(names) == len(first) or not all(map(_NAME.fullmatch, names)) or any(map(_is_number, names)):
                continue
            if 2 * sum(map(_is_number, first)) >= len(first):
                return [name.strip(' "') for name in names]
    return []


def split_run(path: Path) -> tuple[Path, str | None]:
    """(file, run) of FILE::RUN; (path, None) of any other path."""
    file, mark, run = str(path).rpartition("::")
    return (Path(file), run) if mark and not path.exists() else (path, None)


def records(path: Path, tell: Tell, run: str | None = None, wanted: str | None = None) -> Records:
    """The rows of one run. Raises NoPoints if the table holds several runs and `run` is not one of them."""
    top = header(path, wanted)
    assert top is not None  # recognised
    runs = top.runs()
    if run is None and len(runs) > 1:
        raise NoPoints(f"{path} holds {len(runs)} runs ({_some(runs)}): choose one, as in '{path.name}::{runs[0]}'")
    if run is not None and run not in runs:
        raise NoPoints(f"{path} holds no run {run!r}, but {_some(runs)}")
    yield Aside(table=not any(runs))
    for name in top.twice:
        yield Aside(note=f"{path.name} has several columns {name!r}: the first counts.")
    columns = {number: key for number, (name, key) in top.columns.items() if run is None or name == run}
    with open_log(path) as file:
        for _ in range(top.lines):
            file.readline()
        rows = csv.reader(_text(file, tell), delimiter=top.delimiter)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield Aside(damage=str(error))
                continue
            if not row:
                continue
            if len(row) != top.width:
                yield Aside(damage=f"a row has {len(row)} values for {top.width} columns")
                continue
            step = whole_step(row[top.step])
            if step is None:
                yield Aside(damage=f"the step {row[top.step][:40]!r} is no whole number")
                continue
            numbers = {key: _number(row[column]) for column, key in columns.items()}
            data: dict[str, object] = {key: number for key, number in numbers.items() if number is not None}
            if data:
                yield step, data
            elif said := next(((key, row[column]) for column, key in columns.items() if row[column].strip()), None):
                yield Aside(
                    damage=f"{said[0]} is {said[1][:40]!r}, which is no number"
                )  # an empty row is another run's


def _header(head: bytes, wanted: str | None = None) -> Header | None:
    first, *others = head.split(b"\n", 2)
    lines = 2 if first.startswith(b"{") and others else 1
    line = (first if lines == 1 else others[0]).decode("utf-8-sig", "replace").strip("\r\n")
    for delimiter in _DELIMITERS:
        try:
            names = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            return None
        step = step_key(names, wanted)
        if step is None or len(names) < 2:
            continue
        named = {number: name for number, name in enumerate(names) if name != step}
        exported = all(" - " in name for name in named.values())
        columns: dict[int, tuple[str, str]] = {}
        twice = [step.strip()] * (names.count(step) > 1)
        for number, name in named.items():
            run, _, key = name.rpartition(" - ") if exported else ("", "", name.strip())
            if key.endswith(("__MIN", "__MAX")) or key.startswith("_"):
                continue
            if (run, key) in columns.values():
                twice.append(name.strip())
            else:
                columns[number] = (run, key)
        return Header(delimiter, len(names), names.index(step), columns, lines, tuple(dict.fromkeys(twice)))
    return None


def _text(lines: Iterator[bytes], tell: Tell) -> Iterator[str]:
    done = 0
    for line in lines:
        done += len(line)
        tell(done)
        yield line.decode("utf-8-sig", "replace").replace("\0", "")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_number(text: str) -> bool:
    return _number(text.strip(' "')) is not None


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
