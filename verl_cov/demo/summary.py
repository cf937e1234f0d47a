"""After the runs: a table of what happened, the law fitted to the vanilla run, and the figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from verl_cov.demo.folder import NAMES, RunFolder
from verl_cov.demo.progress import ENTROPY_KEY, STEP_TIME_KEY, duration, number
from verl_cov.law.plots import FIT_RUN, fit_law, plot_all, score_key
from verl_cov.law.readers import Run, read_metrics

SELECTED_KEY = "actor/cov/selected_tokens"  # tokens that Clip-Cov or KL-Cov acted on in the step


def read_runs(folder: Path) -> dict[str, Run]:
    """The runs of one set that have metrics, by name, in the demo's order."""
    metrics = {name: RunFolder(folder / name).metrics for name in NAMES}
    return {name: read_metrics(path) for name, path in metrics.items() if path.is_file()}


def report(folder: Path, console: Console) -> list[Path]:
    """Print the table and the law, write the figures to folder/plots; returns their paths."""
    runs = read_runs(folder)
    seconds = {name: (RunFolder(folder / name).status() or {}).get("seconds") for name in runs}
    console.print(table(runs, seconds))
    console.print(law_line(runs), highlight=False, markup=False, soft_wrap=True)
    damaged = {name: run.damaged for name, run in runs.items() if run.damaged}
    if damaged:
        what = ", ".join(f"{count} of {name}" for name, count in damaged.items())
        console.print(f"Damaged lines left out: {what}", highlight=False)
    paths = plot_all(runs, folder / "plots")
    for path in paths:
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)
    return paths


def table(runs: Mapping[str, Run], seconds: Mapping[str, float | None]) -> Table:
    """One row a run, made for 80 columns. seconds: wall-clock time of all its launches."""
    title = "Entropy in nats per token; score on the validation prompts"
    result = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    result.add_column("run", no_wrap=True)
    for column in (
        "steps",
        "entropy\nstart → end",
        "score\nstart → best → end",
        "tokens\nselected",
        "s/step",
        "total",
    ):
        result.add_column(column, justify="right", no_wrap=True)
    for name, run in runs.items():
        entropy = _finite(run.column(ENTROPY_KEY))
        key = score_key(run)
        score = _finite(run.column(key)) if key else np.empty(0)
        result.add_row(
            name,
            str(int(run.steps[-1])) if run.steps.size else "0",
            " → ".join(map(number, entropy[[0, -1]])) if entropy.size else "-",
            " → ".join(map(number, (score[0], score.max(), score[-1]))) if score.size else "-",
            number(_mean(run.column(SELECTED_KEY)), 1),
            number(_mean(run.column(STEP_TIME_KEY)), 1),
            duration(seconds.get(name)),
        )
    return result


def law_line(runs: Mapping[str, Run]) -> str:
    """The law of the vanilla run in one line, or why there is none."""
    try:
        law = fit_law(runs)
    except ValueError as error:
        return f"No law for {FIT_RUN}: {error}"
    return (
        f"Law of {FIT_RUN}: R = -{law.a:.3f} exp(H) + {law.b:.3f}".replace("--", "")
        + f", R2 {law.r2:.2f}, RMSE {law.rmse:.3f}, {law.n} points; ceiling at H = 0: {law.ceiling:.3f}"
    )


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    finite: NDArray[np.float64] = values[np.isfinite(values)]
    return finite


def _mean(values: NDArray[np.float64]) -> float | None:
    finite = _finite(values)
    return float(finite.mean()) if finite.size else None
