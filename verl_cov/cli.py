"""The command ``verl-cov``. Each command imports what it needs, so that ``--help`` is instant."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_cov import __version__, terminal
from verl_cov.patch import cli as patch
from verl_cov.recipes import cli as recipes
from verl_cov.tasks.data import cli as data

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Clip-Cov and KL-Cov for verl; where a run's entropy goes, and where its score ends.",
)
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
app.add_typer(patch.app, name="patch")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


@app.command()
def doctor(
    ray: bool = typer.Option(True, help="Also look inside a Ray worker (about 15 s)."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on standard output."),
) -> None:
    """Which verl is here, what of verl-cov works with it, and does it find and use verl-cov? Exit code 1 if anything
    fails, else 0; each failure says the fix."""
    from verl_cov.host.doctor import report

    raise typer.Exit(0 if report.run(with_ray=ray, as_json=as_json) else 1)


@app.command()
def tokens(
    file: Annotated[
        Path, typer.Argument(help="A dump: cov_dump_dir/tokens.jsonl (cov_dump_every), or the folder it is in.")
    ],
    step: Annotated[int | None, typer.Option(help="Rollout step; the last one if not given.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many tokens.")] = 20,
) -> None:
    """Show the tokens with the highest covariance, in context: what Clip-Cov and KL-Cov act on."""
    from rich.console import Console

    from verl_cov import token_dump

    path = file / token_dump.FILE if file.is_dir() else file
    console = Console(highlight=False)
    try:
        dump = token_dump.read(path)
        console.print(token_dump.view(dump, step, top))
    except FileNotFoundError:
        terminal.fail(f"there is no {path}: train with policy_loss.cov_dump_every=10, say, to have it written")
    except (OSError, ValueError) as error:
        terminal.fail(f"{path}: {error}")
    if dump.damaged:
        console.print(f"Damaged lines left out: {dump.damaged}")


@app.command()
def watch(
    runs: Annotated[list[Path], typer.Argument(help="Logs of runs, folders of runs, or folders of those; see `fit`.")],
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print once and end.")] = False,
    png: Annotated[Path | None, typer.Option(help="Also draw this picture, again whenever a run has gone on.")] = None,
) -> None:
    """Show running or finished trainings: score, entropy and why it falls, and where the law says they end."""
    from verl_cov.watch import live

    try:
        live.watch(runs, interval=interval, once=once, png=png)
    except (OSError, ValueError) as error:
        terminal.fail(str(error))


Runs = Annotated[
    list[Path],
    typer.Argument(
        help="Logs (verl's file or console logger, TensorBoard, W&B, CSV), folders of runs, or folders of those."
    ),
]
EntropyKey = Annotated[str | None, typer.Option(help="Key of the entropy, if not the one that is found.")]
ScoreKey = Annotated[str | None, typer.Option(help="Key of the score, or several with * (their mean).")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write to this file as well: .json or .png.")]
Share = Annotated[float, typer.Option("--fraction", help="Share of the points, by step, to fit; the paper's is 0.15.")]


@app.command()
def fit(
    runs: Runs,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    pool: Annotated[bool, typer.Option("--pool", help="One law for all runs: they differ in their seed only.")] = False,
    method: Annotated[str | None, typer.Option(help="ar1, cluster, hac, bootstrap or ols; see docs/law.md.")] = None,
    robust: Annotated[bool, typer.Option("--robust", help="Weigh outliers down (Huber).")] = False,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Fit the law R = -a exp(H) + b to runs: a, b, the ceiling b - a, with intervals and warnings."""
    from verl_cov.law import commands, figures

    with terminal.one_line():
        _check(output, runs)
        loaded = commands.load(runs, entropy_key, score_key)
        if pool and len(loaded) > 1:
            fitted = [commands.fit_together(loaded, method, robust)]
        else:
            fitted = commands.fit_each(loaded, method, robust)
        answer = commands.one_or_all([commands.fit_json(run, law) for run, law in fitted])
        _save(output, answer, lambda: figures.laws(fitted))
    if as_json:
        typer.echo(commands.dumps(answer), nl=False)
        return
    console = terminal.console()
    console.print(commands.fit_table(fitted))
    for run, law in fitted:
        _say(console, commands.left_line(run, law) if not pool else "", law.warnings, run.notes)


@app.command()
def forecast(
    runs: Runs,
    fraction: Share = 0.15,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Fit the first points of runs and predict the rest; how early was each run predictable?"""
    from verl_cov.law import commands, figures

    with terminal.one_line():
        _check(output, runs, fraction)
        made = commands.forecast_each(commands.load(runs, entropy_key, score_key), fraction)
        if output is not None and output.suffix.lower() == ".png" and len(made) > 1:
            raise ValueError(f"-o {output}: the picture of a forecast is of one run; `verl-cov report` has several")
        answer = commands.one_or_all([commands.forecast_json(*one) for one in made])
        _save(output, answer, lambda: figures.forecast(*made[0][:2]))
    if as_json:
        typer.echo(commands.dumps(answer), nl=False)
        return
    console = terminal.console()
    for run, one, origins in made:
        console.print(f"{run.name}: fitted to the first {one.n} of {run.steps.size} points", markup=False, style="bold")
        console.print(
            f"The rest from its entropy: RMSE {one.rmse_rest:.3g}, error at the end {one.final_error:+.3g}, "
            f"{100 * one.coverage:.0f} % of the points in their 95 % interval"
        )
        console.print(commands.forecast_table(run, origins))
        _say(console, "", one.estimate.warnings, run.notes)


@app.command(name="compare")
def compare_command(
    runs: Runs,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Do runs (algorithms, say) share one law?"""
    from verl_cov.law import commands, figures

    with terminal.one_line():
        _check(output, runs)
        loaded = commands.load(runs, entropy_key, score_key)
        found = commands.compare_runs(loaded)
        answer = commands.compare_json(loaded, found)
        _save(output, answer, lambda: figures.comparison(found))
    if as_json:
        typer.echo(commands.dumps(answer), nl=False)
        return
    console = terminal.console()
    console.print(commands.compare_table(found))
    for line in commands.compare_lines(loaded, found):
        console.print(line, markup=False, soft_wrap=True)


@app.command()
def scale(
    sizes: Annotated[
        list[str] | None, typer.Argument(help="SIZE=RUN each, or one CSV with columns parameters, a, b.")
    ] = None,
    predict: Annotated[
        float | None, typer.Option(help="Size to predict the law of, in the unit of the others.")
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="The paper's Qwen2.5 models, 0.5B to 7B.")] = False,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """The law's a and b against model size, and what a larger model would reach."""
    import math

    from verl_cov.law import commands, figures
    from verl_cov.law.examples import qwen25_math
    from verl_cov.law.scale import scale as trend

    with terminal.one_line():
        _check(output, [])
        if predict is not None and not (predict > 0 and math.isfinite(predict)):
            raise ValueError(f"--predict {predict:g} must be a number of parameters, above 0")
        if example:
            small = qwen25_math()[:-1]
            values = [[law.parameters for law in small], [law.a for law in small], [law.b for law in small]]
            (parameters, a, b), names = values, [law.model for law in small]
            predict = qwen25_math()[-1].parameters if predict is None else predict
        else:
            parameters, a, b, names = commands.read_sizes(sizes or [], entropy_key, score_key)
        found = trend(parameters, a, b)
        answer = commands.scale_json(found, names, predict)
        _save(output, answer, lambda: figures.sizes(found, a, b, predict))
    if as_json:
        typer.echo(commands.dumps(answer), nl=False)
        return
    console = terminal.console()
    console.print(commands.scale_table(found, a, b, names, predict))
    if example:
        real = qwen25_math()[-1]
        console.print(
            f"{real.model} really has a {real.a:.3f}, b {real.b:.3f}, ceiling {real.b - real.a:.3f}: the line bends"
        )
    _say(console, "", found.warnings, ())


@app.command()
def plot(
    runs: Runs,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture, a .png.")] = Path("law.png"),
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
) -> None:
    """Draw score against entropy with the law and its ceiling."""
    from verl_cov.law import commands, figures

    with terminal.one_line():
        commands.check_output(output, (".png",), runs)
        fitted = commands.fit_each(commands.load(runs, entropy_key, score_key))
        commands.write(output, figures.png(figures.laws(fitted)))
    typer.echo(f"written: {output}")


@app.command()
def report(
    runs: Runs,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page, an .html.")] = Path("report.html"),
    fraction: Share = 0.15,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
) -> None:
    """Everything the law says of runs, on one page that needs no other file."""
    from verl_cov.law import commands
    from verl_cov.law.report import page

    with terminal.one_line():
        commands.check_output(output, (".html", ".htm"), runs)
        _check(None, runs, fraction)
        commands.write(output, page(commands.load(runs, entropy_key, score_key), fraction).encode())
    typer.echo(f"written: {output}")


def _save(output: Path | None, found: object, draw: Callable[[], object]) -> None:
    from verl_cov.law import commands, figures

    if output is None:
        return
    if output.suffix.lower() == ".json":
        commands.write(output, commands.dumps(found).encode(errors="replace"))
    else:
        commands.write(output, figures.png(draw()))  # type: ignore[arg-type]


def _check(output: Path | None, runs: Sequence[Path], fraction: float = 0.5) -> None:
    from verl_cov.law import commands

    if not 0 < fraction < 1:
        raise ValueError(f"--fraction {fraction:g} must be between 0 and 1")
    if output is not None:
        commands.check_output(output, (".json", ".png"), runs)


def _say(console: Console, line: str, warnings: Sequence[str], notes: Sequence[str]) -> None:
    for text, style in [
        (line, ""),
        *((f"Warning: {w}", "yellow") for w in warnings),
        *((note, "dim") for note in notes),
    ]:
        if text:
            console.print(text, style=style, markup=False, soft_wrap=True)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII only still gets the numbers
    with terminal.installed():
        app()
