"""`verl-cov recipes`: list, show, check and run the paper's runs. Each command imports what it needs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from verl_cov import terminal

if TYPE_CHECKING:
    from rich.console import Console

    from verl_cov.recipes.catalogue import Selection
    from verl_cov.recipes.machine import Finding

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The paper's runs: list, show, check, run.")

Result = TypeVar("Result")
Words = Annotated[
    list[str],
    typer.Argument(help="EXPERIMENT, EXPERIMENT/RUN or MODEL ALGORITHM ENTROPY TASK; then overrides (key=value)."),
]
Scale = Annotated[str | None, typer.Option(help="cpu, gpu1, node8 or nodes4x8; else the experiment's or model's.")]
Data = Annotated[Path, typer.Option(help="Folder that `verl-cov data prepare -o` wrote to.", envvar="VERL_COV_DATA")]
Toy = Annotated[Path, typer.Option(help="Folder of the tiny model and the toy task.", envvar="VERL_COV_TOY")]
Runs = Annotated[Path, typer.Option(help="Folder of runs.")]


@app.command("list")
def list_recipes() -> None:
    """Which models, algorithms, controls, tasks, scales and experiments there are."""
    from rich.table import Table

    from verl_cov.recipes import catalogue

    console = terminal.console()
    for group in (*catalogue.GROUPS, "experiment"):
        table = Table("name", "what it is", title=f"[bold]{group}", title_justify="left", box=None, padding=(0, 2))
        table.columns[0].no_wrap = True
        for name, about in catalogue.options(group).items():
            runs = list(catalogue.experiment(name).runs) if group == "experiment" else []
            table.add_row(name, about + (f" Runs: {', '.join(runs)}" if runs else ""))
        console.print(table, "")


@app.command()
def show(
    words: Words,
    scale: Scale = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what is stated but equals verl's default.")] = False,
) -> None:
    """What a recipe changes of verl's defaults, and where each number comes from."""
    from rich.table import Table

    from verl_cov.recipes import compose

    with terminal.one_line():
        selection = _selection(words, scale)
        changes = [change for change in compose.changes(selection) if not change.key.startswith("recipe.")]
    console = terminal.console()
    console.print(f"[bold]{selection.name}[/bold]: {', '.join(f'{k} {v}' for k, v in selection.choices.items())}")
    table = Table("key", "verl's default", "here", "source", box=None, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True
    table.columns[3].overflow = "fold"
    section = ""
    for change in changes:
        if change.same and not everything:
            continue
        parent, _, leaf = change.key.rpartition(".")
        if parent != section:
            section = parent
            table.add_row(f"[bold]{section}")
        source = "this run's own"
        if change.setting is not None:
            source = f"{change.setting.why}  [dim]{change.setting.file}:{change.setting.line}[/dim]".strip()
        table.add_row(f"  {leaf}", _text(change.default), _text(change.value), source)
    console.print(table)
    same = sum(change.same for change in changes)
    if same and not everything:
        console.print(f"{same} more are stated and equal verl's default: --all", style="dim")


@app.command()
def check(
    words: Words,
    scale: Scale = None,
    data: Data = Path("data"),
    toy: Toy = Path("runs/cache"),
    runs: Runs = Path("runs"),
) -> None:
    """What a recipe needs and this machine lacks: model, data, GPUs, memory. Exit code 1 if something is missing."""
    from verl_cov.recipes import machine, plan

    with terminal.one_line():
        selection = _selection(words, scale)
        missing = _print(machine.check(plan.planned(selection, data, toy, runs).config), terminal.console())
    raise typer.Exit(1 if missing else 0)


@app.command()
def run(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Recipes: EXPERIMENT, EXPERIMENT/RUN or MODEL/ALGORITHM/ENTROPY/TASK; or one as MODEL ALGORITHM "
            "ENTROPY TASK. Then overrides (key=value) for all of them."
        ),
    ],
    scale: Scale = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same as recipe.seed=N.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="The same as trainer.total_training_steps=N.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and end.")] = False,
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Start even if something is missing.")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="Go on with a run, with other settings.")] = False,
    skip_finished: Annotated[
        bool, typer.Option("--skip-finished", help="If all is finished, do not train again as NAME-2.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show verl's log instead of the progress.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="At the end write report.html and plots/ into the folder of the runs.")
    ] = False,
    data: Data = Path("data"),
    toy: Toy = Path("runs/cache"),
    runs: Runs = Path("runs"),
) -> None:
    """Check, then train, one recipe after the other. The same command goes on with what was stopped.

    When all of them are finished, the same command leaves them alone and trains anew, as NAME-2. verl's output goes to
    train.log in the run's folder. Exit code: the trainer's own if it fails, and the recipes after it are not started;
    130 when stopped, 1 if something is missing, 2 for bad input.
    """
    from verl_cov.recipes import catalogue, plan, results
    from verl_cov.recipes.progress import Progress
    from verl_cov.recipes.train import TrainingFailed, signals_as_interrupt

    words = [
        *([f"recipe.seed={seed}"] if seed is not None else []),
        *([f"trainer.total_training_steps={steps}"] if steps is not None else []),
        *words,
    ]
    console = terminal.console()
    with terminal.one_line():
        selections = catalogue.parse_all(words, scale)
        if dry_run:
            for selection in selections:
                typer.echo(plan.planned(selection, data, toy, runs).launch.shell())
            return
        if report:
            import matplotlib  # noqa: F401  # missed now, not after the trainings
        where = (data, toy, runs)
        planned, findings = _in_child(plan.prepare, selections, *where, again=not skip_finished, changed=changed)
        for run in planned:
            console.print(run.note, markup=False, soft_wrap=True)
        if _print(findings, console, only_missing=True) and not unchecked:
            console.print("Not started. --unchecked starts it all the same.")
            raise typer.Exit(1)
        try:
            with signals_as_interrupt(), Progress(console, verbose=verbose) as progress:
                for run in planned:
                    run.train(progress)
        except TrainingFailed as error:
            console.print(str(error), markup=False, soft_wrap=True)
            raise typer.Exit(error.code) from None
        except KeyboardInterrupt:
            console.print("Stopped. Nothing is lost: the same command resumes.", markup=False)
            raise typer.Exit(130) from None
        launches = [run.launch for run in planned]
        console.print(results.table(results.read_runs(launches)))
        if report:
            results.write_report(launches, console)


@app.command()
def commands(
    name: Annotated[str, typer.Argument(help="An experiment.")],
) -> None:
    """The runs of an experiment, one EXPERIMENT/RUN a line: what recipes/sweep.sh goes through."""
    from verl_cov.recipes import catalogue

    with terminal.one_line():
        experiment = catalogue.experiment(name)
    for run in experiment.runs or [""]:
        typer.echo(f"{name}/{run}".rstrip("/"))


def _selection(words: list[str], scale: str | None) -> Selection:
    from verl_cov.recipes import catalogue

    return catalogue.parse(words, scale)


def _print(findings: Iterable[Finding], console: Console, only_missing: bool = False) -> int:
    """Print what was checked; returns how much is missing."""
    missing = 0
    for finding in findings:
        missing += finding.missing
        if finding.what == "note":
            console.print(finding.text, markup=False, soft_wrap=True, style="yellow")
        elif finding.missing or not only_missing:
            console.print("[red]missing[/red]" if finding.missing else "[green]ok[/green]     ", end=" ")
            console.print(f"{finding.what}: {finding.text}", markup=False, soft_wrap=True)
    return missing


def _in_child(function: Callable[..., Result], *arguments: object, **options: object) -> Result:
    """Call `function` in a child process: verl and torch stay out of this one, which lives as long as the trainings."""
    # SIG_DFL: Ctrl-C ends the child without a traceback of its own.
    with ProcessPoolExecutor(
        1, mp_context=get_context("fork"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)
    ) as pool:
        return pool.submit(function, *arguments, **options).result()


def _text(value: object) -> str:
    from rich.markup import escape

    text = f"{value:g}" if isinstance(value, float) else str(value)
    return escape(text if len(text) <= 60 else text[:57] + "...")
