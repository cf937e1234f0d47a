"""The picture of `watch`: all runs together in the first row, then a row of panels for each run with our metrics."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from verl_cov.core.metric_table import PREFIX
from verl_cov.law.plots.covariance import draw_covariance, has_metrics
from verl_cov.law.plots.fits import MOST_RUNS
from verl_cov.law.plots.passes import draw_passes, has_passes
from verl_cov.law.plots.runs import draw_entropy, draw_law, draw_score
from verl_cov.law.plots.style import TEXT, Look, by_step, dress, labels, legend_below, looks, marks, save, say_empty
from verl_cov.law.readers import Run
from verl_cov.law.reading import read
from verl_cov.law.series import unit_of


def plot(runs: Mapping[str, Run], path: str | PathLike[str]) -> Path:
    """Write the figure of ``runs`` to ``path``."""
    known, names = looks(runs), dict(zip(runs, labels(list(runs)), strict=True))
    groups, explained = _groups(runs), [name for name, run in runs.items() if has_metrics(run)]
    with rc_context(TEXT):
        heights = [*(4.4 + 0.25 * len(group) for group in groups), *(4.3 for _ in explained)]
        more = int(has_passes(runs))
        figure = Figure(figsize=(17 + 4 * more, sum(heights)), layout="constrained")
        rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for group, row in zip(groups, rows, strict=False):
            score, *passing, entropy, law, selected = row.subplots(1, 4 + more)
            draw_score(score, group, known)
            for panel in passing:
                draw_passes(panel, group, known)
            draw_entropy(entropy, group, known)
            draw_law(law, group, _fitted(group), known)
            _selected(selected, group, known)
            lines, texts = law.get_legend_handles_labels()
            legend_below(row, [*marks(group, known), *lines], [*(names[name] for name in group), *texts])
        for name, row in zip(explained, rows[len(groups) :], strict=True):
            row.suptitle(names[name], x=0.01, ha="left", fontweight="bold", color=known[name]["color"])
            draw_covariance(row.subplots(1, 4), runs[name])
        return save(figure, path, dpi=110)


def _groups(runs: Mapping[str, Run]) -> list[Mapping[str, Run]]:
    """The runs that can share a panel: at most twelve, and of one unit of score (those without a score with any)."""
    of_unit: dict[str, dict[str, Run]] = {}
    for name, run in runs.items():
        scores = read(run).scores.values
        of_unit.setdefault(unit_of(scores) if scores.size else "", {})[name] = run
    scoreless = of_unit.pop("", {})
    groups = list(of_unit.values()) or [{}]
    groups[0] |= scoreless
    return [
        dict(list(group.items())[at : at + MOST_RUNS])
        for group in groups
        for at in range(0, len(group) or 1, MOST_RUNS)
    ]


def _fitted(runs: Mapping[str, Run]) -> str:
    """The run whose law is drawn: the first without a control, as the paper's law is about those."""
    free = [name for name, run in runs.items() if not np.isfinite(run.column(PREFIX + "selected_tokens")).any()]
    return next(iter(free or runs), "")


def _selected(axes: Axes, runs: Mapping[str, Run], known: Mapping[str, Look]) -> None:
    dress(axes, "Tokens acted on", "training step", "% of the mini-batch's tokens")
    drawn = False
    for name, run in runs.items():
        share = run.column(PREFIX + "selected_frac")
        finite = np.isfinite(share)
        if finite.any():
            every = max(1, int(finite.sum()) // 12)
            axes.plot(run.steps[finite], 100 * share[finite], markersize=5, markevery=every, **known[name])
            drawn = True
    if not drawn:
        say_empty(axes, "no control in these runs")
        return
    by_step(axes)
    axes.set_ylim(bottom=0)
