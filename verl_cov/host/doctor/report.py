"""What the doctor prints: a line a check, the table of features, or one JSON object."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape

from verl_cov import __version__
from verl_cov.host import versions
from verl_cov.host.doctor import features
from verl_cov.host.doctor.checks import examine
from verl_cov.host.doctor.features import Feature
from verl_cov.host.doctor.installed import Installed
from verl_cov.host.doctor.lines import FAIL, NOTE, OK, WARN, Line

COLOURS = {OK: "green", NOTE: "cyan", WARN: "yellow", FAIL: "red"}


def run(with_ray: bool = True, console: Console | None = None, as_json: bool = False) -> bool:
    """Run every check, print a line each (or one JSON object at the end), return True if none failed."""
    console = console or Console()
    found, lines = Installed(), []
    if not as_json:
        console.print(f"verl-cov {__version__}", highlight=False)
    for line in examine(found, with_ray):
        lines.append(line)
        if not as_json:
            _print(console, COLOURS[line.level], line.level, line.check, line.text)
    failed = sum(line.level == FAIL for line in lines)
    rows = table(found)
    if as_json:
        print(json.dumps(_report(found, lines, rows), indent=1))
        return not failed
    if rows:
        console.print(f"What works with verl {found.version}:", highlight=False)
    for row in rows:
        # What a newer verl has is said once, below.
        text = f"{row.why}: {row.fix}" if row.fix and row.fix != features.NEWER else row.why
        colour = "green" if row.state == features.YES else "yellow"
        _print(console, colour, f"      {row.name:<29}", f"{row.state:<15}", text, width=0)
    if any(row.fix == features.NEWER for row in rows):
        console.print(f"All of it works with verl {versions.NEWEST.version}: {features.NEWER}", highlight=False)
    console.print("[green]all is well[/green]" if not failed else f"[red]{failed} failed[/red]")
    return not failed


def _print(console: Console, colour: str, mark: str, title: str, text: str, width: int = 20) -> None:
    line = f"[{colour}]{escape(f'{mark:<4}')}[/{colour}]  {escape(f'{title:<{width}}')}  {escape(text)}"
    console.print(line.rstrip(), highlight=False, markup=True, soft_wrap=True)


def _report(found: Installed, lines: list[Line], rows: list[Feature]) -> dict[str, Any]:
    compared = found.compared
    return {
        "verl_cov": __version__,
        "verl": found.version,
        "package": None if found.package is None else str(found.package),
        "release": None if found.release is None else found.release.version,
        "plugin_by": None if found.release is None else found.release.plugins,
        "patch": None if found.patch_state is None else found.patch_state,
        "compared_with": None if compared is None else compared.release,
        "differing": [] if compared is None else [asdict(lean) for lean in compared.differing],
        "missing": [] if compared is None else [asdict(lean) for lean in compared.missing],
        "ok": not any(line.level == FAIL for line in lines),
        "checks": [asdict(line) for line in lines],
        "features": [{"feature": row.name, "state": row.state, "why": row.why, "fix": row.fix} for row in rows],
    }


def table(found: Installed) -> list[Feature]:
    """What of verl-cov works with this verl as it is; a state may also be "at risk" here."""
    release, compared = found.release, found.compared
    if release is None or compared is None:
        return []
    gone, risk = compared.gone(), compared.at_risk()
    patched = found.patch_state == "applied"
    rows = []
    for feature in features.of(release):
        if feature.state == features.PATCH and patched:
            rows.append(Feature(feature.name, features.YES, "the patch is applied"))
        elif feature.state != features.NO and feature.name in gone:
            rows.append(Feature(feature.name, features.NO, "this verl lacks what it leans on, see above"))
        elif feature.state != features.NO and feature.name in risk:
            rows.append(Feature(feature.name, "at risk", "this verl differs where it leans on it, see above"))
        else:
            rows.append(feature)
    return rows
