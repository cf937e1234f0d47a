"""`verl-cov selftest`: shows that what verl-cov promises holds on this machine, and writes a file to send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_cov import terminal
from verl_cov.selftest import DEFAULT_LEVELS, FULL_HELP, LEVELS_HELP

EXAMPLES = terminal.examples(
    "verl-cov selftest -o result.json",
    "verl-cov selftest --device cpu",
    "torchrun --nproc-per-node 8 -m verl_cov.selftest -o result.json",
)
FILE = typer.Option("--output", "-o", dir_okay=False, help="Write the result as JSON, to be sent.", metavar="FILE")


def selftest(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    full: Annotated[bool, typer.Option("--full", help=FULL_HELP)] = False,
    output: Annotated[Path | None, FILE] = None,
    levels: Annotated[str, typer.Option(help=LEVELS_HELP)] = DEFAULT_LEVELS,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what verl and torch print.")] = False,
) -> None:
    """Selection, losses and verl's own engine on this machine against a numpy oracle, in about two minutes.

    Each check is reported as passed, failed with the cause, or not possible here and why. Exit code 1 if one failed.
    """
    from verl_cov.selftest import whole

    with terminal.one_line(), terminal.working("trying what verl-cov promises, on this machine"):
        code = whole.selftest(device, full, output, tuple(levels.split(",")), verbose)
    raise typer.Exit(code)
