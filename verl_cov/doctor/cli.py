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
    from verl_cov.doctor.checks import Check, Level

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="A run's overrides, as after `python -m verl.trainer.main_ppo`: +verl_cov=kl_cov ...",
        autocompletion=lambda incomplete: [f for f in _flags() if f.startswith(incomplete)],
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", exists=True, dir_okay=False, help="A run's whole configuration, a YAML file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]

EXAMPLES = terminal.examples(
    "verl-cov doctor",
    "verl-cov doctor +verl_cov=kl_cov data.train_batch_size=256",
    "verl-cov doctor --config outputs/2026-01-01/10-00-00/.hydra/config.yaml",
)
TRAINER = "verl.trainer.main_ppo"
STYLES = {"ok": "green", "note": "cyan", "warn": "yellow", "FAIL": "bold red"}


def doctor(overrides: Overrides = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """What is installed, whether verl finds verl-cov, and whether a given run would use it. Exit code 1 if something
    is wrong; the fix stands beside it."""
    overrides = _overrides(overrides or [])
    if overrides and config:
        terminal.fail("give either overrides or --config FILE, not both")
    from verl_cov.doctor import checks, run

    gc.disable()  # verl's import makes objects that all stay: to look through them took a third of the time
    try:
        # What verl prints is no part of the report.
        with terminal.working("importing verl, as every process of a run does"), redirect_stdout(sys.stderr):
            needed = bool(overrides or config) or not checks.has("law")
            sections = {"versions": list(checks.check_versions()), "verl": list(checks.check_verl(needed))}
            if overrides or config:
                sections["run"] = list(run.check_run(overrides, config))
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
        here = not any(run.NOT_HERE in check.text for check in sections.get("run", ()))
        terminal.console().print(_summary(levels, asked=bool(overrides or config), here=here), soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


def _overrides(words: list[str]) -> list[str]:
    """The overrides among the words; those before them of a whole command that was pasted are left out.

    Ends the program, with the fix, for a word that cannot be judged.
    """
    module = TRAINER
    if "-m" in words[:-1]:
        module = words[words.index("-m") + 1]
        words = words[words.index("-m") + 2 :]
    of_file = "to judge a run of another configuration, save it, `python -m MODULE YOUR_OPTIONS --cfg job > run.yaml`, "
    of_file += "and give --config run.yaml"
    if module != TRAINER:
        terminal.fail(f"only {TRAINER}'s options can be composed here, not {module}'s: {of_file}")
    for word in words:
        if word.startswith("--config-"):
            terminal.fail(f"{word} cannot be composed here: {of_file}")
        if word.startswith("-"):
            terminal.fail(f"there is no option {word}: `verl-cov doctor --help` has them all")
        if "=" not in word and not word.startswith("~"):
            terminal.fail(f"{word} is no override (KEY=VALUE): give what comes after `python -m {TRAINER}`")
    return words


def _flags() -> list[str]:
    from verl_cov.hooks.checks import command_line

    return [f"+{command_line.GROUP}={name}" for name in command_line.names(command_line.GROUP)]


def _summary(levels: Counter[Level], asked: bool, here: bool) -> str:
    """What it all comes to, and what to do next."""
    if levels["FAIL"]:
        return f"[bold red]{levels['FAIL']} FAILED[/]: mend that, then `verl-cov doctor` again"
    said = f"[yellow]{levels['warn']} to look at[/]" if levels["warn"] else "[green]all is well[/]"
    if not here:
        return f"{said}: it would not start here; where that is mended, start the run with the same options"
    if asked:
        return f"{said}: start the run with the same options"
    asks = "would your run use it? `verl-cov doctor YOUR_OPTIONS +verl_cov=kl_cov`"
    return f"{said}; {asks}; does it select and train right on this machine? `verl-cov selftest`"


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
