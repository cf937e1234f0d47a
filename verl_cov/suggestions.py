"""What to say of a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that is not there: the nearest names, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or [one for one in known if name and name in one]
    return f"there is no {what} {name!r}: " + (
        f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    )
