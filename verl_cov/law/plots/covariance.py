"""Why entropy falls in one run: four panels of what verl-cov logs under actor/cov/."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from verl_cov.core.metric_table import LADDER, PREFIX
from verl_cov.core.update_kinds import UPDATE_KINDS
from verl_cov.law.plots.style import TEXT, by_step, dress, legend_under, say_empty
from verl_cov.law.readers import Run

# What pulls entropy down in warm colours, what lifts it in cold ones (Okabe and Ito).
_KIND_COLOURS = ("#D55E00", "#E69F00", "#56B4E9", "#0072B2")
_DIFFICULTIES = (("easy", "#009E73"), ("medium", "#E69F00"), ("hard", "#D55E00"))
# Of few tokens several shares have the same largest ones: a line on top of another must leave some of it to see.
_RUNGS = (
    ("#882255", "-", 3.5),
    ("#D55E00", "--", 2.5),
    ("#E69F00", "-.", 2.0),
    ("#009E73", ":", 2.0),
    ("#56B4E9", "-", 1.2),
)


def has_metrics(run: Run) -> bool:
    """Whether the log has something for one of the panels."""
    drawn = ("mean", "top_", "entropy_change", "prompt_cov_", *(f"{kind}_cov_frac" for kind in UPDATE_KINDS))
    return any(key.startswith(tuple(PREFIX + what for what in drawn)) for key in run.keys())  # noqa: SIM118


def covariance(run: Run) -> Figure:
    """The four panels side by side."""
    with rc_context(TEXT):
        figure = Figure(figsize=(14, 4.2), layout="constrained")
        draw_covariance(figure.subplots(1, 4), run)
        return figure


def draw_covariance(panels: Sequence[Axes], run: Run) -> None:
    """Draw into four panels."""
    for axes, draw in zip(panels, (_ladder, _kinds, _changes, _prompts), strict=True):
        draw(axes, run)


def _ladder(axes: Axes, run: Run) -> None:
    dress(axes, "Covariance", "training step", "mean of the largest (nats x A)")
    drawn = False
    for share, (colour, line, width) in zip(LADDER, _RUNGS, strict=True):
        steps, values = _points(run, f"top_{share:g}")
        if steps.size:
            axes.plot(steps, values, color=colour, linestyle=line, linewidth=width, label=f"top {100 * share:g} %")
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
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axhline(0, color="black", linewidth=0.8)
    by_step(axes)
    legend_under(axes, 3)


def _kinds(axes: Axes, run: Run) -> None:
    dress(axes, "Where it comes from", "training step", "share of |covariance|")
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
    legend_under(axes)


def _changes(axes: Axes, run: Run) -> None:
    dress(axes, "Change of entropy", "training step", "nats per token")
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
    legend_under(axes, 1)


def _prompts(axes: Axes, run: Run) -> None:
    dress(axes, "By difficulty (Figure 8)", "training step", "Cov(log π, π A) within a prompt")
    drawn = False
    for difficulty, colour in _DIFFICULTIES:
        steps, values = _points(run, f"prompt_cov_{difficulty}")
        if steps.size:
            axes.plot(steps, values, color=colour, linewidth=1.8, label=difficulty)
            drawn = True
    if not drawn:
        say_empty(axes, "no scores or no prompts in the batch")
        return
    axes.axhline(0, color="black", linewidth=0.8)
    by_step(axes)
    legend_under(axes, 3)


def _points(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    values = run.column(PREFIX + key)
    finite = np.isfinite(values)
    return run.steps[finite], values[finite]
