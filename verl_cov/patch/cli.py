"""`verl-cov patch`: list, check, apply and revert. Each command imports what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_cov import terminal

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Patch an installed verl, reviewed diffs in place of a hook."
)

VerlPath = Annotated[
    Path | None,
    typer.Option("--verl-path", help="The folder verl, its site-packages, or a checkout; else this Python's."),
]


@app.command("list")
def list_sets(verl_path: VerlPath = None) -> None:
    """Which releases of verl there is a patch for, and which one is here."""
    from rich.markup import escape
    from rich.table import Table

    from verl_cov.patch import PatchError, commands, sets

    console = terminal.console()
    with terminal.one_line():
        releases = sets.releases()
    mine = None
    try:
        found = commands.status(verl_path)
        mine, line = found.patch_set, found.line()
    except terminal.EXPECTED as error:
        if verl_path is not None:
            terminal.fail(str(error))
        line = str(error)
    table = Table("", "verl", "files", "what it does", box=None, padding=(0, 2, 0, 0))
    damaged = False
    for release in releases:
        try:
            one = sets.read(sets.folder() / release)
        except PatchError as error:
            damaged = True
            table.add_row("", release, "", f"[red]{escape(str(error))}")
            continue
        mark = "*" if mine is not None and mine.verl == release else ""
        table.add_row(mark, release, str(len(one.files)), escape(one.summary))
    console.print(table)
    console.print(f"* {line}" if mine is not None else line, markup=False, soft_wrap=True)
    raise typer.Exit(1 if damaged else 0)


@app.command()
def check(verl_path: VerlPath = None) -> None:
    """Is it applied, or can it be? One line; exit code 0 if so, 1 if not. Changes nothing."""
    from verl_cov.patch import commands

    try:
        found = commands.status(verl_path)
    except terminal.EXPECTED as error:
        typer.echo(f"verl-cov: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(found.line())
    raise typer.Exit(0 if found.applied or found.applicable else 1)


@app.command()
def apply(verl_path: VerlPath = None) -> None:
    """Patch verl, all of it or nothing, and keep the originals."""
    from verl_cov.patch import commands

    with terminal.one_line():
        said = commands.apply(verl_path)
    for line in said:
        typer.echo(line)


@app.command()
def revert(verl_path: VerlPath = None) -> None:
    """Bring verl's own files back, byte for byte; also after an `apply` that was killed."""
    from verl_cov.patch import commands

    with terminal.one_line():
        said = commands.revert(verl_path)
    for line in said:
        typer.echo(line)
