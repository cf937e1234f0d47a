"""What came of a set of runs: a table, and on request the law's report and figures."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from verl_cov.law.points import ENTROPY_KEY, score_key
from verl_cov.law.readers import NoLog, Run, find_runs, read_metrics
from verl_cov.recipes.launch import Launch
from verl_cov.recipes.progress import number

SELECTED_KEY = "actor/cov/selected_tokens"  # tokens that Clip-Cov or KL-Cov acted on, mean over the step's updates
STEP_TIME_KEY = "timing_s/step"  # seconds, without validation


def read_runs(launches: Sequence[Launch]) -> dict[str, Run]:
    """The runs that have metrics, by the name of their folder."""
    runs = {}
    for launch in launches:
        try:
            [(_, paths)] = find_runs([launch.folder])
        except NoLog:
            continue
        runs[launch.folder.name] = read_metrics(paths)
    return runs


def table(runs: Mapping[str, Run]) -> Table:
    """One row a run, at most 80 columns wide for the demo's names."""
    title = "Entropy in nats per token; score on the validation prompts"
    result = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    result.add_column("run", no_wrap=True)
    for column in ("steps", "entropy\nstart → end", "score\nstart → best → end", "tokens\nselected", "s/step"):
        result.add_column(column, justify="right", no_wrap=True)
    for name, run in runs.items():
        entropy = run.values(ENTROPY_KEY)
        key = score_key(run)
        score = run.values(key) if key else np.empty(0)
        result.add_row(
            name,
            str(int(run.steps[-1])) if run.steps.size else "0",
            " → ".join(map(number, entropy[[0, -1]])) if entropy.size else "-",
            " → ".join(map(number, (score[0], score.max(), score[-1]))) if score.size else "-",
            number(_mean(run.values(SELECTED_KEY)), 1),
            number(_mean(run.values(STEP_TIME_KEY)), 1),
        )
    return result


def common_folder(launches: Sequence[Launch]) -> str:
    """The folder that the runs are in; of one run, its own. From here, if it is below."""
    folder = os.path.commonpath([launch.folder for launch in launches])
    relative = os.path.relpath(folder)
    return folder if relative.startswith(os.pardir) else relative


def next_commands(launches: Sequence[Launch], reported: bool) -> str:
    """A line with what to type after the runs. reported: the report is written already."""
    folder = shlex.quote(common_folder(launches))
    law = f"`verl-cov {'compare' if len(launches) > 1 else 'fit'} {folder}` (the law)"
    return f"Next: {law if reported else f'`verl-cov report {folder}` (one page)'}, `verl-cov watch --once {folder}`"


def write_report(launches: Sequence[Launch], console: Console) -> None:
    """Write report.html and plots/*.png into the runs' common folder. What cannot be made is told, with the reason."""
    from verl_cov.law import (  # scipy and matplotlib: a second that nobody should wait for at the start
        files,
        report,
        runs,
    )
    from verl_cov.law.plots import plot_all

    folder = Path(common_folder(launches))
    logs = read_runs(launches)
    paths = plot_all(dict(zip(logs, runs.alike(list(logs.values())), strict=True)), folder / "plots")
    try:
        points = runs.load([launch.folder for launch in launches])
        files.write(folder / "report.html", report.page(points, 0.15).encode())
        paths.append(folder / "report.html")
    except ValueError as error:
        console.print(f"No report: {error}", markup=False, soft_wrap=True)
    for path in paths:
        console.print(f"written: {path}", markup=False, soft_wrap=True)


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if values.size else None
