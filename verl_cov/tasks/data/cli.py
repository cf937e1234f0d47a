"""The commands `verl-cov data list`, `prepare`, `check` and `contamination`. Each imports what it needs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_cov import terminal
from verl_cov.terminal import counted

if TYPE_CHECKING:
    from rich.console import Console

    from verl_cov.tasks.data.contamination import Contamination
    from verl_cov.tasks.data.prepare import Prepared
    from verl_cov.tasks.data.sets import DataSet

app = typer.Typer(
    no_args_is_help=True, help="The data sets of the paper's runs, in verl's format; more: `verl-cov docs data`."
)


def _complete(incomplete: str) -> list[str]:
    from verl_cov.tasks.data.sets import SETS

    return [name for name in SETS if name.startswith(incomplete)]


SetNames = Annotated[
    list[str], typer.Argument(help="Sets, as `verl-cov data list` names them.", autocompletion=_complete)
]
Given = Annotated[
    str | None,
    typer.Option("--from", help="File or folder, a dataset's id on the Hugging Face Hub, or `sample`. Default: the id"),
]
Folder = Annotated[Path, typer.Option("-o", "--output", help="Folder to write NAME.parquet and NAME.json to.")]
ParquetFiles = Annotated[list[Path], typer.Argument(help="Files that `verl-cov data prepare` wrote, or like them.")]


@app.command(name="list")
def list_command() -> None:
    """List the sets: what for, how many rows, how validation samples them, where from."""
    from rich.table import Table

    from verl_cov.tasks.data.sets import SETS

    table = Table()
    for column in ("set", "split", "ability", "rows known", "copies", "temperature", "licence", "from"):
        table.add_column(column, justify="right" if column in ("rows known", "copies") else "left")
    for dataset in SETS.values():
        temperature = dataset.temperature
        table.add_row(
            dataset.name,
            dataset.split,
            dataset.ability,
            " or ".join(f"{rows:,}" for rows in dataset.rows) or "?",
            str(dataset.copies) if dataset.split == "test" else "",
            "" if temperature is None else "greedy" if temperature == 0 else f"{temperature:g}",
            dataset.license or "?",
            dataset.where,
        )
    terminal.console().print(table)


@app.command(
    epilog=terminal.examples(
        "verl-cov data prepare gsm8k gsm8k_test -o data",
        "verl-cov data prepare omni_math --from omni_math_rule.jsonl -o data",
        "verl-cov data prepare gsm8k --from sample -o sample-data",
    )
)
def prepare(
    names: SetNames,
    given: Given = None,
    output: Folder = Path("data"),
    strict: Annotated[bool, typer.Option("--strict", help="An unknown number of rows is an error.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Make the files again.")] = False,
) -> None:
    """Write sets as verl reads them: deduplicated, with instructions and copies. A second run does nothing.

    A set that cannot be prepared does not stop the others; the command then ends with code 2 and a line for each.
    """
    from verl_cov.tasks.data.prepare import prepare as prepare_set

    console = terminal.console()
    with terminal.one_line():
        datasets = _sets(names)
        if not output.parent.is_dir():
            raise ValueError(f"-o {output}: give a folder in one that exists")
    failures = []
    # Evaluation sets first: training sets are compared with them.
    for dataset in sorted(datasets, key=lambda dataset: dataset.split == "train"):
        try:
            with _bar(f"preparing {dataset.name}") as show:
                prepared = prepare_set(dataset, given, output, strict=strict, force=force, progress=show)
            _print_prepared(console, dataset, prepared)
            if dataset.split == "train" and prepared.fresh:
                _compare(console, dataset, prepared.path)
        except terminal.EXPECTED as error:
            line = terminal.told(error)
            failures.append(line if line.startswith(dataset.name) else f"{dataset.name}: {line}")
    if failures:
        terminal.fail(*failures)
    folder = shlex.quote(str(output))
    _print(console, f"Next: `verl-cov recipes check RECIPE --data {folder}`; `verl-cov recipes list` has the recipes")


@app.command(epilog=terminal.examples("verl-cov data check data/*.parquet --full"))
def check(
    files: ParquetFiles,
    full: Annotated[bool, typer.Option("--full", help="Look at every row, not only the first 64.")] = False,
) -> None:
    """Check files against what the recipes and verl expect. Code 2 and one line if not: file, row, field, fix."""
    from verl_cov.tasks.data.rows import check_file

    console = terminal.console()
    for path in files:
        with terminal.one_line():
            report = check_file(path, full=full)
        sampled = [t for t in report.temperatures if t is not None]
        console.print(
            f"{path}: {counted(report.rows, 'row')} of {', '.join(report.data_sources)} ({', '.join(report.splits)}"
            + (f", temperature {', '.join(f'{t:g}' for t in sampled)}" if sampled else "")
            + f"), {'every row' if full else f'the first {report.checked}'} checked",
            markup=False,
            soft_wrap=True,
        )


@app.command(name="contamination", epilog=terminal.examples("verl-cov data contamination data/*.parquet --remove"))
def contamination_command(
    files: ParquetFiles,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is found from the training files.")] = False,
) -> None:
    """Find training questions that are in evaluation sets: the same question, or 13 words in a row."""
    from verl_cov.tasks.data import contamination

    console = terminal.console()
    with terminal.one_line():
        training, evaluation = contamination.split_files(files)
        with _bar("comparing") as show:
            reports = list(contamination.find(training, evaluation, show))
        for report in reports:
            _print_contamination(console, report, None if remove else evaluation)
            if remove and report.indexes:
                removed = contamination.remove(report)
                left = report.rows - removed
                _print(console, f"{report.training}: {counted(removed, 'row')} removed, {left:,} left")


def _sets(names: list[str]) -> list[DataSet]:
    from verl_cov.suggestions import unknown
    from verl_cov.tasks.data.sets import SETS

    distinct = list(dict.fromkeys(names))
    for name in distinct:
        if name not in SETS:
            raise ValueError(unknown("set", name, SETS))
    return [SETS[name] for name in distinct]


def _compare(console: Console, dataset: DataSet, training: Path) -> None:
    """Print which questions of a training set are in the evaluation sets of its folder."""
    from verl_cov.tasks.data import contamination

    evaluation = _evaluation_files(training.parent, dataset.ability)
    if evaluation:
        with _bar(f"comparing {dataset.name} with {len(evaluation)} evaluation sets") as show:
            (report,) = contamination.find([training], evaluation, show)
        _print_contamination(console, report, evaluation)


def _evaluation_files(folder: Path, ability: str) -> list[Path]:
    """The prepared evaluation sets of a folder that have this ability: mathematics is not compared with code."""
    from verl_cov.tasks.data.sets import SETS

    names = [name for name, dataset in SETS.items() if dataset.split == "test" and dataset.ability == ability]
    return [path for name in names if (path := folder / f"{name}.parquet").is_file()]


def _print_prepared(console: Console, dataset: DataSet, prepared: Prepared) -> None:
    rows, source = prepared.stamp["rows"], prepared.stamp["source"]
    copies = f" x {dataset.copies} copies" if dataset.copies > 1 else ""
    state = "" if prepared.fresh else " (was there already)"
    left = rows["written"] // dataset.copies  # what is in the file, also after `contamination --remove`
    _print(console, f"{prepared.path}{state}: {left:,} of {counted(rows['read'], 'row')}{copies}", "bold")
    if rows["duplicates"]["count"]:
        conflicts = rows["duplicates"]["conflicts"]
        other = f", {conflicts:,} of them with another answer" if conflicts else ""
        _print(console, f"  {counted(rows['duplicates']['count'], 'duplicate')}{other}")
    for kind, words in (("left_out", "not of this set"), ("dropped", "dropped")):
        for reason, found in rows[kind].items():
            _print(console, f"  {found['count']:,} {words}: {reason}, such as {found['example']}")
    for name, removed in prepared.stamp.get("contamination_removed", {}).items():
        number = removed["exact"] + removed["overlap"]
        _print(console, f"  {number:,} removed that {'is' if number == 1 else 'are'} in {name}")
    if source["kind"] == "sample":
        _print(console, "  made of the sample, a few rows to try things out with: not for training", "yellow")
    for warning in prepared.warnings:
        _print(console, f"  Warning: {warning}", "yellow")


def _print_contamination(console: Console, report: Contamination, evaluation: Sequence[Path] | None) -> None:
    """evaluation: the files that it was compared with, for the command that removes what was found; None: no hint."""
    name = report.training.stem
    for overlap in report.overlaps:
        if overlap.example is None:
            continue
        are = "is" if overlap.exact == 1 else "are"
        more = f"{overlap.overlap:,} more {'shares' if overlap.overlap == 1 else 'share'} 13 words in a row with it"
        _print(
            console,
            f"{name}: {overlap.exact:,} of {counted(report.rows, 'question')} {are} in {overlap.evaluation}, {more}, "
            "such as",
            "yellow",
        )
        for text in overlap.example:
            _print(console, f"  {' '.join(text[:400].split())[:160]}")
    if not report.indexes:
        compared = ", ".join(overlap.evaluation for overlap in report.overlaps)
        _print(console, f"{name}: none of {counted(report.rows, 'question')} is in {compared}")
    elif evaluation is not None:
        command = shlex.join(
            ["verl-cov", "data", "contamination", "--remove", str(report.training), *map(str, evaluation)]
        )
        removes = "removes it" if len(report.indexes) == 1 else "removes them"
        _print(console, f"  {counted(len(report.indexes), 'row')} in all; `{command}` {removes}")


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(text, markup=False, style=style, soft_wrap=True)


@contextmanager
def _bar(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on a terminal's standard error; elsewhere a line if it takes long."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    # Not `disable`: older rich then prints an empty line.
    with bar if console.is_terminal else terminal.working(text):
        task = bar.add_task(text, total=None)
        yield lambda read, total: bar.update(task, completed=read, total=total)
