"""Reads what people write on the command line: sizes, fractions and labels. Errors name the argument and the fix."""

from __future__ import annotations

import math
import re
from pathlib import Path

_BILLIONS = {"": 1.0, "k": 1e-6, "m": 1e-3, "b": 1.0, "t": 1e3}
_SIZE = re.compile(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([kmbt]?)\s*", re.IGNORECASE)


def size(text: str) -> float:
    """A number of parameters in billions: `0.5B`, `500M`, or `0.5`, which is taken to be in billions."""
    match = _SIZE.fullmatch(text)
    try:
        number = float(match[1]) * _BILLIONS[match[2].lower()] if match else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{text!r} is no model size: give a number above 0, such as 0.5B, 500M or 0.5 (billions)")
    return number


def fraction(text: str) -> float:
    """A fraction between 0 and 1: `15%` or `0.15`."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        hint = f"; did you mean {text.strip()}%?" if 1 <= value < 100 and not percent else ""
        raise ValueError(f"--fraction {text} must be between 0 and 1, such as 0.15 or 15%{hint}")
    return value


def label(text: str) -> tuple[str, Path]:
    """The name and the run of `NAME=RUN`. The name ends at the first =."""
    name, equals, run = text.partition("=")
    if not (name.strip() and equals and run):
        raise ValueError(f"--label {text!r}: give NAME=RUN, such as --label baseline=runs/grpo")
    return name.strip(), Path(run)
