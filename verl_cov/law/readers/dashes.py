"""Records of verl's `console` logger, `step:12 - actor/entropy:0.53 - critic/score/mean:np.float64(0.61) - ...`.

A line that was cut off can end in half a number, which looks like a whole one. So the last value of a line is given up,
and the line counted as damaged, where

- the line's end is no whole item, or the file ends within the line;
- the line is as long as a line that ends so, as a length at which loggers and job systems cut (W&B's output.log: 4,096
  characters), or as most of the records, if those are long;
- several lines are equally long, no line is longer, and their last items differ in length; there only a value that can
  be half a number is given up, not one with all its digits;
- the line has fewer of the keys than the records around it, which are all alike.

A terminal's capture, or `fold`, goes on in the next lines, all as wide as the first. Lines are joined only where the
result is a complete record that has more items than the first line, or completes its last one; that proves the width,
and a line of a proven width without its continuation is taken for cut off.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from verl_cov.law.readers.lines import continues, plain
from verl_cov.law.readers.run import Record

_WIDEST = 1 << 14  # columns that anyone folds lines at

# Where loggers, shells and job systems cut lines. One less: the line end counts there.
_CUTS: tuple[int, ...] = (
    500,
    512,
    1000,
    1024,
    2000,
    2048,
    4000,
    4096,
    5000,
    8000,
    8192,
    10000,
    10240,
    16000,
    16384,
    32000,
    32768,
)
_CUTS += (65536, 100000, 1 << 17, 1 << 18, 1 << 20)
_SPLIT_CHARACTER = 3  # bytes lost with a character of which only the first bytes fit
_ENOUGH = 4  # records that agree on a length
_LONG = 1000  # characters: two records with so many values do not come out equally long

_START = re.compile(r"(?<![\w/.:@-])step:(\d{1,15}) - ")
_GLUED = re.compile(r"(?:(?<=[\d.):+-])|(?<=[\d.]e))(?=step:\d{1,15} - )")  # written on after a process was killed
_NUMPY = re.compile(r"(?:np|numpy)\.\w+\(([^()]+)\)")
_WRAPPED_SEPARATOR = re.compile(r"\s+-\s*|-\s+")  # a terminal, or who copied from it, drops blanks at the edge
_MORE = re.compile(r"[\d.]|e[-+]?\d|\s?-\s?\w")  # the rest of a number, or the next item
_TRUTH = {"True": 1.0, "False": 0.0}


@dataclass
class _Items:
    """What could be read of a text. lost: number of items before the last that could not. last: the key of the last
    item, None if that could not; at: where it begins; half: whether it looks like the beginning of an item; open:
    whether the last value may be half a number."""

    step: int
    data: dict[str, object]
    lost: int
    last: str | None
    at: int
    half: bool
    open: bool

    def whole(self) -> bool:
        return self.last is not None and not self.lost


@dataclass
class _Line:
    """A line that begins a record, and what becomes of it if the next lines continue it. lengths: of the line in bytes,
    in characters, and in characters without colours."""

    alone: _Items
    lengths: tuple[int, int, int]
    ended: bool
    width: int
    joined: _Items | None = None
    joined_cut: bool = False
    proof: bool = False  # that its width is one at which lines were wrapped


@dataclass
class Dashes:
    """Collects the records of a log, line by line."""

    found: list[_Line] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)
    _first: tuple[bytes, bool] = (b"", True)

    def feed(self, line: bytes, ended: bool) -> bool:
        """Take the next line. Returns whether it is part of a record."""
        if not self._open and b"step:" not in line:
            return False
        text = plain(line)
        if self._open:
            if continues(self._open, text) and _START.search(text) is None:
                self._open.append(text)
                return True
            self._close()
        if _START.search(text) is None:
            return False
        several = text.count("step:") > text.count("_step:") + 1  # the pattern is slow
        for part in _GLUED.split(text) if several else [text]:
            if self._open:
                self._first = (self._first[0], False)
                self._close()
            self._open, self._first = [part], (line, ended)
        if not ended or len(text) > _WIDEST:
            self._close()
        return True

    def records(self) -> Iterator[Record]:
        """The records of all lines, each followed by None if a part of it could not be read."""
        if self._open:
            self._close()
        widths = {line.width + by for line in self.found if line.proof for by in (-1, 0, 1)}
        cut_off = _cut_lines(self.found, widths)
        for at, line in enumerate(self.found):
            wrapped = line.width in widths
            items, cut = line.alone, at in cut_off or wrapped
            if line.joined is not None:
                if wrapped:
                    items, cut = line.joined, line.joined_cut
                else:
                    cut = True  # the next line may be the rest of its last number, or of something else
            if items.data or items.half:
                last = items.last
                if cut and last is not None:
                    del items.data[last]
                if items.data:
                    yield items.step, items.data
                if cut or items.lost or last is None:
                    yield None

    def _close(self) -> None:
        parts, self._open = self._open, []
        raw, ended = self._first
        alone = _items(parts[0])
        if alone is None:
            return
        lengths = (len(raw), *(2 * (len(raw),) if raw.isascii() and b"\x1b" not in raw else _characters(raw)))
        line = _Line(alone, lengths, ended, len(parts[0]))
        self.found.append(line)
        if len(parts) > 1:
            _join(line, parts)


def _characters(raw: bytes) -> tuple[int, int]:
    return len(raw.decode("utf-8", "replace")), len(plain(raw))


def is_record(line: bytes) -> bool:
    """Whether the line begins a record."""
    items = _items(plain(line)) if b"step:" in line else None
    return items is not None and bool(items.data)


def _join(line: _Line, parts: list[str]) -> None:
    """Take as many of the lines as make one record: the lines after it may be of another process."""
    for count in range(len(parts), 1, -1):
        items = _items("".join(parts[:count]), wrapped=True)
        if items is None or not items.whole():
            continue
        # Full to the edge: the rest of the last number may be in the next line, or have been torn off.
        if count < len(parts):
            line.joined_cut = _MORE.match(parts[count]) is not None
        else:
            line.joined_cut = abs(len(parts[-1]) - len(parts[0])) <= 1
        line.joined, line.proof = items, _more(items, line.alone) or not line.alone.whole()
        return
    items = _items("".join(parts), wrapped=True)
    if items is not None and items.last is None and not items.lost and _more(items, line.alone):
        line.joined, line.joined_cut, line.proof = items, True, True


def _more(items: _Items, alone: _Items) -> bool:
    return len(items.data) > len(alone.data)


def _cut_lines(found: Sequence[_Line], widths: set[int]) -> set[int]:
    """Which of the lines were cut off."""
    single = {at: line for at, line in enumerate(found) if line.width not in widths}
    cut = {at for at, line in single.items() if not line.ended or line.alone.half}
    for kind in range(3):
        lengths = {at: line.lengths[kind] for at, line in single.items()}
        if not lengths:
            continue
        limits = {lengths[at] for at in cut if single[at].ended}
        longest = max(lengths.values())
        at_limit = [at for at, length in lengths.items() if length == longest]
        if longest >= _LONG and len(at_limit) >= max(2, len(single) / 2):
            limits.add(longest)
        if len({single[at].alone.at for at in at_limit if single[at].ended}) > 1:
            cut |= {at for at in at_limit if single[at].alone.open}
        slack = 1 + _SPLIT_CHARACTER * (kind == 0)
        for size in _CUTS:
            if size - slack <= longest <= size:
                limits |= set(range(size - slack, size + 1))
        cut |= {at for at, length in lengths.items() if length in limits}
    return cut | _broken_off(single)


def _broken_off(lines: dict[int, _Line]) -> set[int]:
    """The lines that have the first of the keys that most records have, as no other line does."""
    keys = {at: tuple(line.alone.data) for at, line in lines.items()}
    counts = Counter(keys.values())
    usual, number = counts.most_common(1)[0] if counts else ((), 0)
    if number < _ENOUGH:
        return set()
    inner = list(keys)[1:]  # the first record may be a validation only
    return {at for at in inner if counts[keys[at]] == 1 and keys[at] == usual[: len(keys[at])]}


def _items(text: str, wrapped: bool = False) -> _Items | None:
    """The items of the record that begins in `text`, or None if none does."""
    match = _START.search(text)
    if match is None:
        return None
    rest = text[match.end() :]
    items = _WRAPPED_SEPARATOR.split(rest) if wrapped else (rest + " " * rest.endswith(" -")).split(" - ")
    data: dict[str, object] = {}
    unread, last = 0, None
    for item in items:
        key, _, number = item.rpartition(":")
        value = _value(number)
        last = None
        if value is not None and key:
            last = sys.intern(key)  # every step has the same hundred keys
            data[last] = value
        else:
            unread += 1
    end = items[-1]
    # verl's keys have a slash; what a model writes about its "step:1 - total:5" has none.
    if not any("/" in key for key in (*data, end)):
        data, last = {}, None
    half = last is None and not re.search(r"\s", end) and ("/" in end or bool(data))
    return _Items(int(match[1]), data, unread - (last is None), last, len(text) - len(end), half, _may_be_half(end))


def _may_be_half(end: str) -> bool:
    """Whether more of the number at the end may follow. Not so after a bracket or a word, nor, within what a double
    resolves, after 15 digits of a number that is written without an exponent."""
    number = end.rpartition(":")[2].lstrip("-")
    whole, _, decimals = number.partition(".")
    plain_form = whole == "0" or len(whole) > 1
    return number[-1:] in set("0123456789.") and not (plain_form and len((whole + decimals).lstrip("0")) >= 15)


def _value(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    text = text.strip()
    if match := _NUMPY.fullmatch(text):
        return _value(match[1])
    return _TRUTH.get(text)
