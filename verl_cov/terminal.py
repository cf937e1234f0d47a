"""What the commands share: a console, signs of life, and errors in one line, packages not installed among them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


@contextmanager
def working(text: str, patience_s: float = 10.0) -> Iterator[None]:
    """Shows on standard error that something is going on: on a terminal at once, elsewhere a line if it takes long."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with console.status(text):
            yield
        return
    late = threading.Timer(patience_s, typer.echo, (f"verl-cov: {text} ...",), {"err": True})
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def counted(number: int, thing: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def examples(*lines: str) -> str:
    """The end of a command's help: a command line each."""
    return "\n\n".join(["Examples:", *lines])


# What is wrong with the input, or with the machine's files.
EXPECTED = (OSError, ValueError, ArithmeticError)


@contextmanager
def one_line() -> Iterator[None]:
    """What is wrong with the input ends the program with one line and code 2."""
    try:
        yield
    except EXPECTED as error:
        fail(told(error))


def told(error: Exception) -> str:
    """What an error says, in one line; the system's own name the path first: `runs/x: no such file or directory`."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return " ".join(str(error).split())


def without_traceback(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    """A `sys.excepthook`: what is wrong with the input is one line, and Ctrl-C none."""
    if isinstance(error, EXPECTED):
        typer.echo(f"verl-cov: {told(error)}", err=True)
    elif not isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, at)


# What brings a package that is not installed, by the name it is imported by.
EXTRAS = {
    "law": ("scipy", "statsmodels", "pandas", "matplotlib"),
    "tasks": ("math_verify", "latex2sympy2_extended", "sympy", "pyarrow", "datasets", "huggingface_hub", "filelock"),
}
VERLS = ("verl", "torch", "hydra", "omegaconf", "ray", "transformers", "tokenizers", "tensordict", "transfer_queue")


@contextmanager
def installed() -> Iterator[None]:
    """A package of an extra or of verl that is not installed ends the program with the line that names the fix, and
    code 2. Any other import that fails is a mistake of ours: it is raised."""
    try:
        yield
    except ModuleNotFoundError as error:
        line = missing(error.name or "")
        if line is None:
            raise
        typer.echo(f"verl-cov: {line}", err=True)
        raise SystemExit(2) from None


def missing(module: str) -> str | None:
    """The line for a module that is not installed; None for one that is neither of an extra nor verl's."""
    name = module.partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    if extra is not None:
        return f"this needs {name}, which is not installed: pip install 'verl-cov[{extra}]'"
    if name in VERLS:
        return (
            f"this needs verl and what comes with it, and {name} is not installed: run it where your verl is, or "
            "pip install 'verl-cov[verl]'"
        )
    return None


def fail(*messages: str) -> NoReturn:
    """End the program with code 2 and a line for each message."""
    for message in messages:
        typer.echo(f"verl-cov: {message}", err=True)
    raise typer.Exit(2)
