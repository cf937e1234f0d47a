"""`verl-cov recipes`: list, show, check and run the paper's runs. Each command imports what it needs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verl_cov import terminal
from verl_cov.recipes import child, completion

if TYPE_CHECKING:
    from rich.console import Console

    from verl_cov.recipes.catalogue import Selection
    from verl_cov.recipes.finding import Finding

app = typer.Typer(no_args_is_help=True, help="The paper's runs: list, show, check, run.")

Words = Annotated[
    list[str],
    typer.Argument(
        help="EXPERIMENT, EXPERIMENT/RUN or MODEL ALGORITHM ENTROPY TASK; then overrides (key=value).",
        autocompletion=completion.words,
    ),
]
Scale = Annotated[
    str | None,
    typer.Option(
        help="cpu, gpu1, node8 or nodes4x8; else the experiment's or model's.", autocompletion=completion.scales
    ),
]
Data = Annotated[Path, typer.Option(help="Folder that `verl-cov data prepare -o` wrote to.", envvar="VERL_COV_DATA")]
Toy = Annotated[Path, typer.Option(help="Folder of the models and tasks that are made here.", envvar="VERL_COV_TOY")]
Runs = Annotated[Path, typer.Option(help="Folder of runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("list", epilog=terminal.examples("verl-cov recipes list", "verl-cov recipes list --json"))
def list_recipes(as_json: AsJson = False) -> None:
    """Which models, algorithms, controls, tasks, scales and experiments there are."""
    from rich.table import Table

    from verl_cov.recipes import catalogue

    listed: dict[str, list[dict[str, Any]]] = {
        group: [{"name": name, "about": about} for name, about in catalogue.options(group).items()]
        for group in (*catalogue.GROUPS, "experiment")
    }
    for each in listed["experiment"]:
        each["runs"] = list(catalogue.experiment(each["name"]).runs)
    if as_json:
        _give(listed)
        return
    console = terminal.console()
    for group, names in listed.items():
        table = Table("name", "what it is", title=f"[bold]{group}", title_justify="left", box=None, padding=(0, 2))
        table.columns[0].no_wrap = True
        for each in names:
            runs = f" Runs: {', '.join(each['runs'])}" if each.get("runs") else ""
            table.add_row(each["name"], each["about"] + runs)
        console.print(table, "")
    console.print("Next: `verl-cov recipes show NAME`, such as sec4-7b/kl_cov", markup=False)


@app.command(
    epilog=terminal.examples("verl-cov recipes show sec4-7b/kl_cov", "verl-cov recipes show tiny grpo kl_cov toy")
)
def show(
    words: Words,
    scale: Scale = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what is stated but equals verl's default.")] = False,
    as_json: AsJson = False,
) -> None:
    """What a recipe changes of verl's defaults, and where each number comes from."""
    from rich.table import Table

    from verl_cov.recipes import catalogue, compose

    with terminal.one_line():
        selection = catalogue.parse(words, scale)
        with terminal.working("composing verl's configuration"):
            changes = [change for change in compose.changes(selection) if not change.key.startswith("recipe.")]
    same = sum(change.same for change in changes)
    shown = [change for change in changes if everything or not change.same]
    if as_json:
        _give({"name": selection.name, **selection.choices, "changes": [change.as_json() for change in shown]})
        return
    console = terminal.console()
    console.print(f"[bold]{selection.name}[/bold]: {', '.join(f'{k} {v}' for k, v in selection.choices.items())}")
    table = Table("key", "verl's default", "here", "source", box=None, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True
    table.columns[3].overflow = "fold"
    section = ""
    for change in shown:
        parent, _, leaf = change.key.rpartition(".")
        if parent != section:
            section = parent
            table.add_row(f"[bold]{section}")
        source = "this run's own"
        if change.setting is not None:
            source = f"{change.setting.why}  [dim]{change.setting.file}:{change.setting.line}[/dim]".strip()
        table.add_row(f"  {leaf}", _text(change.default), _text(change.value), source)
    console.print(table)
    if same and not everything:
        console.print(f"{same} more {'is' if same == 1 else 'are'} stated and equal verl's default: --all", style="dim")
    _print_next(console, "Next", "check", selection, words, scale)


@app.command(
    epilog=terminal.examples("verl-cov recipes check sec4-7b/kl_cov", "verl-cov recipes check tiny grpo kl_cov toy")
)
def check(
    words: Words,
    scale: Scale = None,
    data: Data = Path("data"),
    toy: Toy = Path("runs/cache"),
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """What a recipe needs and this machine lacks: model, data, GPUs, memory. Exit code 1 if something is missing."""
    from verl_cov.recipes import catalogue, plan

    with terminal.one_line():
        selection = catalogue.parse(words, scale)
        findings = plan.check(selection, data, toy, runs)
    missing = sum(finding.missing for finding in findings)
    if as_json:
        _give({"name": selection.name, "ok": not missing, "findings": [asdict(finding) for finding in findings]})
        raise typer.Exit(1 if missing else 0)
    console = terminal.console()
    _print(findings, console)
    if missing:
        _print_next(console, f"{missing} missing; once mended", "check", selection, words, scale)
    else:
        _print_next(console, "Next", "run", selection, words, scale)
    raise typer.Exit(1 if missing else 0)


@app.command(
    epilog=terminal.examples(
        "verl-cov recipes run tiny grpo kl_cov toy --steps 10",
        "verl-cov recipes run sec4-7b/kl_cov --dry-run data.train_batch_size=128",
        "verl-cov recipes run demo/vanilla demo/kl_cov --report",
    )
)
def run(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Recipes: EXPERIMENT, EXPERIMENT/RUN or MODEL/ALGORITHM/ENTROPY/TASK; or one as MODEL ALGORITHM "
            "ENTROPY TASK. Then overrides (key=value) for all of them.",
            autocompletion=completion.words,
        ),
    ],
    scale: Scale = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same as recipe.seed=N.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="The same as trainer.total_training_steps=N.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check as at a start, print the commands and end.")
    ] = False,
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
        where = (data, toy, runs)
        if dry_run:
            planned, findings = plan.rehearse(selections, *where, again=not skip_finished, changed=changed)
            for finding in findings:
                typer.echo(finding.text if finding.what == "note" else f"verl-cov: {finding.text}", err=True)
            if any(finding.missing for finding in findings):
                raise typer.Exit(2)
            for run in planned:
                typer.echo(run.note if run.finished else run.launch.shell(), err=run.finished)
            return
        if report:
            import matplotlib  # noqa: F401  # missed now, not after the trainings
        try:
            planned, findings = child.in_child(
                plan.prepare, selections, *where, again=not skip_finished, changed=changed
            )
            for run in planned:
                console.print(run.note, markup=False, soft_wrap=True)
            if _print(findings, console, only_missing=True) and not unchecked:
                refused = any(finding.what == "config" and finding.missing for finding in findings)
                console.print("Not started." + ("" if refused else " --unchecked starts it all the same."))
                raise typer.Exit(1)
            todo = [run for run in planned if not run.finished]
            total = [run.config.trainer.total_training_steps for run in todo]
            with signals_as_interrupt(), Progress(console, total, verbose=verbose) as progress:
                for run in todo:
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
        console.print(results.next_commands(launches, report), markup=False, soft_wrap=True)


@app.command()
def commands(
    name: Annotated[str, typer.Argument(help="An experiment.", autocompletion=completion.experiments)],
) -> None:
    """The runs of an experiment, one EXPERIMENT/RUN a line: `recipes run $(verl-cov recipes commands NAME)`."""
    from verl_cov.recipes import catalogue

    with terminal.one_line():
        experiment = catalogue.experiment(name)
    for run in experiment.runs or [""]:
        typer.echo(f"{name}/{run}".rstrip("/"))


def _print(findings: Iterable[Finding], console: Console, only_missing: bool = False) -> int:
    """Print what was checked; returns how much is missing."""
    missing = 0
    for finding in findings:
        missing += finding.missing
        if finding.what == "note":
            console.print(finding.text, markup=False, soft_wrap=True, style="yellow")
        elif finding.missing or not only_missing:
            lacks = "[red]refused[/red]" if finding.what == "config" else "[red]missing[/red]"
            console.print(lacks if finding.missing else "[green]ok[/green]     ", end=" ")
            console.print(f"{finding.what}: {finding.text}", markup=False, soft_wrap=True)
    return missing


def _print_next(
    console: Console, when: str, command: str, selection: Selection, words: list[str], scale: str | None
) -> None:
    named = f"{selection.experiment}/{selection.run}" if selection.run else None
    if named and selection.experiment in words:
        console.print(
            f"This is {named}, the first run of {selection.experiment}: name another in its place", markup=False
        )
    words = [named if named and word == selection.experiment else word for word in words]
    line = shlex.join(["verl-cov", "recipes", command, *words, *(["--scale", scale] if scale else [])])
    console.print(f"{when}: `{line}`", markup=False, soft_wrap=True)


def _give(answer: dict[str, Any]) -> None:
    typer.echo(json.dumps(answer, indent=1, default=str))


def _text(value: object) -> str:
    from rich.markup import escape

    text = f"{value:g}" if isinstance(value, float) else str(value)
    return escape(text if len(text) <= 60 else text[:57] + "...")
