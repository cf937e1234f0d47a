"""`verl-cov recipes`: list, show, check and run the paper's runs. Each command imports what it needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_cov import terminal

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

    from verl_cov.recipes.catalogue import Selection
    from verl_cov.recipes.launch import Launch

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The paper's runs: list, show, check, run.")

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
    from verl_cov.recipes import launch

    with terminal.one_line():
        selection = _selection(words, scale)
        missing = _check(_composed(selection, launch.launch(selection, data, toy, runs)), terminal.console())
    raise typer.Exit(1 if missing else 0)


@app.command()
def run(
    words: Words,
    scale: Scale = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and end.")] = False,
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Start even if something is missing.")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="Go on with a run, with other settings.")] = False,
    data: Data = Path("data"),
    toy: Toy = Path("runs/cache"),
    runs: Runs = Path("runs"),
) -> None:
    """Check, then train; the same command goes on with a stopped run. An experiment without /RUN: its first."""
    from verl_cov.recipes import launch

    with terminal.one_line():
        selection = _selection(words, scale)
        started = launch.launch(selection, data, toy, runs)
        config = _composed(selection, started)
        if dry_run:
            typer.echo(started.shell())
            return
        before = launch.started_before(started)
        if before is not None and not changed:
            others = " ".join(word for word in before if word not in started.argv) or "fewer overrides"
            raise ValueError(
                f"{started.folder} was started with other settings ({others}), and verl would go on from its "
                "checkpoint: give this run a name of its own (recipe.name=NAME), or --changed to go on with that one"
            )
        console = terminal.console()
        if launch.finished(Path(config.trainer.default_local_dir), config.trainer.total_training_steps):
            console.print(f"{started.folder} is finished: {config.trainer.total_training_steps} steps", markup=False)
            return
        if selection.uses_toy:
            _make_toy(toy)
        if _check(config, console) and not unchecked:
            console.print("Not started. --unchecked starts it all the same.")
            raise typer.Exit(1)
        launch.start(started)


@app.command()
def commands(
    name: Annotated[str, typer.Argument(help="An experiment.")],
) -> None:
    """The runs of an experiment, one EXPERIMENT/RUN a line: what recipes/sweep.sh goes through."""
    from verl_cov.recipes import catalogue

    with terminal.one_line():
        found = catalogue.experiment(name)
    for one in found.runs or [""]:
        typer.echo(f"{name}/{one}".rstrip("/"))


def _selection(words: list[str], scale: str | None) -> Selection:
    from verl_cov.recipes import catalogue

    return catalogue.parse(words, scale)


def _composed(selection: Selection, started: Launch) -> DictConfig:
    """The resolved configuration of exactly what would run. Raises ValueError."""
    from verl_cov.recipes import compose

    if selection.choices["scale"] == "cpu":
        os.environ.setdefault("VERL_PLATFORM", "cpu")  # before verl is imported
    argv = started.argv[3:]
    return compose.resolved(compose.compose([word for word in argv if not word.startswith("hydra.")]))


def _check(config: DictConfig, console: Console) -> int:
    """Print what was looked at; how much is missing."""
    from contextlib import redirect_stdout
    from io import StringIO

    from verl_cov.recipes import machine

    missing = 0
    findings = machine.check(config)
    while True:
        with redirect_stdout(StringIO()) as said:  # verl's checks print; what they print of ours is worth a line
            finding = next(findings, None)
        for line in said.getvalue().splitlines():
            if line.startswith("verl-cov: "):
                console.print(line, markup=False, soft_wrap=True, style="yellow")
        if finding is None:
            break
        missing += finding.missing
        mark = "[red]missing[/red]" if finding.missing else "[green]ok[/green]     "
        console.print(f"{mark} {finding.what}: ", end="")
        console.print(finding.text, markup=False, soft_wrap=True)
    return missing


def _make_toy(toy: Path) -> None:
    from verl_cov.demo.folder import DemoError
    from verl_cov.demo.launch import prepare

    try:
        prepare(toy)
    except DemoError as error:
        raise ValueError(str(error)) from None


def _text(value: object) -> str:
    from rich.markup import escape

    text = f"{value:g}" if isinstance(value, float) else str(value)
    return escape(text if len(text) <= 60 else text[:57] + "...")
