"""The tables and sentences that the law's commands print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from verl_cov.law.commands import Sizes
from verl_cov.law.compare import Comparison
from verl_cov.law.distributions import p_text
from verl_cov.law.estimate import Estimate
from verl_cov.law.fit import Interval
from verl_cov.law.forecast import Forecast
from verl_cov.law.points import Points
from verl_cov.law.scale import Scaling

FIT_COLUMNS = ("run", "a", "b", "ceiling b - a", "R²", "RMSE", "points")


def fit_row(run: Points, law: Estimate) -> tuple[str, ...]:
    """Cells under `FIT_COLUMNS`."""
    coefficients = map(with_ends, (law.a, law.b, law.ceiling))
    return run.name, *coefficients, f"{law.law.r2:.3f}", f"{law.law.rmse:.3g}", str(law.n)


def fit_table(fits: Sequence[tuple[Points, Estimate]]) -> Table:
    """One row for each law."""
    table = _table("R = -a exp(H) + b; in brackets 95 % intervals", *FIT_COLUMNS)
    for run, law in fits:
        table.add_row(*map(Text, fit_row(run, law)))
    return table


def gain_line(run: Points, law: Estimate) -> str:
    """How much score the remaining entropy will buy, according to the law."""
    now = float(run.entropy[-1])
    gain, here = law.gain(now), law.at(now)
    start = f"{run.name}: at {now:.3g} nats per token the score is {run.score[-1]:.3g}"
    if law.a.value <= 0:
        return f"{start}; a is not above 0, so the law does not say what entropy buys"
    return (
        f"{start}, by the law {here.value:.3g}; the remaining entropy buys {gain.value:.2g} more "
        f"({gain.low:.2g} to {gain.high:.2g}), to {law.ceiling.value:.3g} at H = 0"
    )


FORECAST_COLUMNS = ("first", "points", "ceiling", "RMSE of the rest", "error at the end", "in the interval")


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
