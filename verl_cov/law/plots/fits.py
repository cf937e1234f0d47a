"""Figures of runs with their laws: score against entropy with the ceilings, and the curves both come from.

As in the paper (arXiv 2505.22617, Fig. 3) entropy falls from left to right, so that training goes to the right. Runs
whose scores have different units never share an axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from verl_cov.law.display import Fitted, baseline_first, by_unit, unit_label
from verl_cov.law.estimate import Estimate
from verl_cov.law.plots.passes import draw_passes, has_passes
from verl_cov.law.plots.style import (
    TEXT,
    Look,
    by_step,
    draw_target,
    dress,
    entropy_axis,
    from_zero,
    labels,
    law_grid,
    legend_below,
    limits,
    looks,
    marks,
)
from verl_cov.law.points import Curve, Points

MOST_RUNS = 12  # in one panel: more would be a tangle
_MOST_PANELS = 8


def laws(fitted: Fitted) -> Figure:
    """Points, law and ceiling of each run, in one panel for each unit of score and twelve runs."""
    known = looks(run.name for run, _ in fitted)
    parts = groups(baseline_first(fitted), known)
    with rc_context(TEXT):
        figure = Figure(layout="constrained")
        heights = [_height(part) for part in parts[:_MOST_PANELS]]
        figure.set_size_inches(8, sum(heights))
        rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, row in zip(parts, rows, strict=False):
            axes, strip = row.subplots(1, 2, sharey=True, width_ratios=_widths(part))
            draw_laws(axes, strip, part, known)
            _legend(row, part, known)
        left_out = sum(map(len, parts[_MOST_PANELS:]))
        if left_out:
            figure.suptitle(f"{left_out} more runs are not drawn")
        return figure


def training(fitted: Fitted, known: Mapping[str, Look]) -> Figure:
    """Score, pass@k where a log has it, and entropy of at most twelve runs against the step, and score against entropy
    with the laws."""
    runs = [run for run, _ in fitted]
    logs = {run.name: run.run for run in runs}
    more = int(has_passes(logs))
    with rc_context(TEXT):
        figure = Figure(figsize=(14 + 4 * more, _height(fitted)), layout="constrained")
        law, strip = _widths(fitted)
        score, *passing, entropy, axes, ceilings = figure.subplots(
            1, 4 + more, width_ratios=(law,) * (3 + more) + (strip,)
        )
        ceilings.sharey(axes)
        for panel in passing:
            draw_passes(panel, logs, known)
        draw_curves(score, {run.name: run.scores for run in runs}, known)
        dress(score, "Score", "training step", score_label(runs))
        for run in runs:
            draw_target(entropy, run.run, known[run.name])
        draw_curves(entropy, {run.name: run.entropies for run in runs}, known)
        dress(entropy, "Entropy", "training step", "entropy (nats per token)")
        draw_laws(axes, ceilings, fitted, known)
        _legend(figure, fitted, known)
        return figure


def groups(fitted: Fitted, known: Mapping[str, Look]) -> list[Fitted]:
    """The runs that can share a panel: of one unit of score, at most `MOST_RUNS`. Of more, no two have one colour."""
    panels: list[list[tuple[Points, Estimate]]] = []
    for same in by_unit(fitted).values():
        if len(same) <= MOST_RUNS:
            panels.append(list(same))
            continue
        of_unit: list[list[tuple[Points, Estimate]]] = []
        for pair in same:
            colour = known[pair[0].name]["color"]
            free = (panel for panel in of_unit if all(known[run.name]["color"] != colour for run, _ in panel))
            panel = next(free, None)
            if panel is None:
                of_unit.append(panel := [])
            panel.append(pair)
        panels += of_unit
    return list(panels)


def draw_curves(axes: Axes, curves: Mapping[str, Curve], known: Mapping[str, Look]) -> None:
    """One line for each run, with a dozen marks at most."""
    for name, (steps, values) in curves.items():
        every = max(1, -(-steps.size // 12))
        axes.plot(steps, values, label=name, linewidth=1.5, markersize=5, markevery=every, **known[name])
    by_step(axes)
    from_zero(axes)


def draw_laws(axes: Axes, strip: Axes, fitted: Fitted, known: Mapping[str, Look]) -> None:
    """Points and laws of the runs and, in `strip` beside them (same y axis), their ceilings with intervals as bands."""
    for run, law in fitted:
        look = known[run.name]
        axes.plot(run.entropy, run.score, label=run.name, ls="none", ms=6, mec="white", mew=0.5, **look)
        grid = law_grid(float(run.entropy.min()), float(run.entropy.max()))
        axes.plot(grid, law.law.predict(grid), color=look["color"], linewidth=1.5)
    dress(axes, "Score against entropy", "entropy (nats per token), falling", score_label([run for run, _ in fitted]))
    entropies = np.concatenate([run.entropy for run, _ in fitted])
    entropy_axis(axes, float(entropies.min()), float(entropies.max()))
    for at, (run, law) in enumerate(fitted):
        colour, ceiling = known[run.name]["color"], law.ceiling
        strip.fill_between([at - 0.4, at + 0.4], ceiling.low, ceiling.high, color=colour, alpha=0.3, linewidth=0)
        strip.plot([at - 0.4, at + 0.4], [ceiling.value, ceiling.value], color=colour, linewidth=2)
    dress(strip, "H = 0", "ceilings", "")
    strip.set_xlim(-0.6, len(fitted) - 0.4)
    strip.set_xticks([])
    strip.tick_params(labelleft=False)
    scores = np.concatenate([run.score for run, _ in fitted])
    axes.set_ylim(*limits(scores, [(law.ceiling.low, law.ceiling.value, law.ceiling.high) for _, law in fitted]))


def score_label(runs: Sequence[Points]) -> str:
    """`score, from 0 to 1` and, if all runs have one, the key that it is logged under."""
    keys = {run.score_key for run in runs}
    return f"score, {unit_label(runs[0])}" + (f"\n{labels(list(keys), 44)[0]}" if len(keys) == 1 else "")


def _height(fitted: Fitted) -> float:
    return 4.3 + 0.2 * len(fitted)  # the legend takes a line for each run


def _widths(fitted: Fitted) -> tuple[float, float]:
    return 1.0, 0.14 + 0.025 * len(fitted)


def _legend(figure: Figure | SubFigure, fitted: Fitted, known: Mapping[str, Look]) -> None:
    names = labels([run.name for run, _ in fitted])
    texts = [
        f"{name}: a {law.a.value:.3g}, ceiling {law.ceiling.value:.3g} [{law.ceiling.low:.3g}, {law.ceiling.high:.3g}]"
        for name, (_, law) in zip(names, fitted, strict=True)
    ]
    title = "R = -a exp(H) + b; ceilings at H = 0, bands: 95 % intervals"
    legend_below(figure, marks((run.name for run, _ in fitted), known), texts, title)
