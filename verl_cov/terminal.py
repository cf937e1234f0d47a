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


# What is wrong with the input, or with the machine's files.
EXPECTED = (OSError, ValueError, ArithmeticError)


@contextmanager
def one_line() -> Iterator[None]:
    """What is wrong with the input ends the program with one line and code 2."""
    try:
        yield
    except EXPECTED as error:
        fail(str(error))


def fail(*messages: str) -> NoReturn:
    """End the program with code 2 and a line for each message."""
    for message in messages:
        typer.echo(f"verl-cov: {message}", err=True)
    raise typer.Exit(2)
