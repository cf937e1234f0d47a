"""The command ``verl-cov``. Each command imports what it needs, so that ``--help`` is instant."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from verl_cov import __version__, patch, terminal
from verl_cov.doctor.cli import doctor
from verl_cov.recipes import cli as recipes
from verl_cov.tasks import data_cli

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Clip-Cov and KL-Cov for verl; where a run's entropy goes, and where its score ends.",
)
app.add_typer(recipes.app, name="recipes")
app.add_typer(data_cli.app, name="data")
app.add_typer(patch.app, name="patch")
app.command()(doctor)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


@app.command()
def tokens(
    file: Annotated[
        Path, typer.Argument(help="A dump: cov_dump_dir/tokens.jsonl (cov_dump_every), or the folder it is in.")
    ],
    step: Annotated[int | None, typer.Option(help="Rollout step; the last one if not given.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many tokens.")] = 20,
) -> None:
    """Show the tokens with the highest covariance, in context: what Clip-Cov and KL-Cov act on."""
    from rich.console import Console

    from verl_cov.core import token_file

    path = file / token_file.FILE if file.is_dir() else file
    console = Console(highlight=False)
    try:
        dump = token_file.read(path)
        console.print(token_file.view(dump, step, top))
    except FileNotFoundError:
        terminal.fail(f"there is no {path}: train with policy_loss.cov_dump_every=10, say, to have it written")
    except (OSError, ValueError) as error:
        terminal.fail(f"{path}: {error}")
    if dump.damaged:
        console.print(f"Damaged lines left out: {dump.damaged}")


for command in law.COMMANDS:
    app.command()(command)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII only still gets the numbers
    with terminal.installed():
        app()
