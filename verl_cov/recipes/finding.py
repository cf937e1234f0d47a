"""What a check before a run found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing checked. what: config, model, ..., note; missing: it stops the run; text: a line, with the fix."""

    what: str
    missing: bool
    text: str
