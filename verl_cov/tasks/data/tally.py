"""What happened to the rows of a source on their way into a file, and what a user should be told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_cov.tasks.data.sets import DataSet
from verl_cov.terminal import counted

UNKNOWN = "none of the known formats"
TOO_MANY_DROPPED = 0.05  # share of the rows; above it there is a warning


@dataclass
class Tally:
    """How many rows were read, kept and written, and why the others were not.

    left_out: rows of other sets. dropped: rows that cannot be used. Both hold [count, example] by reason. conflicts:
    duplicates with another answer than the first row of their question; conflict: one of them.
    """

    read: int = 0
    kept: int = 0
    written: int = 0
    duplicates: int = 0
    conflicts: int = 0
    conflict: str | None = None
    left_out: dict[str, list[Any]] = field(default_factory=dict)
    dropped: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def candidates(self) -> int:
        """How many rows are of this set, usable or not."""
        return self.read - sum(count for count, _ in self.left_out.values())

    @property
    def unusable(self) -> int:
        """How many rows were dropped, duplicates not counted."""
        return sum(count for count, _ in self.dropped.values())

    @staticmethod
    def count(reasons: dict[str, list[Any]], reason: str, example: str) -> None:
        """Count one more row under `reason`; the first row becomes its example."""
        reasons.setdefault(_printable(reason), [0, example])[0] += 1  # the reason may quote the row

    def as_json(self) -> dict[str, Any]:
        """The tally as the stamp holds it."""
        reasons = {
            name: {reason: {"count": count, "example": example} for reason, (count, example) in by_reason.items()}
            for name, by_reason in (("left_out", self.left_out), ("dropped", self.dropped))
        }
        duplicates = {"count": self.duplicates, "conflicts": self.conflicts, "conflict": self.conflict}
        return {"read": self.read, "kept": self.kept, "written": self.written, "duplicates": duplicates, **reasons}


def warnings(dataset: DataSet, tally: Tally) -> dict[str, str]:
    """What a user should be warned of, by subject: rows, dropped, conflicts."""
    lines = {}
    if dataset.rows and tally.candidates not in dataset.rows:
        known = " or ".join(f"{number:,}" for number in dataset.rows)
        hint = f": {dataset.hint}" if dataset.hint else ""
        lines["rows"] = f"{counted(tally.candidates, 'row')}, where the known source has {known}{hint}"
    share = tally.unusable / tally.candidates
    if share > TOO_MANY_DROPPED:
        reason, (count, example) = max(tally.dropped.items(), key=lambda item: item[1][0])
        lines["dropped"] = f"{share:.0%} of the rows dropped; most often: {reason} ({count:,}), such as {example}"
    if tally.conflicts:
        lines["conflicts"] = (
            f"{counted(tally.conflicts, 'duplicate')} with another answer than the question's first, which is kept; "
            f"such as {tally.conflict}"
        )
    return lines


def nothing_usable(dataset: DataSet, source_name: str, tally: Tally, fields: list[str]) -> str:
    """Why no row of a source with these fields was usable: most often because it has another format."""
    if not tally.read:
        return f"{dataset.name}: {source_name} has no rows"
    reasons = {**tally.left_out, **tally.dropped}
    counted = "; ".join(f"{reason} ({count})" for reason, (count, _) in reasons.items())
    unknown = set(tally.dropped) == {UNKNOWN} and not tally.left_out
    if not unknown:
        return f"{dataset.name}: none of the {tally.read} rows of {source_name} can be used: {counted}"
    formats = ", or ".join(" and ".join(known.fields) for known in dataset.formats)
    return f"{dataset.name}: {source_name} has the fields {', '.join(fields)}; what can be read has {formats}"


def excerpt(row: Mapping[str, Any], count: int) -> str:
    """The `count`-th row of a source (from 1), as an example: its number (from 0) and the beginning of its question."""
    question = next(
        (row[name] for name in ("question", "problem", "Problem", "prompt") if row.get(name)), "no question"
    )
    if isinstance(question, list) and isinstance(question[-1], Mapping):
        question = question[-1].get("content")
    return _printable(f"row {count - 1}: {' '.join(str(question)[:200].split())[:100]}")


def _printable(text: str) -> str:
    """The text with halves of surrogate pairs as `\\ud800`: neither the stamp nor a terminal can hold them."""
    return text.encode(errors="backslashreplace").decode()
