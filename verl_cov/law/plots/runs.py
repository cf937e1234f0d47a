"""Figures of a set of runs: entropy and validation score against step, and the law between the two.

Each run has one colour and marker in all panels. Nothing is smoothed or interpolated: the points are the logged values.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from verl_cov.law.estimate import Estimate, estimate
from verl_cov.law.keys import is_validation
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
    save,
    say_empty,
)
from verl_cov.law.points import law_points
from verl_cov.law.readers import Run
from verl_cov.law.reading import Curve, read

FIT_RUN = "vanilla"  # the run the law is fitted to: the paper's law is about policies without entropy control

_Draw: TypeAlias = Callable[[Axes, Mapping[str, Run]], None]


def fit_law(runs: Mapping[str, Run], name: str = FIT_RUN) -> Estimate:
    """The law of the run called `name`. Raises ValueError with the reason if it cannot be fitted."""
    if name not in runs:
        raise ValueError("there is no such run")
    return estimate(*law_points(runs[name]))


def plot_entropy(runs: Mapping[str, Run], path: str | PathLike[str]) -> Path:
    """Entropy (nats per token) against step."""
    return _single(draw_entropy, runs, path)


def plot_score(runs: Mapping[str, Run], path: str | PathLike[str]) -> Path:
    """Validation score against step."""
    return _single(draw_score, runs, path)


def plot_law(runs: Mapping[str, Run], path: str | PathLike[str], fit_run: str = FIT_RUN) -> Path:
    """Validation score against entropy, which falls from left to right as in the paper, with the law of `fit_run`."""
    return _single(lambda axes, runs: draw_law(axes, runs, fit_run), runs, path)


def plot_demo(runs: Mapping[str, Run], path: str | PathLike[str], fit_run: str = FIT_RUN) -> Path:
    """Entropy, pass@1 and pass@k (without them the score) and the law side by side, for a README: 1800 x 675 pixels, to
    be shown 1200 wide."""
    with rc_context(TEXT):
        figure = Figure(figsize=(12, 4.5), layout=ConstrainedLayoutEngine(wspace=0.06))
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.12))
        draw_entropy(left, runs)
        (draw_passes if has_passes(runs) else draw_score)(middle, runs)
        draw_law(right, runs, fit_run)
        _legends(figure, runs, right)
        return save(figure, path, dpi=150)


def plot_all(runs: Mapping[str, Run], folder: str | PathLike[str], fit_run: str = FIT_RUN) -> list[Path]:
    """Write entropy.png, score.png, pass.png (if a run has pass@k), law.png and demo.png to `folder` (created if
    missing); return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        plot_entropy(runs, folder / "entropy.png"),
        plot_score(runs, folder / "score.png"),
        *([_single(draw_passes, runs, folder / "pass.png")] if has_passes(runs) else []),
        plot_law(runs, folder / "law.png", fit_run),
        plot_demo(runs, folder / "demo.png", fit_run),
    ]


def _single(draw: _Draw, runs: Mapping[str, Run], path: str | PathLike[str]) -> Path:
    with rc_context(TEXT):
        figure = Figure(figsize=(6, 4.2), layout="constrained")
        axes = figure.subplots()
        draw(axes, runs)
        _legends(figure, runs, axes)
        return save(figure, path, dpi=160)


def _legends(figure: Figure, runs: Mapping[str, Run], law: Axes) -> None:
    """What the panels show, outside of them: the runs above, the law below."""
    if runs:
        handles = marks(runs, looks(runs))
        figure.legend(handles, labels(list(runs)), loc="outside upper center", ncols=3, frameon=False)
    if law.get_legend_handles_labels()[0]:
        legend_below(figure, *law.get_legend_handles_labels())


def _series(axes: Axes, curves: Mapping[str, Curve], known: Mapping[str, Look], dense: bool) -> bool:
    """Draw one line for each run; return whether there was any point. dense: too many values to mark them all."""
    for name, (steps, values) in curves.items():
        every = max(1, -(-values.size // 12)) if dense else 1
        axes.plot(steps, values, linewidth=1.8, markersize=5, markevery=every, **known[name])
    return any(curve.values.size for curve in curves.values())


def draw_entropy(axes: Axes, runs: Mapping[str, Run], known: Mapping[str, Look] | None = None) -> None:
    """Panel of the entropy against the step."""
    curves = {name: read(run).entropies for name, run in runs.items()}
    known = known or looks(runs)
    for name, run in runs.items():
        draw_target(axes, run, known[name])
    drawn = _series(axes, curves, known, dense=True)
    dress(axes, "Policy entropy", "training step", "entropy (nats per token)")
    if not drawn:
        say_empty(axes, "no training step yet")
        return
    by_step(axes)
    from_zero(axes)


def draw_score(axes: Axes, runs: Mapping[str, Run], known: Mapping[str, Look] | None = None) -> None:
    """Panel of the score against the step: of the validations, if there are enough."""
    curves = {name: read(run).scores for name, run in runs.items()}
    label = _score_label(runs)
    drawn = _series(axes, curves, known or looks(runs), dense=not label.startswith("validation"))
    dress(axes, label.partition(" (")[0].capitalize(), "training step", label)
    if not drawn:
        say_empty(axes, "no score yet")
        return
    by_step(axes)
    from_zero(axes)


def _score_label(runs: Mapping[str, Run]) -> str:
    """`validation score (mean@4)`: with what the score averages over, if it is the same for all runs."""
    keys = {key for run in runs.values() if (key := read(run).score_key) is not None}
    kinds = {key.rsplit("/", 1)[-1].replace("_", " ") for key in keys}
    if keys and not any(map(is_validation, keys)):
        what = "training score"
    else:
        what = "validation score" if all(map(is_validation, keys)) else "score"
    return f"{what} ({kinds.pop()})" if len(kinds) == 1 else what


def draw_law(axes: Axes, runs: Mapping[str, Run], fit_run: str, known: Mapping[str, Look] | None = None) -> None:
    """Panel of the validation score against the entropy, with the law of `fit_run`."""
    dress(axes, "Score against entropy", "entropy (nats per token), falling", _score_label(runs))
    points = {name: law_points(run) for name, run in runs.items()}
    spans = [entropy for entropy, _ in points.values() if entropy.size]
    if not spans:
        say_empty(axes, "no step with both\nentropy and validation yet")
        return
    known = known or looks(runs)
    for name, (entropy, score) in points.items():
        axes.plot(entropy, score, ls="none", ms=6.5, markeredgecolor="white", markeredgewidth=0.6, **known[name])

    entropies = np.concatenate(spans)
    low, high = float(entropies.min()), float(entropies.max())
    near: list[float] = []
    try:
        fitted = fit_law(runs, fit_run)
    except ValueError as error:
        axes.plot([], [], " ", label=textwrap.fill(f"no fit to {fit_run}: {error}", 60))
    else:
        law, ceiling, colour = fitted.law, fitted.ceiling, known[fit_run]["color"]
        grid = law_grid(low, high)
        ends = f"{ceiling.value:.3f} [{ceiling.low:.3f}, {ceiling.high:.3f}]"
        label = (
            rf"$R = -a\,e^{{H}} + b$  (fit to {labels([fit_run])[0]})" + "\n"
            rf"$a$ = {law.a:.3f}, $b$ = {law.b:.3f}, $R^2$ = {law.r2:.2f}" + "\n"
            f"ceiling at H = 0: {ends}"
        )
        # Solid over the fitted points, dotted beyond them.
        entropy = points[fit_run][0]
        inside = (grid >= entropy.min()) & (grid <= entropy.max())
        axes.plot(grid, law.predict(grid), ":", color="black", linewidth=1.5, zorder=1.5)
        axes.plot(grid[inside], law.predict(grid[inside]), "-", color="black", linewidth=1.5, zorder=1.5, label=label)
        axes.axhspan(ceiling.low, ceiling.high, color=colour, alpha=0.12, linewidth=0, zorder=0.5)
        axes.axhline(ceiling.value, color=colour, linestyle=":", linewidth=1.5, zorder=0.5)
        near += [ceiling.low, ceiling.value, ceiling.high]
    entropy_axis(axes, low, high)
    scores = np.concatenate([score for _, score in points.values()])
    bottom, top = limits(scores, near)
    axes.set_ylim(0 if scores.min() >= 0 else bottom, top)
