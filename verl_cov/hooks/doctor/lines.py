"""What a check of the doctor says."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, WARN, FAIL = "ok", "note", "warn", "FAIL"


class Problem(Exception):
    """A failed check; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Line:
    """level: OK, NOTE (nothing to do), WARN (may matter) or FAIL (will not work); text: what was found, and the fix."""

    level: str
    check: str
    text: str
