"""The result of a self-test: a table on the screen, and a JSON file to send, which this module also reads."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_cov import __version__

if TYPE_CHECKING:
    from verl_cov.selftest.ranks import Rank

FORMAT = 1
FIELDS: dict[str, Any] = {"format": int, "verl_cov": str, "date": str, "seconds": (int, float)}
FIELDS |= {"versions": dict, "hardware": dict, "checks": list, "timings": list}
STYLES = {"passed": "green", "failed": "bold red", "not possible": "dim"}
OUTCOMES = tuple(STYLES)

Result = dict[str, Any]


def of(here: Rank, seconds: float) -> Result:
    """The result as one JSON object."""
    from verl_cov.selftest import machine

    return {
        "format": FORMAT,
        "verl_cov": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
        "versions": machine.versions(),
        "hardware": machine.hardware(here.device, here.ranks),
        "checks": [asdict(check) for check in here.checks],
        "timings": here.timings,
    }


def read(path: Path) -> Result:
    """Reads a result. Raises ValueError, in one line, for a file that is none or is damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    for name, kind in FIELDS.items():
        if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
            raise ValueError(f"{name} is missing or of another type")
    if found["format"] != FORMAT:
        raise ValueError(f"format {found['format']}, and this verl-cov reads {FORMAT}")
    for check in found["checks"]:
        if not (isinstance(check, dict) and {"level", "name", "cause"} <= check.keys()):
            raise ValueError("a check without level, name or cause")
        if check.get("outcome") not in OUTCOMES:
            raise ValueError(f"a check with the outcome {check.get('outcome')!r}")
    return found


def counts(result: Result, level: str) -> str:
    """`24 passed, 3 not possible`; "" if nothing of that level ran."""
    found = Counter(check["outcome"] for check in result["checks"] if check["level"] == level)
    return ", ".join(f"{found[outcome]} {outcome}" for outcome in OUTCOMES if found[outcome])


def rows(result: Result) -> list[tuple[str, str, str]]:
    """(outcome, check, cause) of each check."""
    return [(check["outcome"], f"{check['level']}: {check['name']}", check["cause"]) for check in result["checks"]]


def show(result: Result) -> None:
    """Prints the result: with rich where it is installed, else as plain lines."""
    try:
        _show_with_rich(result)
    except ModuleNotFoundError:
        for row in rows(result):
            print("  ".join(part for part in row if part))
        for timing in result["timings"]:
            print(f"{timing['name']}, {timing['tokens']:,} tokens: {timing['ms']:g} ms; {_against(timing)}")
    print(summary(result))


def _show_with_rich(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=140)
    table = Table(box=None, show_header=False, pad_edge=False)
    for outcome, name, cause in rows(result):
        table.add_row(Text(outcome, STYLES[outcome]), Text(name), Text(cause))
    console.print(table)
    times = Table("what", "tokens", "ms (median)", "against", box=None, pad_edge=False, title_justify="left")
    for timing in result["timings"]:
        times.add_row(timing["name"], f"{timing['tokens']:,}", f"{timing['ms']:g}", _against(timing))
    console.print("", times)


def _against(timing: dict[str, Any]) -> str:
    found = ", ".join(f"{value:g} x {name}" for name, value in timing["against"].items())
    return found + (f"; {timing['peak_bytes'] / 1e6:,.0f} MB at the peak" if "peak_bytes" in timing else "")


def summary(result: Result) -> str:
    """What it came to, in a line."""
    levels = {check["level"]: None for check in result["checks"]}
    where = result["hardware"].get("accelerator") or "the CPU"
    ran = "; ".join(f"{level} {counts(result, level)}" for level in levels)
    failed = any(check["outcome"] == "failed" for check in result["checks"])
    return f"{'FAILED' if failed else 'All that is possible here holds'} on {where}: {ran} ({result['seconds']:g} s)"
