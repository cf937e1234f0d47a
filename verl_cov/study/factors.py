"""The factors of a study and their levels: which runs a part of a protocol means."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from verl_cov.suggestions import unknown

Levels = Mapping[str, str]  # factor -> level
Chosen = Mapping[str, tuple[str, ...]]  # factor -> levels


def levels_of(given: Any) -> dict[str, list[str]]:
    """level -> overrides."""
    if isinstance(given, dict):
        return {str(level): [str(word) for word in words or []] for level, words in given.items()}
    return {str(level): [] for level in given}


def chosen(given: Mapping[str, Any], factors: Mapping[str, Mapping[str, object]], where: str) -> dict[str, tuple]:
    """The levels that a part of the protocol names, by factor. Raises ValueError for one that is not there."""
    found = {
        str(name): tuple(map(str, levels if isinstance(levels, list) else [levels])) for name, levels in given.items()
    }
    check(found, factors, where)
    return found


def check(chosen: Chosen, factors: Mapping[str, Mapping[str, object]], where: str) -> None:
    """Raise ValueError for a factor or level that is not there."""
    for name, levels in chosen.items():
        if name not in factors:
            raise ValueError(unknown(f"factor ({where})", name, factors))
        for level in levels:
            if level not in factors[name]:
                raise ValueError(unknown(f"level of {name} ({where})", level, factors[name]))


def product(block: Chosen, usual: Levels) -> Iterator[Levels]:
    """The cells' levels, in the factors' order, the block's first factor changing slowest."""
    for levels in itertools.product(*block.values()):
        yield {**usual, **dict(zip(block, levels, strict=True))}
