"""What `verl-cov fit`, `forecast`, `compare`, `scale`, `plot` and `report` do: logs in, tables and JSON out.

Everything that can be wrong with the input raises ValueError or OSError with one line for the user. Files are written
whole or not at all.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from verl_cov.law.compare import Comparison, compare
from verl_cov.law.estimate import Estimate, Interval, estimate, unit_of
from verl_cov.law.forecast import Forecast, Origin, forecast, rolling_origin
from verl_cov.law.points import ENTROPY_KEYS, Points, points
from verl_cov.law.readers import AVERAGE_KEY, SCORE_PREFIX, Run, find_runs, read_metrics
from verl_cov.law.scale import Scaling

# Below this a log is read before a progress bar could be seen.
_PROGRESS_BYTES = 50_000_000


# --- from logs to fits ------------------------------------------------------------------------------------------------


def load(arguments: Sequence[Path], entropy_key: str | None = None, score_key: str | None = None) -> list[Points]:
    """The points of every run that the arguments mean (see :func:`verl_cov.law.readers.find_runs`).

    Long logs show their progress on standard error. Raises ValueError or OSError, one line, the run named.
    """
    logs: list[tuple[str, Run]] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    # Elsewhere not even started: older rich ends a bar that is switched off (`disable`) with an empty line.
    with bar if console.is_terminal else nullcontext():
        for name, paths in find_runs(arguments):
            task: Any = None

            def show(done: int, total: int, name: str = name) -> None:
                nonlocal task
                if task is None and total >= _PROGRESS_BYTES:
                    task = bar.add_task(f"reading {name}", total=total)
                if task is not None:
                    bar.update(task, completed=done)

            logs.append((name.encode(errors="replace").decode(), read_metrics(paths, progress=show)))
    found = [points(run, name, entropy_key, score_key) for name, run in logs]
    # One log has a better definition of entropy or of the score than another: side by side they need the same.
    shared: dict[str, str] = {}
    if entropy_key is None and len({run.entropy_key for run in found}) > 1:
        shared["entropy_key"] = _shared(logs, ENTROPY_KEYS)
    scores = {run.score_key for run in found}
    if len(scores) > 1 and AVERAGE_KEY in scores:
        keys = logs[0][1].keys()
        shared["score_key"] = _shared(logs, [key for key in keys if key.startswith(SCORE_PREFIX) and "/mean@" in key])
    shared = {what: key for what, key in shared.items() if key}
    if shared:
        wanted = {"entropy_key": entropy_key, "score_key": score_key, **shared}
        found = [points(run, name, **wanted) for name, run in logs]
    return found


def _shared(logs: Sequence[tuple[str, Run]], keys: Sequence[str]) -> str:
    """The first of ``keys`` that has a value in every log, or nothing."""
    return next((key for key in keys if all(np.isfinite(run.column(key)).any() for _, run in logs)), "")


def comparable(runs: Sequence[Points]) -> None:
    """Raise ValueError unless the runs are different ones, of the same entropy, score and unit."""
    for what, option, values in (
        ("entropies", "--entropy-key", {run.entropy_key for run in runs}),
        ("scores", "--score-key", {run.score_key for run in runs}),
    ):
        if len(values) > 1:
            raise ValueError(f"the runs have different {what} ({', '.join(sorted(values))}): name one with {option}")
    averaged = {run.averaged for run in runs}
    if len(averaged) > 1:
        sets = " and ".join(sorted(", ".join(names) or "none" for names in averaged))
        raise ValueError(f"the runs' scores are averages over different sets ({sets}): name one with --score-key")
    units = {unit_of(run.score) for run in runs}
    if len(units) > 1:
        raise ValueError(
            f"the runs have scores of different units ({', '.join(sorted(units))}): they have no law in common"
        )
    seen: dict[tuple[int, ...], list[Points]] = {}
    for run in runs:
        for other in seen.setdefault(tuple(run.steps.tolist()), []):
            # To three digits: a console log rounds.
            if np.allclose(run.score, other.score, rtol=1e-3) and np.allclose(run.entropy, other.entropy, rtol=1e-3):
                raise ValueError(f"{other.name} and {run.name} are the same run: give it once")
        seen[tuple(run.steps.tolist())].append(run)


def fit_each(runs: Sequence[Points], method: str | None = None, robust: bool = False) -> list[tuple[Points, Estimate]]:
    """Each run's law. Raises ValueError with the run's name."""
    return [(run, _estimate(run, method, robust)) for run in runs]


def fit_together(runs: Sequence[Points], method: str | None = None, robust: bool = False) -> tuple[Points, Estimate]:
    """One law for runs that differ in their seed only, and all their points. Raises ValueError, also if they differ in
    more."""
    comparable(runs)
    together = replace(
        runs[0],
        name=f"{len(runs)} runs: {', '.join(run.name for run in runs[:5])}",
        notes=tuple(note for run in runs for note in run.notes),
        **{key: np.concatenate([getattr(run, key) for run in runs]) for key in ("steps", "entropy", "score")},
    )
    law = estimate(
        together.entropy,
        together.score,
        together.steps,
        runs=[run.name for run in runs for _ in run.steps],
        method=method,  # type: ignore[arg-type]
        robust=robust,
        controlled=any(run.control for run in runs),
    )
    return together, law


def _estimate(run: Points, method: str | None, robust: bool) -> Estimate:
    try:
        return estimate(
            run.entropy,
            run.score,
            run.steps,
            method=method,  # type: ignore[arg-type]
            robust=robust,
            controlled=run.control is not None,
        )
    except ValueError as error:
        raise ValueError(f"{run.name}: {error}") from error


def forecast_each(runs: Sequence[Points], share: float) -> list[tuple[Points, Forecast, list[Origin]]]:
    """Each run's rest, from its first ``share`` of points, and how early it was predictable."""
    made = []
    for run in runs:
        try:
            one = forecast(run.steps, run.entropy, run.score, share=share)
            made.append((run, one, rolling_origin(run.steps, run.entropy, run.score)))
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from error
    return made


def compare_runs(runs: Sequence[Points]) -> Comparison:
    """Whether the runs share one law. Raises ValueError, also if they cannot be compared."""
    comparable(runs)
    return compare({run.name: (run.entropy, run.score, run.steps) for run in runs})


def read_sizes(
    arguments: Sequence[str], entropy_key: str | None, score_key: str | None
) -> tuple[list[float], list[float], list[float], list[str]]:
    """(parameters, a, b, names), ascending by size, of arguments SIZE=RUN, or one CSV with columns parameters, a, b."""
    if len(arguments) == 1 and "=" not in arguments[0]:
        with open(arguments[0], encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
        try:
            table = [(float(row["parameters"]), float(row["a"]), float(row["b"])) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{arguments[0]}: a table needs numbers in columns parameters, a, b ({error!r})"
            ) from error
        names = [row.get("model") or f"{size:g}" for row, (size, _, _) in zip(rows, table, strict=True)]
    else:
        table, names, loaded = [], [], []
        for argument in arguments:
            size, _, run = argument.partition("=")
            try:
                parameters = float(size)
            except ValueError:
                raise ValueError(f"{argument!r}: give SIZE=RUN, such as 7=runs/7b, or one CSV file") from None
            for points_, law in fit_each(load([Path(run)], entropy_key, score_key)):
                table.append((parameters, law.a.value, law.b.value))
                names.append(points_.name)
                loaded.append(points_)
        comparable(loaded)
    order = sorted(range(len(table)), key=lambda at: (table[at][0], table[at][2], table[at][1]))  # as `scale` does
    sizes, a, b = ([table[at][column] for at in order] for column in range(3))
    return sizes, a, b, [names[at] for at in order]


# --- as JSON ----------------------------------------------------------------------------------------------------------


def fit_json(run: Points, law: Estimate) -> dict[str, Any]:
    """One run's fit as a JSON object."""
    return {
        "name": run.name,
        "a": law.a.value,
        "b": law.b.value,
        "ceiling": law.ceiling.value,
        "a_interval": _ends(law.a),
        "b_interval": _ends(law.b),
        "ceiling_interval": _ends(law.ceiling),
        "level": law.level,
        "method": law.method,
        "r2": _finite(law.law.r2),
        "rmse": law.law.rmse,
        "n": law.n,
        "runs": law.runs,
        "unit": law.unit,
        "autocorrelation": law.autocorrelation,
        "entropy_key": run.entropy_key,
        "score_key": run.score_key,
        "warnings": list(law.warnings),
        "notes": list(run.notes),
    }


def forecast_json(run: Points, made: Forecast, origins: Sequence[Origin]) -> dict[str, Any]:
    """One run's forecast as a JSON object: the fit's, and what it said of the rest."""
    columns = {
        "step": made.step,
        "entropy": made.entropy,
        "score": made.score,
        "predicted": made.predicted,
        "low": made.low,
        "high": made.high,
    }
    left = made.estimate.gain(float(run.entropy[made.n - 1]))
    return fit_json(run, made.estimate) | {
        "fraction": made.share,
        "fraction_used": made.n / run.steps.size,
        "predictions": [{key: float(values[at]) for key, values in columns.items()} for at in range(made.step.size)],
        "rmse_rest": made.rmse_rest,
        "final_error": made.final_error,
        "coverage": made.coverage,
        "gain_left": left.value,
        "gain_left_interval": _ends(left),
        "how_early": [
            {
                "fraction": row.share,
                "n": row.n,
                "rmse_rest": row.rmse_rest,
                "final_error": row.final_error,
                "coverage": row.coverage,
                "ceiling": row.ceiling.value,
                "ceiling_interval": _ends(row.ceiling),
            }
            for row in origins
        ],
    }


def compare_json(runs: Sequence[Points], found: Comparison) -> dict[str, Any]:
    """The comparison of ``runs`` as a JSON object."""
    return {
        "entropy_key": runs[0].entropy_key,
        "score_key": runs[0].score_key,
        "f": _finite(found.f),
        "f_p": _finite(found.f_p),
        "wald": _finite(found.wald),
        "wald_p": _finite(found.wald_p),
        "runs": [
            {"name": name, **{key: getattr(found, key)[at].value for key in ("a", "b", "ceiling")}}
            | {f"{key}_interval": _ends(getattr(found, key)[at]) for key in ("a", "b", "ceiling")}
            for at, name in enumerate(found.names)
        ],
        "pair_p_holm": [[_finite(value) for value in row] for row in found.pair_p_holm],
    }


def scale_json(found: Scaling, names: Sequence[str], target: float | None) -> dict[str, Any]:
    """The trend over sizes as a JSON object."""
    result: dict[str, Any] = {"parameters": list(map(float, found.parameters)), "names": list(names)}
    for key in ("a", "b", "ceiling"):
        trend = getattr(found, key)
        result[key] = {
            "slope": trend.slope.value,
            "slope_interval": _ends(trend.slope),
            "intercept": trend.intercept.value,
            "rmse": trend.rmse,
            "left_out_errors": list(map(float, trend.left_out)),
            "bend_p": _finite(trend.bend_p),
        }
    if target is not None:
        made = found.predict(target)
        for key in ("a", "b", "ceiling"):
            interval: Interval = getattr(made, key)
            result[f"predicted_{key}"], result[f"predicted_{key}_interval"] = interval.value, _ends(interval)
        result["predicted_parameters"] = target
    return result | {"warnings": list(found.warnings)}


def one_or_all(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The only run's object, or one that holds those of several."""
    return found[0] if len(found) == 1 else {"runs": list(found)}


def dumps(value: Any) -> str:
    """JSON that any reader takes: no NaN."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _ends(interval: Interval) -> list[float | None]:
    return [_finite(interval.low), _finite(interval.high)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# --- as tables --------------------------------------------------------------------------------------------------------


def fit_table(fitted: Sequence[tuple[Points, Estimate]]) -> Table:
    """One row a run."""
    table = _table("R = -a exp(H) + b; in brackets 95 % intervals", "run", "a", "b", "ceiling b - a", "R²", "RMSE", "n")
    for run, law in fitted:
        cells = [_with_ends(interval) for interval in (law.a, law.b, law.ceiling)]
        table.add_row(_text(run.name), *cells, f"{law.law.r2:.3f}", f"{law.law.rmse:.3g}", str(law.n))
    return table


def left_line(run: Points, law: Estimate) -> str:
    """What the rest of the entropy will buy, by the law."""
    now = float(run.entropy[-1])
    left, there = law.gain(now), law.at(now)
    begin = f"{run.name}: at {now:.3g} nats per token the score is {run.score[-1]:.3g}"
    if law.a.value <= 0:
        return f"{begin}; a is not above 0, so the law says nothing of what entropy buys"
    return (
        f"{begin}, by the law {there.value:.3g}; what entropy is left buys {left.value:.2g} more "
        f"({left.low:.2g} to {left.high:.2g}), to {law.ceiling.value:.3g} at H = 0"
    )


def forecast_table(run: Points, origins: Sequence[Origin]) -> Table:
    """How early the run was predictable, a row a share of it (at least three points)."""
    title = "Fitted to the first points, against the rest"
    table = _table(title, "first", "points", "ceiling", "RMSE of the rest", "error at the end", "in the interval")
    for row in origins:
        table.add_row(
            f"{100 * row.n / run.steps.size:.0f} %",
            str(row.n),
            _with_ends(row.ceiling),
            f"{row.rmse_rest:.3g}",
            f"{row.final_error:+.3g}",
            f"{100 * row.coverage:.0f} %",
        )
    return table


def compare_table(found: Comparison, most: int = 40) -> Table:
    """One row a run."""
    table = _table("95 % intervals", "run", "a", "b", "ceiling b - a")
    for at, name in enumerate(found.names[:most]):
        cells = [_with_ends(intervals[at]) for intervals in (found.a, found.b, found.ceiling)]
        table.add_row(_text(name), *cells)
    if len(found.names) > most:
        table.add_row(f"... {len(found.names) - most} more", "", "", "")
    return table


def compare_lines(runs: Sequence[Points], found: Comparison) -> list[str]:
    """The verdict in words."""
    same = "no sign that they differ" if found.wald_p >= 0.05 else "they differ"
    lines = [
        f"One law for all {len(found.names)} runs? Wald test p = {found.wald_p:.2g}: {same}. "
        f"(F-test p = {found.f_p:.2g}, which takes neighbouring validations for independent)"
    ]
    pairs = [
        (found.pair_p_holm[i, j], found.names[i], found.names[j])
        for i in range(len(found.names))
        for j in range(i + 1, len(found.names))
        if found.pair_p_holm[i, j] < 0.05
    ]
    for p, one, other in sorted(pairs)[:10]:
        lines.append(f"{one} and {other} differ (p = {p:.2g}, corrected for the number of pairs)")
    if len(pairs) > 10:
        lines.append(f"... and {len(pairs) - 10} more pairs")
    lines.append(f"Of {runs[0].score_key} with {runs[0].entropy_key}.")
    return lines


def scale_table(
    found: Scaling, a: Sequence[float], b: Sequence[float], names: Sequence[str], target: float | None
) -> Table:
    """One row a size: the coefficients, and the error of the trend through the other sizes."""
    table = _table(
        "In parentheses: predicted from the other sizes, less real", "size", "run", "a", "b", "ceiling b - a"
    )
    for at, size in enumerate(found.parameters):
        values = {"a": a[at], "b": b[at], "ceiling": b[at] - a[at]}
        cells = [f"{value:.3f} ({getattr(found, key).left_out[at]:+.3f})" for key, value in values.items()]
        table.add_row(f"{size:g}", _text(names[at]), *cells)
    if target is not None:
        made = found.predict(target)
        table.add_row(f"{target:g}", "predicted", *(_with_ends(getattr(made, key)) for key in ("a", "b", "ceiling")))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 else "right")
    return table


def _with_ends(interval: Interval) -> Text:
    return Text(f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]")  # brackets are no markup


def _text(name: str) -> Text:
    return Text(name)


# --- files ------------------------------------------------------------------------------------------------------------


def check_output(output: Path, endings: Sequence[str], inputs: Sequence[Path] = ()) -> None:
    """Raise ValueError unless ``output`` is a file that can be written without harm."""
    if output.suffix.lower() not in endings:
        raise ValueError(f"-o {output}: give a file that ends with {' or '.join(endings)}")
    if not output.parent.is_dir() or output.is_dir():
        raise ValueError(f"-o {output}: give a file in a folder that exists")
    if output.resolve() in {path.resolve() for path in inputs}:
        raise ValueError(f"-o {output} is one of the logs: give another name")


def write(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all. Raises OSError."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
