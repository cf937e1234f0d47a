"""How runs stand side by side: names that are short and differ, the baseline first, each unit of score for itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TypeAlias

import numpy as np

from verl_cov.law.estimate import Estimate
from verl_cov.law.points import Points
from verl_cov.law.series import Unit, unit_of

Fitted: TypeAlias = Sequence[tuple[Points, Estimate]]
_UNITS: dict[Unit, str] = {"fraction": "from 0 to 1", "percent": "in %"}
_BASELINE = re.compile(r"(?:^|[^a-z])(?:vanilla|baseline)(?:[^a-z]|$)")
_MIDDLE = "…"


def shortened(names: Sequence[str], width: int) -> list[str]:
    """The names, each of at most `width` characters (from 8 on), and still different if the names are.

    A name that is too long loses its middle. Names that differ only there lose what they have in common instead.
    """
    short = {name: _without_middle(name, width) for name in names}
    for alike in _clashes(short):
        head = _in_common(alike)
        tail = _in_common([name[head:][::-1] for name in alike])
        for name in alike:
            differs, after = name[head : len(name) - tail], _MIDDLE * (tail > 0)
            start = width - len(differs) - len(after) - 1  # of what they have in common, as much as there is room for
            short[name] = _without_middle(name[: max(0, min(start, head))] + _MIDDLE + differs + after, width)
    for alike in _clashes(short):
        numbers = {name: f"{_MIDDLE}#{at}" for at, name in enumerate(alike, start=1)}
        short |= {name: _without_middle(name, width - len(number)) + number for name, number in numbers.items()}
    return [short[name] for name in names]


def _clashes(short: Mapping[str, str]) -> list[list[str]]:
    """The names that are the same when they are short, together."""
    together: dict[str, list[str]] = {}
    for name, text in short.items():
        together.setdefault(text, []).append(name)
    return [names for names in together.values() if len(names) > 1]


def _in_common(names: Sequence[str]) -> int:
    """How many first characters the names share."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False)))


def _without_middle(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return name[: width - 1 - tail] + _MIDDLE + name[len(name) - tail :]


def baseline_first(fitted: Fitted) -> Fitted:
    """The runs in their order, but first those called vanilla or baseline, then those without a control."""
    return sorted(fitted, key=lambda pair: (not _BASELINE.search(pair[0].name.lower()), pair[0].control is not None))


def by_unit(fitted: Fitted) -> dict[str, Fitted]:
    """The runs by the unit of their scores, which must not share an axis or a table.

    No log tells the unit of a reward: those with the same key and of the same order of magnitude are together.
    """
    units: dict[str, list[tuple[Points, Estimate]]] = {}
    for run, law in fitted:
        label = unit_label(run)
        units.setdefault(label if label in _UNITS.values() else f"{label} ({run.score_key})", []).append((run, law))
    return dict(units)


def unit_label(run: Points) -> str:
    """`from 0 to 1`, `in %`, or of a reward `of the order of 10`."""
    unit = unit_of(run.scores.values)
    size = max(float(np.abs(run.scores.values).max()), 1e-12)
    return _UNITS.get(unit, f"of the order of {10.0 ** round(math.log10(size)):g}")
