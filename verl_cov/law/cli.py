"""The commands `verl-cov fit`, `forecast`, `compare`, `scale`, `plot`, `report` and `watch`.

Each command imports what it needs, so that `--help` loads neither scipy nor matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_cov import terminal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from verl_cov.law.to_json import Json

Runs = Annotated[
    list[Path],
    typer.Argument(
        help="Logs (verl's file or console logger, TensorBoard, W&B, CSV), folders of runs, or folders of those."
    ),
]
EntropyKey = Annotated[str | None, typer.Option(help="Key of the entropy, instead of the detected one.")]
ScoreKey = Annotated[str | None, typer.Option(help="Key of the score, or several with * (their mean).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Also write to this file: .json or .png.")]
Share = Annotated[float, typer.Option("--fraction", help="Share of the points, by step, to fit; the paper's is 0.15.")]
Robust = Annotated[bool, typer.Option("--robust", help="Give outliers less weight (Huber).")]
ToStep = Annotated[float | None, typer.Option("--to-step", help="Also say where the runs will stand at this step.")]
Pool = Annotated[bool, typer.Option("--pool", help="Fit one law to all runs, which differ only in their seed.")]


def watch(
    runs: Annotated[list[Path], typer.Argument(help="Logs of runs, folders of runs, or folders of those; see `fit`.")],
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print once and exit.")] = False,
    png: Annotated[Path | None, typer.Option(help="Also draw this picture, anew whenever a run has gone on.")] = None,
) -> None:
    """Show running or finished trainings: score, entropy and why it falls, and where the law says they end."""
    from verl_cov.law.watch import live

    with terminal.one_line():
        live.watch(runs, interval=interval, once=once, png=png)


def fit(
    runs: Runs,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    pool: Pool = False,
    robust: Robust = False,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Fit the law R = -a exp(H) + b to runs: a, b, the ceiling b - a, with intervals and warnings."""
    from verl_cov.law import beside, commands, tables, to_json
    from verl_cov.law.plots import laws
    from verl_cov.law.runs import load

    with terminal.one_line():
        _check(output, runs)
        loaded = load(runs, entropy_key, score_key)
        if pool and len(loaded) > 1:
            fits = [commands.fit_together(loaded, robust)]
        else:
            fits = commands.fit_each(loaded, robust)
        answer = to_json.one_or_all([to_json.fit_json(run, law) | beside.headline_json(run, law) for run, law in fits])
        _give(answer, as_json, output, lambda: laws.fits(fits))
    if as_json:
        return
    terminal.console().print(tables.fit_table(fits))
    for run, law in fits:
        if not pool:
            _print(tables.gain_line(run, law))
        for line in beside.fit_lines(run, law):
            _print(line)
        _print_remarks(law.warnings, run.notes)


def forecast(
    runs: Runs,
    fraction: Share = 0.15,
    to_step: ToStep = None,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Fit the first points of runs and predict the rest: how early was each run predictable, and by what?"""
    from verl_cov.law import beside, commands, tables, to_json
    from verl_cov.law.plots import laws
    from verl_cov.law.runs import load

    with terminal.one_line():
        _check(output, runs, fraction)
        loaded = load(runs, entropy_key, score_key)
        forecasts = commands.forecast_each(loaded, fraction)
        later = beside.later(loaded, to_step)
        if output is not None and output.suffix.lower() == ".png" and len(forecasts) > 1:
            raise ValueError(f"-o {output}: the picture of a forecast shows one run; for several, `verl-cov report`")
        parts = [beside.later_json(more) for more in later]
        answer = to_json.one_or_all(
            [to_json.forecast_json(*row) | more for row, more in zip(forecasts, parts, strict=True)]
        )
        _give(answer, as_json, output, lambda: laws.forecast(*forecasts[0][:2]))
    if as_json:
        return
    for (run, prediction, origins), more in zip(forecasts, later, strict=True):
        _print(f"{run.name}: fitted to the first {prediction.n} of {run.steps.size} points", style="bold")
        _print(
            f"The rest, predicted from its entropy: RMSE {prediction.rmse_rest:.3g}, error at the end "
            f"{prediction.final_error:+.3g}, {100 * prediction.coverage:.0f} % of the points in their 95 % interval"
        )
        terminal.console().print(tables.forecast_table(run, origins))
        if more.ranked:
            terminal.console().print(beside.rank_table(more.ranked))
        for line in beside.later_lines(more):
            _print(line)
        _print_remarks((*prediction.estimate.warnings, *getattr(more.there, "warnings", ())), run.notes)


def compare(
    runs: Runs,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Test whether runs (of several algorithms, say) share one law."""
    from verl_cov.law import commands, tables, to_json
    from verl_cov.law.plots import laws
    from verl_cov.law.runs import load

    with terminal.one_line():
        _check(output, runs)
        loaded = load(runs, entropy_key, score_key)
        comparison = commands.compare_runs(loaded)
        answer = to_json.compare_json(loaded, comparison)
        _give(answer, as_json, output, lambda: laws.comparison(comparison))
    if as_json:
        return
    terminal.console().print(tables.compare_table(comparison))
    for line in tables.compare_lines(loaded, comparison):
        _print(line)


def scale(
    sizes: Annotated[
        list[str] | None, typer.Argument(help="SIZE=RUN each, or one CSV with columns parameters, a, b.")
    ] = None,
    predict: Annotated[
        float | None, typer.Option(help="Model size to predict the law for, in the unit of the others.")
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="The paper's Qwen2.5 models, 0.5B to 7B.")] = False,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Fit the law's a and b against model size, and predict what a larger model would reach."""
    from verl_cov.law import commands, examples, tables, to_json
    from verl_cov.law.plots import laws
    from verl_cov.law.scale import scale as fit_trend

    with terminal.one_line():
        _check(output, [])
        if predict is not None and not (predict > 0 and math.isfinite(predict)):
            raise ValueError(f"--predict {predict:g} must be a number of parameters, above 0")
        *small, largest = examples.qwen25_math()
        if example:
            columns = zip(*((law.parameters, law.a, law.b, law.model) for law in small), strict=True)
            models = commands.Sizes(*map(list, columns))
            predict = largest.parameters if predict is None else predict
        else:
            models = commands.read_sizes(sizes or [], entropy_key, score_key)
        scaling = fit_trend(models.parameters, models.a, models.b)
        answer = to_json.scale_json(scaling, models.names, predict)
        _give(answer, as_json, output, lambda: laws.sizes(scaling, models.a, models.b, predict))
    if as_json:
        return
    terminal.console().print(tables.scale_table(scaling, models, predict))
    if example:
        law = f"a {largest.a:.3f}, b {largest.b:.3f}, ceiling {largest.b - largest.a:.3f}"
        _print(f"{largest.model} really has {law}: it falls short of the line")
    _print_remarks(scaling.warnings, ())


def plot(
    runs: Runs,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture, a .png.")] = Path("law.png"),
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
) -> None:
    """Draw score against entropy with the law and its ceiling."""
    from verl_cov.law import commands, files
    from verl_cov.law.plots import laws, style
    from verl_cov.law.runs import load

    with terminal.one_line():
        files.check_output(output, (".png",), runs)
        fits = commands.fit_each(load(runs, entropy_key, score_key))
        files.write(output, style.png(laws.fits(fits)))
    typer.echo(f"written: {output}")


def report(
    runs: Runs,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page, an .html.")] = Path("report.html"),
    fraction: Share = 0.15,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
) -> None:
    """Write everything the law says about runs to one page that needs no other file."""
    from verl_cov.law import files
    from verl_cov.law.report import page
    from verl_cov.law.runs import load

    with terminal.one_line():
        files.check_output(output, (".html", ".htm"), runs)
        _check(None, runs, fraction)
        files.write(output, page(load(runs, entropy_key, score_key), fraction).encode())
    typer.echo(f"written: {output}")


COMMANDS: tuple[Callable[..., None], ...] = (watch, fit, forecast, compare, scale, plot, report)


def _check(output: Path | None, runs: Sequence[Path], fraction: float = 0.5) -> None:
    from verl_cov.law import files

    if not 0 < fraction < 1:
        raise ValueError(f"--fraction {fraction:g} must be between 0 and 1")
    if output is not None:
        files.check_output(output, (".json", ".png"), runs)


def _give(answer: Json, as_json: bool, output: Path | None, draw: Callable[[], Figure]) -> None:
    """Write the answer, or its picture, to `output`, and print it if it is wanted as JSON."""
    from verl_cov.law import files, to_json
    from verl_cov.law.plots import style

    if output is not None and output.suffix.lower() == ".json":
        files.write(output, to_json.dumps(answer).encode(errors="replace"))
    elif output is not None:
        files.write(output, style.png(draw()))
    if as_json:
        typer.echo(to_json.dumps(answer), nl=False)


def _print(line: str, style: str = "") -> None:
    terminal.console().print(line, style=style, markup=False, soft_wrap=True)


def _print_remarks(warnings: Sequence[str], notes: Sequence[str]) -> None:
    for warning in warnings:
        _print(f"Warning: {warning}", style="yellow")
    for note in notes:
        _print(note, style="dim")
