"""When a program's output, or the value that a function returns, is the expected one.

Floats are compared within a tolerance of 1e-6, relative or absolute; everything else exactly.
"""

from __future__ import annotations

import math
import re

TOLERANCE = 1e-6


def same_output(printed: str, expected: str) -> bool:
    """Whether a program printed what it should: the same lines, blank ones aside, of the same words.

    A word that is a decimal in `expected` (`0.50`, `1e-3`) is matched by a number within the tolerance; an integer, or
    anything else, only by the same characters.
    """
    printed_lines, expected_lines = (
        [line.split() for line in text.splitlines() if line.strip()] for text in (printed, expected)
    )
    return len(printed_lines) == len(expected_lines) and all(
        len(words) == len(expected_words) and all(map(_same_word, words, expected_words))
        for words, expected_words in zip(printed_lines, expected_lines, strict=True)
    )


_DECIMAL = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d{1,4})?")
_NUMERAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?")


def _same_word(word: str, expected: str) -> bool:
    if word == expected:
        return True
    return bool(_DECIMAL.fullmatch(expected) and _NUMERAL.fullmatch(word)) and _close(float(word), float(expected))


def same_value(value: object, expected: object) -> bool:
    """Whether two JSON values are the same. True is not 1."""
    if isinstance(expected, bool) or isinstance(value, bool):
        return value is expected
    if isinstance(expected, float) or isinstance(value, float):
        return isinstance(value, (int, float)) and isinstance(expected, (int, float)) and _close(value, expected)
    if isinstance(expected, list):
        return isinstance(value, list) and len(value) == len(expected) and all(map(same_value, value, expected))
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(same_value(value[key], expected[key]) for key in expected)
        )
    return type(value) is type(expected) and value == expected


def _close(value: float, expected: float) -> bool:
    try:
        return value == expected or math.isclose(value, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:  # an integer too large for a float
        return False
