"""What the commands share: a console, and errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


@contextmanager
def one_line() -> Iterator[None]:
    """What is wrong with the input ends the program with one line and code 2."""
    try:
        yield
    except (OSError, ValueError, ArithmeticError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    typer.echo(f"verl-cov: {message}", err=True)
    raise typer.Exit(2)
