"""Paired timings: the contestants take turns, so that a busy machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def paired(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round; a first, unmeasured round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, call in contestants.items():
            started = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, baseline: str) -> float:
    """Median over the rounds of name's time by the baseline's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[baseline], strict=True))


def milliseconds(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.3g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])
