"""`verl-cov data`: list, prepare, check and contamination. Each command imports what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_cov import terminal

if TYPE_CHECKING:
    from rich.console import Console

    from verl_cov.tasks.contamination import Contamination
    from verl_cov.tasks.prepare import Prepared
    from verl_cov.tasks.sets import DataSet

app = typer.Typer(no_args_is_help=True, help="The data sets of the paper's runs, in verl's format (docs/data.md).")

Names = Annotated[list[str], typer.Argument(help="Sets, as `verl-cov data list` names them.")]
Given = Annotated[
    str | None,
    typer.Option("--from", help="File or folder, a dataset's id on the Hugging Face Hub, or `sample`. Default: the id"),
]
Folder = Annotated[Path, typer.Option("-o", "--output", help="Folder to write NAME.parquet and NAME.json to.")]
ParquetFiles = Annotated[list[Path], typer.Argument(help="Files that `verl-cov data prepare` wrote, or like them.")]


@app.command(name="list")
def list_command() -> None:
    """The sets: what they are for, how many rows they have, how validation samples them, where they are from."""
    from rich.table import Table

    from verl_cov.tasks.sets import SETS

    table = Table()
    for column in ("set", "split", "ability", "rows known", "copies", "temperature", "licence", "from"):
        table.add_column(column, justify="right" if column in ("rows known", "copies") else "left")
    for one in SETS.values():
        table.add_row(
            one.name,
            one.split,
            one.ability,
            " or ".join(f"{rows:,}" for rows in one.rows) or "?",
            str(one.copies) if one.split == "test" else "",
            "" if one.temperature is None else "greedy" if one.temperature == 0 else f"{one.temperature:g}",
            one.license or "?",
            one.where,
        )
    terminal.console().print(table)


@app.command()
def prepare(
    names: Names,
    given: Given = None,
    output: Folder = Path("data"),
    strict: Annotated[bool, typer.Option("--strict", help="An unknown number of rows is an error.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Make the files again.")] = False,
) -> None:
    """Write sets as verl reads them: deduplicated, with instructions and copies. A second run does nothing.

    A set that cannot be had does not stop the others: it ends the command with code 2 and a line.
    """
    from verl_cov.tasks.prepare import prepare as make

    console = terminal.console()
    with terminal.one_line():
        chosen = _sets(names)
    failures = []
    # Evaluation sets first: training sets are compared with them.
    for dataset in sorted(chosen, key=lambda one: one.split == "train"):
        try:
            with _bar(f"preparing {dataset.name}") as show:
                done = make(dataset, given, output, strict=strict, force=force, progress=show)
            _say_prepared(console, dataset, done)
            if dataset.split == "train" and done.fresh:
                _compare(console, dataset, done.path)
        except terminal.EXPECTED as error:
            failures.append(str(error) if str(error).startswith(dataset.name) else f"{dataset.name}: {error}")
    if failures:
        terminal.fail(*failures)


@app.command()
def check(
    files: ParquetFiles,
    full: Annotated[bool, typer.Option("--full", help="Look into every row, not only the first 64.")] = False,
) -> None:
    """Check files against what the recipes and verl expect. Exit code 2 with one line: file, row, field, fix."""
    from verl_cov.tasks.rows import check_file

    console = terminal.console()
    for path in files:
        with terminal.one_line():
            report = check_file(path, full=full)
        sampled = [t for t in report.temperatures if t is not None]
        console.print(
            f"{path}: {report.rows:,} rows of {', '.join(report.data_sources)} ({', '.join(report.splits)}"
            + (f", temperature {', '.join(f'{t:g}' for t in sampled)}" if sampled else "")
            + f"), {'every row' if full else f'the first {report.checked}'} checked",
            markup=False,
            soft_wrap=True,
        )


@app.command(name="contamination")
def contamination_command(
    files: ParquetFiles,
    remove: Annotated[bool, typer.Option("--remove", help="Take what is found out of the training files.")] = False,
) -> None:
    """Find training questions that are in evaluation sets: the same question, or 13 words in a row."""
    from verl_cov.tasks import contamination

    console = terminal.console()
    with terminal.one_line():
        training, evaluation = contamination.split_files(files)
        with _bar("comparing") as show:
            every = list(contamination.find_each(training, evaluation, show))
        for found in every:
            _say_contamination(console, found, hint=not remove)
            if remove and found.indexes:
                removed = contamination.remove(found)
                console.print(
                    f"{found.training}: {removed:,} rows removed, {found.rows - removed:,} left", markup=False
                )


def _sets(names: list[str]) -> list[DataSet]:
    from verl_cov.suggestions import unknown
    from verl_cov.tasks.sets import SETS

    found = []
    for name in dict.fromkeys(names):
        if name not in SETS:
            raise ValueError(unknown("set", name, SETS))
        found.append(SETS[name])
    return found


def _compare(console: Console, dataset: DataSet, training: Path) -> None:
    """Say what of a training set is in the evaluation sets beside it."""
    from verl_cov.tasks import contamination

    evaluation = _evaluation_files(training.parent, dataset.ability)
    if evaluation:
        with _bar(f"comparing {dataset.name} with {len(evaluation)} evaluation sets") as show:
            found = contamination.find(training, evaluation, show)
        _say_contamination(console, found)


def _evaluation_files(folder: Path, ability: str) -> list[Path]:
    """The prepared evaluation sets of a folder; mathematics is not looked for in code."""
    from verl_cov.tasks.sets import SETS

    sets = (one for one in SETS.values() if one.split == "test" and one.ability == ability)
    return [path for one in sets if (path := folder / f"{one.name}.parquet").is_file()]


def _say_prepared(console: Console, dataset: DataSet, done: Prepared) -> None:
    rows, source = done.stamp["rows"], done.stamp["source"]
    copies = f" x {dataset.copies} copies" if dataset.copies > 1 else ""
    state = "" if done.fresh else " (was there already)"
    _print(console, f"{done.path}{state}: {rows['kept']:,} of {rows['read']:,} rows{copies}", "bold")
    if rows["duplicates"]["count"]:
        conflicts = rows["duplicates"]["conflicts"]
        other = f", {conflicts:,} of them with another answer" if conflicts else ""
        _print(console, f"  {rows['duplicates']['count']:,} duplicates{other}")
    for kind, words in (("left_out", "not of this set"), ("dropped", "dropped")):
        for reason, found in rows[kind].items():
            _print(console, f"  {found['count']:,} {words}: {reason}, such as {found['example']}")
    for name, found in done.stamp.get("contamination_removed", {}).items():
        _print(console, f"  {found['exact'] + found['overlap']:,} removed that are in {name}")
    if source["kind"] == "sample":
        _print(console, "  made of the sample, a few rows to try things out with: not for training", "yellow")
    for warning in done.warnings:
        _print(console, f"  Warning: {warning}", "yellow")


def _say_contamination(console: Console, found: Contamination, hint: bool = True) -> None:
    for one in found.overlaps:
        if one.example is None:
            continue
        _print(
            console,
            f"{found.training.stem}: {one.exact:,} of {found.rows:,} questions are in {one.evaluation}, "
            f"{one.overlap:,} more share 13 words in a row with it, such as",
            "yellow",
        )
        for text in one.example:
            _print(console, f"  {' '.join(text[:400].split())[:160]}")
    names = ", ".join(one.evaluation for one in found.overlaps)
    if not found.indexes:
        _print(console, f"{found.training.stem}: none of {found.rows:,} questions is in {names}")
    elif hint:
        _print(console, f"  {len(found.indexes):,} rows in all; `verl-cov data contamination --remove` takes them out")


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(text, markup=False, style=style, soft_wrap=True)


@contextmanager
def _bar(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on a terminal's standard error; elsewhere nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    with bar if console.is_terminal else nullcontext():  # not `disable`: older rich ends such a bar with an empty line
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
