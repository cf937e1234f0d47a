"""The commands `verl-cov fit`, `forecast`, `compare`, `scale`, `plot`, `report` and `watch`.

Each command imports what it needs, so that `--help` loads neither scipy nor matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from verl_cov import terminal
from verl_cov.law import printing
from verl_cov.law.options import (
    AsJson,
    EntropyKey,
    Example,
    Fraction,
    Joining,
    Label,
    Output,
    Pool,
    Robust,
    Runs,
    ScoreKey,
    StepKey,
    ToStep,
)


def watch(
    runs: Runs = None,
    label: Label = None,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    step_key: StepKey = None,
    join: Joining = "auto",
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print once and exit.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", "--png", help="Also draw this picture, anew whenever a run has gone on."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the trainings, if their logs do not say.")] = None,
) -> None:
    """Show running or finished trainings: score, entropy and why it falls, and where the law says they end."""
    from verl_cov.law.inputs import Inputs, wanted
    from verl_cov.law.watch import live

    with terminal.one_line():
        inputs = Inputs(runs, label, wanted(entropy_key, score_key, step_key, join))
        live.watch(inputs, interval=interval, once=once, picture=output, total=steps)


def fit(
    runs: Runs = None,
    label: Label = None,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    step_key: StepKey = None,
    join: Joining = "auto",
    pool: Pool = False,
    robust: Robust = False,
    as_json: AsJson = False,
    output: Output = None,
    example: Example = False,
) -> None:
    """Fit the law R = -a exp(H) + b to runs: a, b, the ceiling b - a, with intervals and warnings."""
    from verl_cov.law import beside, commands, tables, to_json
    from verl_cov.law.inputs import Inputs, wanted
    from verl_cov.law.plots import fits as pictures

    with terminal.one_line():
        inputs = Inputs(runs, label, wanted(entropy_key, score_key, step_key, join), example)
        printing.check_output(output, inputs.paths())
        loaded = inputs.load()
        if pool and len(loaded) > 1:
            fits = [commands.fit_together(loaded, robust)]
        else:
            fits = commands.fit_each(loaded, robust)
        objects = [to_json.fit_json(run, law) | beside.headline_json(run, law) for run, law in fits]
        answer = to_json.of_runs(objects, loaded.left_out)
        printing.give(answer, as_json, output, lambda: pictures.laws(fits))
    if as_json:
        return
    for table in tables.fit_tables(fits):
        terminal.console().print(table)
    for run, law in fits:
        if law.runs == 1:
            printing.print_line(tables.gain_line(run, law))
        for line in beside.fit_lines(run, law):
            printing.print_line(line)
        printing.print_warnings(law.warnings)
    printing.print_notes(loaded)


def forecast(
    runs: Runs = None,
    label: Label = None,
    fraction: Fraction = "15%",
    to_step: ToStep = None,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    step_key: StepKey = None,
    join: Joining = "auto",
    as_json: AsJson = False,
    output: Output = None,
    example: Example = False,
) -> None:
    """Fit the first points of runs and predict the rest: how early was each run predictable, and by what?"""
    from verl_cov.law import arguments, beside, commands, tables, to_json
    from verl_cov.law.inputs import Inputs, wanted
    from verl_cov.law.plots import laws

    with terminal.one_line():
        inputs = Inputs(runs, label, wanted(entropy_key, score_key, step_key, join), example)
        printing.check_output(output, inputs.paths())
        loaded = inputs.load()
        forecasts = commands.forecast_each(loaded, arguments.fraction(fraction))
        if output is not None and output.suffix.lower() != ".json" and len(forecasts) > 1:
            raise ValueError(f"-o {output}: the picture of a forecast shows one run; for several, `verl-cov report`")
        later = beside.later([run for run, *_ in forecasts], to_step)
        answer = to_json.of_runs(beside.forecasts_json(forecasts, later), loaded.left_out)
        printing.give(answer, as_json, output, lambda: laws.forecast(*forecasts[0][:2]))
    if as_json:
        return
    for (run, prediction, origins), more in zip(forecasts, later, strict=True):
        printing.print_line(f"{run.name}: fitted to the first {prediction.n} of {run.steps.size} points", style="bold")
        printing.print_line(tables.rest_line(prediction))
        terminal.console().print(tables.forecast_table(run, origins))
        if more.ranked:
            terminal.console().print(beside.rank_table(more.ranked))
        printing.print_line("\n".join(beside.later_lines(more)))
        printing.print_warnings((*prediction.estimate.warnings, *getattr(more.there, "warnings", ())))
    printing.print_notes(loaded)


def compare(
    runs: Runs = None,
    label: Label = None,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    step_key: StepKey = None,
    join: Joining = "auto",
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Test whether runs (of several algorithms, say) share one law."""
    from verl_cov.law import commands, tables, to_json
    from verl_cov.law.inputs import Inputs, wanted
    from verl_cov.law.plots import laws

    with terminal.one_line():
        inputs = Inputs(runs, label, wanted(entropy_key, score_key, step_key, join))
        printing.check_output(output, inputs.paths())
        loaded = inputs.load()
        comparison = commands.compare_runs(loaded)
        warnings = [f"{run.name}: {text}" for run, law in commands.fit_each(loaded) for text in law.warnings]
        answer = to_json.compare_json(loaded, comparison, loaded.left_out)
        printing.give(answer, as_json, output, lambda: laws.comparison(comparison))
    if as_json:
        return
    terminal.console().print(tables.compare_table(comparison))
    for line in tables.compare_lines(loaded, comparison):
        printing.print_line(line)
    printing.print_warnings(warnings)
    printing.print_notes(loaded)


def scale(
    sizes: Annotated[
        list[str] | None,
        typer.Argument(help="SIZE=RUN each, such as 0.5B=runs/small, or one CSV with columns parameters, a, b."),
    ] = None,
    predict: Annotated[str | None, typer.Option(help="Model size to predict the law for, such as 32B.")] = None,
    example: Annotated[bool, typer.Option("--example", help="The paper's Qwen2.5 models, 0.5B to 7B.")] = False,
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    step_key: StepKey = None,
    join: Joining = "auto",
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Fit the law's a and b against model size, and predict what a larger model would reach."""
    from verl_cov.law import arguments, commands, examples, tables, to_json
    from verl_cov.law.inputs import wanted
    from verl_cov.law.plots import laws
    from verl_cov.law.scale import scale as fit_trend

    with terminal.one_line():
        printing.check_output(output, [])
        if example and sizes:
            raise ValueError("give runs or --example, not both")
        target = None if predict is None else arguments.size(predict)
        *small, largest = examples.qwen25_math()
        if example:
            columns = zip(*((law.parameters, law.a, law.b, law.model) for law in small), strict=True)
            models = commands.Sizes(*map(list, columns))
            target = largest.parameters if target is None else target
        else:
            models = commands.read_sizes(sizes or [], wanted(entropy_key, score_key, step_key, join))
        scaling = fit_trend(models.parameters, models.a, models.b)
        answer = to_json.scale_json(scaling, models.names, target)
        printing.give(answer, as_json, output, lambda: laws.sizes(scaling, models.a, models.b, target))
    if as_json:
        return
    terminal.console().print(tables.scale_table(scaling, models, target))
    if example:
        law = f"a {largest.a:.3f}, b {largest.b:.3f}, ceiling {largest.b - largest.a:.3f}"
        printing.print_line(f"{largest.model} really has {law}: it falls short of the line")
    printing.print_warnings(scaling.warnings)


def plot(
    runs: Runs = None,
    label: Label = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture: .png, .pdf or .svg.")] = Path("law.png"),
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    step_key: StepKey = None,
    join: Joining = "auto",
    example: Example = False,
) -> None:
    """Draw score against entropy with the law and its ceiling."""
    from verl_cov.law import commands, files
    from verl_cov.law.inputs import Inputs, wanted
    from verl_cov.law.plots import fits, style

    with terminal.one_line():
        inputs = Inputs(runs, label, wanted(entropy_key, score_key, step_key, join), example)
        files.check_output(output, files.PICTURES, inputs.paths())
        laws = commands.fit_each(inputs.load())
        files.write(output, style.picture(fits.laws(laws), output.suffix))
    typer.echo(f"written: {output}")


def report(
    runs: Runs = None,
    label: Label = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page, an .html.")] = Path("report.html"),
    fraction: Fraction = "15%",
    entropy_key: EntropyKey = None,
    score_key: ScoreKey = None,
    step_key: StepKey = None,
    join: Joining = "auto",
    example: Example = False,
) -> None:
    """Write everything the law says about runs to one page that needs no other file."""
    from verl_cov.law import arguments, files
    from verl_cov.law.inputs import Inputs, wanted
    from verl_cov.law.report import page

    with terminal.one_line():
        inputs = Inputs(runs, label, wanted(entropy_key, score_key, step_key, join), example)
        files.check_output(output, (".html", ".htm"), inputs.paths())
        loaded = inputs.load()
        content = page(loaded, arguments.fraction(fraction), [str(one) for one in loaded.left_out])
        files.write(output, content.encode())
    typer.echo(f"written: {output}")


COMMANDS: tuple[Callable[..., None], ...] = (watch, fit, forecast, compare, scale, plot, report)

EXAMPLES = {
    watch: terminal.examples("verl-cov watch runs/demo", "verl-cov watch runs/demo --once"),
    fit: terminal.examples("verl-cov fit runs/demo/vanilla", "verl-cov fit runs/seed-* --pool -o law.png"),
    forecast: terminal.examples("verl-cov forecast runs/demo/vanilla --fraction 0.3"),
    compare: terminal.examples("verl-cov compare runs/demo", "verl-cov compare runs/a runs/b --json"),
    scale: terminal.examples("verl-cov scale --example", "verl-cov scale 0.5=runs/small 1.5=runs/medium 3=runs/large"),
    plot: terminal.examples("verl-cov plot runs/demo -o law.png"),
    report: terminal.examples("verl-cov report runs/demo -o report.html"),
}
