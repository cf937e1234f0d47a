"""The command ``verl-cov``. Each command imports what it needs, so that ``--help`` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_cov import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Clip-Cov and KL-Cov for verl.")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


@app.command()
def doctor(
    ray: bool = typer.Option(True, help="Also look inside a Ray worker (about 15 s)."),
) -> None:
    """Check that verl finds and uses verl-cov here. Exit code 0 if all is well, 1 if not; each failure says the fix."""
    from verl_cov.host import doctor as checks

    raise typer.Exit(0 if checks.run(with_ray=ray) else 1)


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

    from verl_cov import token_dump

    path = file / token_dump.FILE if file.is_dir() else file
    console = Console(highlight=False)
    try:
        dump = token_dump.read(path)
        console.print(token_dump.view(dump, step, top))
    except FileNotFoundError:
        _fail(f"there is no {path}: train with policy_loss.cov_dump_every=10, say, to have it written")
    except (OSError, ValueError) as error:
        _fail(f"{path}: {error}")
    if dump.damaged:
        console.print(f"Damaged lines left out: {dump.damaged}")


@app.command()
def watch(
    runs: Annotated[
        list[Path], typer.Argument(help="Metrics files of verl's `file` logger, folders of runs, or folders of those.")
    ],
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print once and end.")] = False,
    png: Annotated[Path | None, typer.Option(help="Also draw this picture, again whenever a run has gone on.")] = None,
) -> None:
    """Show running or finished trainings: score, entropy and why it falls, and where the law says they end."""
    from verl_cov.watch import live

    try:
        live.watch(runs, interval=interval, once=once, png=png)
    except (OSError, ValueError) as error:
        _fail(str(error))


def _fail(message: str) -> None:
    typer.echo(f"verl-cov: {message}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """Entry point of the console script."""
    app()
