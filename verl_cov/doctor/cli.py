"""`verl-cov doctor`: prints the checks as tables, or as one JSON object."""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_cov import __version__, terminal

if TYPE_CHECKING:
    from verl_cov.doctor.checks import Check

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="A run's overrides, as after `python -m verl.trainer.main_ppo`: +verl_cov=kl_cov ..."),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", exists=True, dir_okay=False, help="A run's whole configuration, a YAML file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]

STYLES = {"ok": "green", "note": "cyan", "warn": "yellow", "FAIL": "bold red"}


def doctor(overrides: Overrides = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """What is installed, whether verl finds verl-cov, and whether a given run would use it. Exit code 1 if something
    is wrong; the fix stands beside it."""
    if overrides and config:
        terminal.fail("give either overrides or --config FILE, not both")
    from verl_cov.doctor import checks, run

    gc.disable()  # verl's import makes objects that all stay: to look through them took a third of the time
    try:
        with redirect_stdout(sys.stderr):  # what verl prints is no part of the report
            sections = {"versions": list(checks.check_versions()), "verl": list(checks.check_verl())}
            if overrides or config:
                sections["run"] = list(run.check_run(overrides or [], config))
            sections["machine"] = list(checks.check_machine())
    finally:
        gc.freeze()  # nor are they looked through as the process ends
        gc.enable()
    levels = Counter(check.level for section in sections.values() for check in section)
    failed = levels["FAIL"]
    if as_json:
        lines = {title: [asdict(check) for check in section] for title, section in sections.items()}
        typer.echo(json.dumps({"verl_cov": __version__, "ok": not failed, **lines}, indent=1))
    else:
        _print(sections)
        if failed:
            summary = f"[bold red]{failed} FAILED"
        else:
            summary = f"[yellow]{levels['warn']} to look at" if levels["warn"] else "[green]all is well"
        terminal.console().print(summary)
    raise typer.Exit(1 if failed else 0)


def _print(sections: dict[str, list[Check]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(width=4)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, section in sections.items():
        table.add_row("", Text(title, "bold"))
        for check in section:
            table.add_row(Text(check.level, STYLES[check.level]), check.name, Text(check.text))
    terminal.console().print(table)
