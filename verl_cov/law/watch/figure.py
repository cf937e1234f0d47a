"""The picture of `watch`: all runs together in the first row, then one row of panels for each run."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from verl_cov.core.metric_table import LADDER, PREFIX
from verl_cov.core.update_kinds import UPDATE_KINDS
from verl_cov.law.plots.runs import draw_entropy, draw_law, draw_score
from verl_cov.law.plots.style import LEGEND, TEXT, by_step, dress, literal, look, save, say_empty
from verl_cov.law.readers import Run

# What pulls entropy down in warm colours, what lifts it in cold ones (Okabe and Ito).
_KIND_COLOURS = ("#D55E00", "#E69F00", "#56B4E9", "#0072B2")
_DIFFICULTIES = (("easy", "#009E73"), ("medium", "#E69F00"), ("hard", "#D55E00"))


def plot(runs: Mapping[str, Run], path: str | PathLike[str]) -> Path:
    """Write the figure of ``runs`` to ``path`` (PNG)."""
    runs = {literal(name): run for name, run in runs.items()}
    with rc_context(TEXT):
        figure = Figure(figsize=(17, 3.6 * (1 + len(runs))), layout="constrained")
        grid = figure.subplots(1 + len(runs), 4, squeeze=False)
        draw_score(grid[0, 0], runs)
        draw_entropy(grid[0, 1], runs)
        draw_law(grid[0, 2], runs, _fitted(runs))
        _selected(grid[0, 3], runs)
        for row, (name, run) in zip(grid[1:], runs.items(), strict=True):
            _ladder(row[0], run, name)
            _kinds(row[1], run, name)
            _changes(row[2], run, name)
            _prompts(row[3], run, name)
        return save(figure, path, dpi=110)


def _fitted(runs: Mapping[str, Run]) -> str:
    """The run whose law is drawn: the first without a control, as the paper's law is about those."""
    free = [name for name, run in runs.items() if not np.isfinite(run.column(PREFIX + "selected_tokens")).any()]
    return (free or list(runs))[0]


def _selected(axes: Axes, runs: Mapping[str, Run]) -> None:
    dress(axes, "Tokens acted on", "training step", "% of the mini-batch's tokens")
    drawn = False
    for name, run in runs.items():
        steps, share = _points(run, "selected_frac")
        if steps.size:
            axes.plot(steps, 100 * share, label=name, color=look(runs, name)["color"], linewidth=1.8)
            drawn = True
    if not drawn:
        say_empty(axes, "no control in these runs")
        return
    by_step(axes)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _ladder(axes: Axes, run: Run, name: str) -> None:
    dress(axes, f"{name}: covariance", "training step", "mean of the largest (nats x A)")
    shades = np.linspace(0.9, 0.35, len(LADDER))
    drawn = False
    for share, shade in zip(LADDER, shades, strict=True):
        steps, values = _points(run, f"top_{share:g}")
        if steps.size:
            axes.plot(
                steps, values, color=(0.84 * shade, 0.37 * shade, 0.0), alpha=shade, label=f"top {100 * share:g} %"
            )
            drawn = True
    steps, values = _points(run, "mean")
    if steps.size:
        axes.plot(steps, values, color="black", linewidth=2, label="all")
        drawn = True
    if not drawn:
        say_empty(axes, "no actor/cov/ metrics:\ntrain with +verl_cov=metrics")
        return
    # Orders of magnitude between the top and the mean, and the mean may be negative.
    axes.set_yscale("symlog", linthresh=0.1, linscale=0.5)
    axes.axhline(0, color="black", linewidth=0.8)
    by_step(axes)
    axes.legend(ncols=2, **LEGEND)


def _kinds(axes: Axes, run: Run, name: str) -> None:
    dress(axes, f"{name}: where it comes from", "training step", "share of |covariance|")
    columns = [_points(run, f"{kind}_cov_frac") for kind in UPDATE_KINDS]
    steps = columns[0][0]
    if not steps.size or any(other.size != steps.size for other, _ in columns):
        say_empty(axes, "no shares")
        return
    shares = np.array([values for _, values in columns])
    if steps.size == 1:
        steps, shares = np.array([steps[0] - 0.5, steps[0] + 0.5]), np.repeat(shares, 2, axis=1)
    axes.stackplot(steps, shares, labels=UPDATE_KINDS, colors=_KIND_COLOURS, alpha=0.85)
    axes.set_ylim(0, 1)
    by_step(axes)
    axes.margins(x=0)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper right", **LEGEND)


def _changes(axes: Axes, run: Run, name: str) -> None:
    dress(axes, f"{name}: change of entropy", "training step", "nats per token")
    steps, change = _points(run, "entropy_change")
    if not steps.size:
        say_empty(axes, "no two rollouts with an entropy yet")
        return
    error = dict(zip(*_points(run, "entropy_error"), strict=True))
    noise = np.array([np.hypot(error.get(step, 0), error.get(step - 1, 0)) for step in steps])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.fill_between(steps, change - noise, change + noise, color="#bbbbbb", alpha=0.5, linewidth=0)
    axes.plot(steps, change, color="black", linewidth=1.8, label="measured, ± standard error")
    for number, colour in ((1, "#0072B2"), (2, "#D55E00")):
        before, predicted = _points(run, f"theorem{number}_predicted")
        if before.size:
            correlation = _points(run, f"theorem{number}_correlation")[1]
            known = f", correlation {correlation[-1]:.2f}" if correlation.size else ""
            # The prediction made at a step is for the change that the next step measures.
            axes.plot(before + 1, predicted, color=colour, linestyle="--", label=f"Theorem {number}{known}")
    by_step(axes)
    axes.legend(**LEGEND)


def _prompts(axes: Axes, run: Run, name: str) -> None:
    dress(axes, f"{name}: by difficulty (Figure 8)", "training step", "Cov(log π, π A) within a prompt")
    drawn = False
    for difficulty, colour in _DIFFICULTIES:
        steps, values = _points(run, f"prompt_cov_{difficulty}")
        if steps.size:
            axes.plot(steps, values, color=colour, linewidth=1.8, label=f"{difficulty} prompts")
            drawn = True
    if not drawn:
        say_empty(axes, "no scores or no prompts in the batch")
        return
    axes.axhline(0, color="black", linewidth=0.8)
    by_step(axes)
    axes.legend(**LEGEND)


def _points(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    values = run.column(PREFIX + key)
    finite = np.isfinite(values)
    return run.steps[finite], values[finite]
