"""How a command of the law gives its answer: lines on the terminal, JSON, a file, a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from verl_cov import terminal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from verl_cov.law.points import Points
    from verl_cov.law.to_json import Json


def check_output(output: Path | None, inputs: Sequence[Path]) -> None:
    """Refuses a file to write that is an input, or whose ending names no format."""
    from verl_cov.law import files

    if output is not None:
        files.check_output(output, (".json", *files.PICTURES), inputs)


def give(answer: Json, as_json: bool, output: Path | None, draw: Callable[[], Figure]) -> None:
    """Write the answer, or its picture, to `output`, and print it if it is wanted as JSON."""
    from verl_cov.law import files, to_json
    from verl_cov.law.plots import style

    if output is not None and output.suffix.lower() == ".json":
        files.write(output, to_json.dumps(answer).encode(errors="replace"))
    elif output is not None:
        files.write(output, style.picture(draw(), output.suffix))
    if as_json:
        typer.echo(to_json.dumps(answer), nl=False)


def print_line(line: str, style: str = "") -> None:
    """Prints a line of an answer, whatever its width."""
    terminal.console().print(line, style=style, markup=False, soft_wrap=True)


def print_warnings(warnings: Sequence[str]) -> None:
    """Prints each on a line of its own."""
    for warning in warnings:
        print_line(f"Warning: {warning}", style="yellow")


def print_notes(runs: Sequence[Points]) -> None:
    """Prints how each run was read; a note of several runs once."""
    from verl_cov.law.tables import remarks

    for who, notes in remarks(runs):
        print_line(" ".join(notes) if len(runs) == 1 else f"{who}: {' '.join(notes)}", style="dim")
