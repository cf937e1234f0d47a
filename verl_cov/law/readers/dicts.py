"""Dictionaries that trainers print, a record in each: `{'loss': 0.01, 'reward': '0.31', 'entropy': '0.9', ...}`.

| written by                  | the line                                    | its step                                 |
|-----------------------------|---------------------------------------------|------------------------------------------|
| transformers, TRL, ms-swift | `{...}` with an epoch                       | `global_step/max_steps`; else of the bar |
| slime, miles                | `rollout N: {...}`, `step N: ...`, `eval N` | N of the rollout                         |
| OpenRLHF                    | `Global step N: {...}`                      | N                                        |
| ROLL                        | `metrics_tag: {...}`                        | `system/step` or `step`                  |

transformers prints no step. The progress bar before the line shows it (`11%|#    | 1/9`); without a bar, or if its
number does not grow, the records are counted. Where the bar or the epoch falls, a run was resumed: the count goes on
from the bar's step, or from that of the record with this epoch.

A value counts only if what ends it is there, a comma or a brace: a line that was cut off loses its last value, and is
counted as damaged. A dictionary that a terminal wrapped is put together.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field

from verl_cov.law.readers.lines import continues, plain
from verl_cov.law.readers.run import FRACTION_KEY, Aside, Records, step_key, whole_step

_HEAD = re.compile(r"(?:(?P<kind>rollout|step|eval|[Gg]lobal step) (?P<number>\d{1,15})|metrics_tag): ?$")
_BARE = re.compile(r"\s*(?:[^{}|]*\|[^{}]*\])?\s*")  # nothing but a progress bar may stand before a record
_BAR = re.compile(r"^\s*(?:\w+:)?\s*\d{1,3}%\|[^|]*\|\s*(\d{1,15})/(\d{1,15})\b")
_ITEM = re.compile(
    r"""(['"])(?P<key>[^'"{}]{1,400})\1\s*:\s*
    (?:(?:\w+\.)*\w+\(\[?)?                                          # np.float64(, tensor([
    (?P<quote>['"]?)(?P<value>[-+]?(?:\d[\d_]*\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|inf(?:inity)?|nan)|true|false)(?P=quote)
    (?:\]?\s*(?:,\s*(?:device|dtype)\s*=[^()]*)?\))?\s*[,}]""",
    re.IGNORECASE | re.VERBOSE,
)
_FRACTION = re.compile(rf"""['"]{FRACTION_KEY}['"]\s*:\s*['"](\d{{1,15}})/\d+['"]""")
_TRAINING = {"loss", "reward", "entropy", "grad_norm"}  # of a record whose end, where the epoch is, was cut off
_TRUTH = {"true": 1.0, "false": 0.0}


@dataclass
class Dictionaries:
    """Collects the records of a log, line by line."""

    # (kind, number or that of the bar, data, whether the line was cut off)
    found: list[tuple[str, int | None, dict[str, object], bool]] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)
    _bar: tuple[int, int] | None = None  # (step, steps in total) of the last progress bar
    _total: int | None = None  # of the bar of the training

    def feed(self, line: bytes, ended: bool) -> None:
        """Take the next line."""
        if self._open:
            text = plain(line)
            if continues(self._open, text) and not _begins(text):
                self._open.append(text)
                if "}" in text or not ended:
                    self._close()
                return
            self._close()
        if b"%|" in line and (bar := _BAR.match(plain(line))) is not None:
            self._bar = (int(bar[1]), int(bar[2]))
        if (b"{'" in line or b'{"' in line) and _begins(text := plain(line)):
            self._open = [text]
            if "}" in text or not ended:
                self._close()

    def records(self) -> Records:
        """The records of all lines, each followed by None if a part of it was cut off."""
        if self._open:
            self._close()
        counter = _Counter()
        rollout: int | None = None
        first = evaluated = False
        for kind, number, data, cut in self.found:
            if kind == "rollout":
                rollout, first = number, True
            elif kind == "step" and rollout is not None:
                # slime counts the updates of all rollouts: the first of each is still of the rollout's policy.
                if not first:
                    continue
                number, first = rollout, False
            elif kind == "eval" and rollout is None and not evaluated:
                evaluated = True
                data = {f"before training {key}": value for key, value in data.items()}
            elif kind == "bare":
                number = counter.step(data, number)
            if number is not None:
                yield number, data
            if cut:
                yield None
        if counter.without_bar:
            yield Aside(
                note="The log shows no step: its records were counted, so a step is one record, not one update."
            )

    def _close(self) -> None:
        text, self._open = "".join(self._open), []
        brace = _brace(text)
        head = _HEAD.search(text[:brace])
        kind = "bare" if head is None else (head["kind"] or "tag").lower()
        number = int(head["number"]) if head is not None and head["number"] else None
        body = text[brace:]
        data = _numbers(body)
        if FRACTION_KEY in body and (fraction := _FRACTION.search(body)) is not None:
            kind, number = "step of trainer", int(fraction[1])
        if kind == "bare" and "epoch" not in data and ("}" in body or not _TRAINING & data.keys()):
            return
        if kind == "bare" and self._bar is not None:
            self._total = self._total or self._bar[1]
            number = self._bar[0] if self._bar[1] == self._total else None
        if kind == "tag":
            key = step_key(data)
            number = whole_step(data.pop(key)) if key is not None else None
            if number is None:
                return
        if data:
            self.found.append((kind, number, data, "}" not in body))


@dataclass
class _Counter:
    """The steps of records that do not name theirs. before: (epoch, step) of the training's records, ascending."""

    count: int = 0
    bar: int = 0
    before: list[tuple[float, int]] = field(default_factory=list)
    without_bar: bool = False

    def step(self, data: dict[str, object], bar: int | None) -> int:
        """The step of the next record. bar: the number of the progress bar before it."""
        evaluation = any(key[:5] == "eval_" for key in data)
        epoch = data.get("epoch")
        again = None
        if isinstance(epoch, float) and self.before and epoch < self.before[-1][0]:
            while self.before and self.before[-1][0] >= epoch:
                again = self.before.pop()[1]
        moved = bar is not None and bar not in (0, self.bar)
        if bar is not None and moved and not evaluation:
            falls, self.bar = bar < self.bar, bar
            self.count = bar if falls or bar > self.count else self.count + 1
        elif again is not None:
            self.count = again
        elif not evaluation:
            self.count += 1
        if not evaluation:
            self.without_bar |= bar is None
            if isinstance(epoch, float):
                self.before.append((epoch, self.count))
        return self.count


def is_record(line: bytes) -> bool:
    """Whether the line holds such a dictionary."""
    if b"{'" not in line and b'{"' not in line:
        return False
    reader = Dictionaries()
    reader.feed(line, False)
    return bool(reader.found)


def _begins(text: str) -> bool:
    brace = _brace(text)
    return brace >= 0 and (_BARE.fullmatch(text[:brace]) or _HEAD.search(text[:brace])) is not None


def _brace(text: str) -> int:
    """Where the first dictionary of `text` begins, or -1."""
    return min((at for mark in ("{'", '{"') if (at := text.find(mark)) >= 0), default=-1)


def _numbers(body: str) -> dict[str, object]:
    """The numbers of a dictionary, and of those in it."""
    try:
        found = json.loads(body.replace("'", '"'))  # ten times as fast, where it can be read so
    except (ValueError, RecursionError):
        return {sys.intern(item["key"]): _value(item["value"]) for item in _ITEM.finditer(body)}
    data: dict[str, object] = {}
    for inner in (found, *(value for value in found.values() if isinstance(value, dict))):
        for key, value in inner.items():
            try:
                if isinstance(value, (int, float, str)):
                    data[sys.intern(key)] = float(value)
            except (ValueError, OverflowError):
                pass
    return data


def _value(text: str) -> float:
    return _TRUTH[text.lower()] if text.lower() in _TRUTH else float(text)
