"""Tables of paired timings (:mod:`verl_cov.selftest.speed`)."""

from __future__ import annotations

import statistics

from verl_cov.selftest.speed import paired, ratio

__all__ = ["milliseconds", "paired", "ratio", "table"]


def milliseconds(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.3g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])
