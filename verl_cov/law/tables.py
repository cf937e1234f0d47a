"""The tables and sentences that the law's commands print."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from verl_cov.law.commands import Sizes
from verl_cov.law.compare import Comparison
from verl_cov.law.display import Fitted, by_unit
from verl_cov.law.distributions import p_text
from verl_cov.law.estimate import Estimate
from verl_cov.law.fit import Interval
from verl_cov.law.forecast import Forecast
from verl_cov.law.keys import listed
from verl_cov.law.passes import BEST, passes
from verl_cov.law.points import Points
from verl_cov.law.readers import Run
from verl_cov.law.scale import Scaling

FIT_COLUMNS = ("run", "a", "b", "ceiling b - a", "R²", "RMSE", "points")


def fit_row(run: Points, law: Estimate) -> tuple[str, ...]:
    """Cells under `FIT_COLUMNS`."""
    coefficients = map(with_ends, (law.a, law.b, law.ceiling))
    return run.name, *coefficients, f"{law.law.r2:.3f}", f"{law.law.rmse:.3g}", str(law.n)


def fit_tables(fits: Fitted) -> list[Table]:
    """One row for each law, in a table for each unit of score."""
    tables = []
    for unit, same in by_unit(fits).items():
        table = _table(f"R = -a exp(H) + b, scores {unit}; in brackets 95 % intervals", *FIT_COLUMNS)
        for run, law in same:
            table.add_row(*map(Text, fit_row(run, law)))
        tables.append(table)
    return tables


def last_score(run: Points) -> str:
    """`0.609 at step 25 (best 0.612 at 20)`: the last score of the log, whether or not it has an entropy."""
    (steps, scores) = run.scores
    best = int(np.argmax(scores))
    known = f"{scores[-1]:.3g} at step {steps[-1]}"
    return known if scores[best] == scores[-1] else f"{known} (best {scores[best]:.3g} at {steps[best]})"


def gain_line(run: Points, law: Estimate) -> str:
    """The last score, and how much the remaining entropy will buy, according to the law."""
    now = float(run.entropies.values[-1])
    gain, here = law.gain(now), law.at(now)
    start = f"{run.name}: the score is {last_score(run)}"
    if law.a.value <= 0:
        return f"{start}; a is not above 0, so the law does not say what entropy buys"
    score = float(run.scores.values[-1])
    if score > law.ceiling.value:
        return (
            f"{start}, above the law's ceiling already, {law.ceiling.value:.3g} at H = 0: the law has no more to give"
        )
    return (
        f"{start}; at {now:.3g} nats per token the law gives {here.value:.3g}, and the remaining entropy buys "
        f"{gain.value:.2g} more ({gain.low:.2g} to {gain.high:.2g}), to {law.ceiling.value:.3g} at H = 0"
    )


def passes_line(run: Run) -> str | None:
    """How often one sample and several have a success, at the first and the last validation; None without pass@k."""
    found = passes(run)
    if found is None:
        return None
    curves = {found.name(k): curve for k, curve in found.curves.items()} | {"greedy accuracy": found.greedy}
    parts = [f"{name} {one.values[0]:.3f} → {one.values[-1]:.3f}" for name, one in curves.items() if one.values.size]
    how = " (verl's best of k draws with replacement, a bootstrap)" if found.kind == BEST else ""
    return f"From the first validation to the last: {', '.join(parts)}{how}."


def remarks(runs: Sequence[Points]) -> list[tuple[str, tuple[str, ...]]]:
    """The notes of the runs, each once: (names, notes), where all runs with the same notes are together."""
    of_note: dict[str, list[str]] = {}
    for run in runs:
        for note in dict.fromkeys(run.notes):
            of_note.setdefault(note, []).append(run.name)
    of_runs: dict[str, list[str]] = {}
    for note, names in of_note.items():
        who = "all runs" if len(names) == len(runs) > 1 else listed(names)
        of_runs.setdefault(who, []).append(note)
    return [(who, tuple(notes)) for who, notes in of_runs.items()]


FORECAST_COLUMNS = ("first", "points", "ceiling", "RMSE of the rest", "error at the end", "in the interval")


def rest_line(prediction: Forecast) -> str:
    """How well a forecast met what came later."""
    return (
        f"The rest, predicted from its entropy: RMSE {prediction.rmse_rest:.3g}, error at the end "
        f"{prediction.final_error:+.3g}, {100 * prediction.coverage:.0f} % of the points in their 95 % interval"
    )


def forecast_row(run: Points, origin: Forecast) -> tuple[str, ...]:
    """Cells under `FORECAST_COLUMNS`."""
    return (
        f"{100 * origin.n / run.steps.size:.0f} %",
        str(origin.n),
        with_ends(origin.estimate.ceiling),
        f"{origin.rmse_rest:.3g}",
        f"{origin.final_error:+.3g}",
        f"{100 * origin.coverage:.0f} %",
    )


def forecast_table(run: Points, origins: Sequence[Forecast]) -> Table:
    """How early the run was predictable: one row for each share of its points."""
    table = _table("Fitted to the first points, compared with the rest", *FORECAST_COLUMNS)
    for origin in origins:
        table.add_row(*map(Text, forecast_row(run, origin)))
    return table


def compare_table(comparison: Comparison, most: int = 40) -> Table:
    """One row for each of the first `most` runs."""
    table = _table("95 % intervals", "run", "a", "b", "ceiling b - a")
    laws = list(zip(comparison.names, comparison.a, comparison.b, comparison.ceiling, strict=True))
    for name, *intervals in laws[:most]:
        table.add_row(Text(name), *(Text(with_ends(interval)) for interval in intervals))
    if len(laws) > most:
        table.add_row(f"... {len(laws) - most} more", "", "", "")
    return table


def compare_lines(runs: Sequence[Points], comparison: Comparison) -> list[str]:
    """The result of the tests in words."""
    names, p_values = comparison.names, comparison.pair_p_holm
    verdict = "no sign that they differ" if comparison.wald_p >= 0.05 else "they differ"
    lines = [f"One law for all {len(names)} runs? Wald test {p_text(comparison.wald_p)}: {verdict}."]
    pairs = sorted(
        (p_values[i, j], names[i], names[j])
        for i in range(len(names))
        for j in range(i + 1, len(names))
        if p_values[i, j] < 0.05
    )
    lines += [f"{a} and {b} differ ({p_text(p)}, corrected for the number of pairs)" for p, a, b in pairs[:10]]
    if len(pairs) > 10:
        lines.append(f"... and {len(pairs) - 10} more pairs")
    return [*lines, f"The score is {runs[0].score_key}, the entropy {runs[0].entropy_key}."]


def scale_table(scaling: Scaling, sizes: Sizes, target: float | None) -> Table:
    """One row for each model: its coefficients, and the errors of the trend through the other sizes."""
    title = "In parentheses: predicted from the other sizes, minus real"
    table = _table(title, "size", "run", "a", "b", "ceiling b - a")
    for at, (size, a, b, name) in enumerate(zip(sizes.parameters, sizes.a, sizes.b, sizes.names, strict=True)):
        trends = ((a, scaling.a), (b, scaling.b), (b - a, scaling.ceiling))
        cells = [f"{value:.3f} ({trend.left_out[at]:+.3f})" for value, trend in trends]
        table.add_row(f"{size:g}", Text(name), *cells)
    if target is not None:
        law = scaling.predict(target)
        table.add_row(f"{target:g}", "predicted", *(Text(with_ends(value)) for value in (law.a, law.b, law.ceiling)))
    return table


def with_ends(interval: Interval, form: str = ".3f") -> str:
    """`0.188 [0.148, 0.231]`."""
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def of_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain cells."""
    table = _table(title, *columns)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 else "right")
    return table
