"""Finds a control by weight by its name and makes it from its numbers; a user's own too.

A control of one's own is a function from :class:`~verl_cov.core.controls.tokens.Tokens` to weights, whose other
arguments are its numbers: in the entry point group :data:`ENTRY_POINTS`, or ``path: FILE.py:FUNCTION`` among the
numbers. docs/write-a-control.md walks through one. Knows nothing about verl.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from verl_cov.core.controls.clip_b import ClipB
from verl_cov.core.controls.cov_weight import CovWeight
from verl_cov.core.controls.high_entropy import HighEntropy
from verl_cov.core.controls.positive_advantage import PositiveAdvantage
from verl_cov.core.controls.repo import Repo
from verl_cov.core.controls.stare import Stare
from verl_cov.core.controls.steer import Steer
from verl_cov.core.controls.tokens import Tokens
from verl_cov.core.controls.weight import Weight
from verl_cov.suggestions import did_you_mean

ENTRY_POINTS = "verl_cov.controls"
CONTROLS: dict[str, type[Weight]] = {
    "clip_b": ClipB,
    "cov_weight": CovWeight,
    "high_entropy": HighEntropy,
    "positive_advantage": PositiveAdvantage,
    "repo": Repo,
    "stare": Stare,
    "steer": Steer,
}


class UnknownControlError(ValueError):
    """There is no control of this name, or none may have it; the message begins with the name."""


# verl reduces a metric by these words in its key.
_NOT_IN_NAMES = ("min", "max", "sum", "total")


@dataclass(frozen=True, kw_only=True)
class OwnControl(Weight):
    """A user's function, with its numbers."""

    function: Callable[..., Tensor]
    numbers: Mapping[str, Any]

    @property
    def needs(self) -> tuple[str, ...]:
        return ("own",)  # nobody knows before it is called

    def __call__(self, tokens: Tokens) -> Float[Tensor, " slots"]:
        return self.function(tokens, **self.numbers)

    def describe(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.numbers.items())


def make(name: str, numbers: Mapping[str, Any]) -> Weight:
    """Makes the control ``name`` from its numbers; those not given have their defaults.

    Raises:
        UnknownControlError: as it says.
        ValueError: an unknown number, or one out of range; the message names it and the fix.
    """
    numbers = dict(numbers)
    if name in CONTROLS:
        kind = CONTROLS[name]
        _refuse_unknown(numbers, [each.name for each in fields(kind)])
        for each in fields(kind):
            _refuse_kind(each.name, numbers.get(each.name, each.default), str(each.type).split(" | "))
        return kind(**numbers)
    if not re.fullmatch(r"\w+", name) or any(word in name for word in _NOT_IN_NAMES):
        raise UnknownControlError(
            f"{name} is no name for a control: use letters, digits and _, without min, max, sum and total, by which "
            "verl would reduce its metrics"
        )
    path, renormalise = numbers.pop("path", None), numbers.pop("renormalise", False)
    _refuse_kind("renormalise", renormalise, ["bool"])
    function = _from_file(str(path)) if path is not None else _from_entry_point(name)
    known, required = _numbers_of(function)
    _refuse_unknown(numbers, [*known, "path", "renormalise"])
    if missing := next((each for each in required if each not in numbers), None):
        raise ValueError(f"{missing} is missing: the control {name} has no default for it")
    return OwnControl(function=function, numbers=numbers, renormalise=renormalise)


def _refuse_unknown(numbers: Mapping[str, Any], known: list[str]) -> None:
    if unknown := next((each for each in numbers if each not in known), None):
        raise ValueError(f"{unknown} is unknown{did_you_mean(str(unknown), known)}")


def _refuse_kind(name: str, value: object, kinds: list[str]) -> None:
    found = {bool: "bool", str: "str", int: "float", float: "float", type(None): "None"}.get(type(value))
    if found not in kinds:
        words = {"float": "a number", "bool": "true or false", "str": "a word", "None": "null"}
        raise ValueError(f"{name}={value!r} must be {' or '.join(words[kind] for kind in kinds)}")


def _numbers_of(function: Callable[..., Tensor]) -> tuple[list[str], list[str]]:
    """Returns the names of a function's numbers, and of those without a default."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return [each.name for each in named], [each.name for each in named if each.default is each.empty]


def _from_entry_point(name: str) -> Callable[..., Tensor]:
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name not in found.names:
        known = sorted({*CONTROLS, *found.names})
        raise UnknownControlError(f"{name} is unknown{did_you_mean(name, known)}. For your own: path: FILE.py:FUNCTION")
    return found[name].load()


@functools.cache
def _from_file(path: str) -> Callable[..., Tensor]:
    file, _, function = path.rpartition(":")
    if not file.endswith(".py") or not Path(file).is_file():
        raise ValueError(f"path={path!r} must be FILE.py:FUNCTION, with a file that every node has")
    spec = importlib.util.spec_from_file_location(f"verl_cov_own_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # anything: it is the user's code
        raise ValueError(f"path={path!r} cannot be imported: {type(error).__name__}: {error}") from None
    if not callable(getattr(module, function, None)):
        raise ValueError(f"path={path!r}: {file} has no function {function!r}")
    return getattr(module, function)
