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
from verl_cov.law.plots.runs import draw_entropy, draw_law, draw_score
from verl_cov.law.plots.style import TEXT, by_step, dress, labels, legend_below, looks, marks, save, say_empty
from verl_cov.law.readers import Run


def plot(runs: Mapping[str, Run], path: str | PathLike[str]) -> Path:
    """Write the figure of ``runs`` to ``path``."""
    known, names = looks(runs), dict(zip(runs, labels(list(runs)), strict=True))
    rows = [name for name, run in runs.items() if has_metrics(run)]
    with rc_context(TEXT):
        heights = [4.0 + 0.2 * len(runs), *(4.3 for _ in rows)]
        figure = Figure(figsize=(17, sum(heights)), layout="constrained")
        first, *others = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        score, entropy, law, selected = first.subplots(1, 4)
        draw_score(score, runs)
        draw_entropy(entropy, runs)
        draw_law(law, runs, _fitted(runs))
        _selected(selected, runs)
        lines, texts = law.get_legend_handles_labels()
        legend_below(first, [*marks(runs, known), *lines], [*names.values(), *texts])
        for name, row in zip(rows, others, strict=True):
            row.suptitle(names[name], x=0.01, ha="left", fontweight="bold", color=known[name]["color"])
            draw_covariance(row.subplots(1, 4), runs[name])
        return save(figure, path, dpi=110)


def _fitted(runs: Mapping[str, Run]) -> str:
    """The run whose law is drawn: the first without a control, as the paper's law is about those."""
    free = [name for name, run in runs.items() if not np.isfinite(run.column(PREFIX + "selected_tokens")).any()]
    return (free or list(runs))[0]


def _selected(axes: Axes, runs: Mapping[str, Run]) -> None:
    dress(axes, "Tokens acted on", "training step", "% of the mini-batch's tokens")
    drawn, known = False, looks(runs)
    for name, run in runs.items():
        share = run.column(PREFIX + "selected_frac")
        finite = np.isfinite(share)
        if finite.any():
            axes.plot(run.steps[finite], 100 * share[finite], color=known[name]["color"], linewidth=1.8)
            drawn = True
    if not drawn:
        say_empty(axes, "no control in these runs")
        return
    by_step(axes)
    axes.set_ylim(bottom=0)
