"""Builds "did you mean ...?" messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that is unknown, with the nearest known names, or what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or [each for each in known if name and name in each]
    return f"there is no {what} {name!r}: " + (
        f"did you mean {' or '.join(near)}?" if near else f"there are {_listed(known)}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known name, or what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else f": use one of {_listed(known)}"


def _listed(known: list[str]) -> str:
    """The names; of more than 30 only the first ten."""
    if len(known) <= 30:
        return ", ".join(known)
    return f"{', '.join(known[:10])} and {len(known) - 10:,} more"
