"""Figures of a set of runs: entropy and validation score against step, and the law between the two.

One colour and marker a run, the same in every panel (Okabe and Ito's palette: safe for colour-blind readers, and
the marker says it again in grey). Nothing is smoothed or interpolated: the points are the logged values.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from verl_cov.law.fit import LawFit, fit
from verl_cov.law.points import pair
from verl_cov.law.readers import Run, pick_score

ENTROPY_KEY = "actor/entropy"  # nats per token
FIT_RUN = "vanilla"  # the run the law is fitted to: the paper's law is about policies without entropy control

_DEMO_RUNS = ("vanilla", "clip_cov", "kl_cov")
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_Draw = Callable[[Axes, Mapping[str, Run]], None]
_GREY = "#5a5a5a"
TEXT: Any = {
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 9.5,
}


def score_key(run: Run) -> str | None:
    """The key of the run's validation score, or None before any validation (`pick_score`)."""
    return pick_score(run.keys())


def law_points(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(entropy, score), each [m]: of each policy that was validated and then measured. Empty before any validation.

    :mod:`verl_cov.law.points` says what belongs together. Here it is always verl's own entropy, as in the other panels.
    """
    key = score_key(run)
    if key is None:
        return np.empty(0), np.empty(0)
    _, entropy, score = pair(run.steps, run.column(ENTROPY_KEY), run.column(key))
    return entropy, score


def fit_law(runs: Mapping[str, Run], name: str = FIT_RUN) -> LawFit:
    """The law fitted to the run called `name`. Raises ValueError, with the reason, if it cannot be."""
    if name not in runs:
        raise ValueError("there is no such run")
    return fit(*law_points(runs[name]))


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
    """The three figures side by side, for a README: 1800 x 675 pixels, made to be read at 1200."""
    with rc_context(TEXT):
        figure = Figure(figsize=(12, 4.5), layout=ConstrainedLayoutEngine(wspace=0.06))
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.12))
        draw_entropy(left, runs)
        draw_score(middle, runs)
        draw_law(right, runs, fit_run)
        handles, labels = left.get_legend_handles_labels()
        if handles:  # one legend of the runs for all three panels; the law keeps its own
            figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=11)
        for axes in (left, middle, right):
            law = [pair for pair in zip(*axes.get_legend_handles_labels(), strict=True) if pair[1] not in runs]
            if law:
                axes.legend(*zip(*law, strict=True), loc="lower right", edgecolor="#d0d0d0")
            elif axes.get_legend() is not None:
                axes.get_legend().remove()
        return save(figure, path, dpi=150)


def plot_all(runs: Mapping[str, Run], folder: str | PathLike[str], fit_run: str = FIT_RUN) -> list[Path]:
    """Write entropy.png, score.png, law.png and demo.png to `folder` (made if missing); returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        plot_entropy(runs, folder / "entropy.png"),
        plot_score(runs, folder / "score.png"),
        plot_law(runs, folder / "law.png", fit_run),
        plot_demo(runs, folder / "demo.png", fit_run),
    ]


def _single(draw: _Draw, runs: Mapping[str, Run], path: str | PathLike[str]) -> Path:
    with rc_context(TEXT):
        figure = Figure(figsize=(6, 4.2), layout="constrained")
        draw(figure.subplots(), runs)
        return save(figure, path, dpi=160)


def save(figure: Figure, path: str | PathLike[str], dpi: int) -> Path:
    """Write ``figure`` as PNG."""
    FigureCanvasAgg(figure)  # and not pyplot: no global state, and a user's interactive backend stays as it is
    figure.savefig(path, dpi=dpi, facecolor="white")
    return Path(path)


def look(runs: Mapping[str, Run], name: str) -> dict[str, Any]:
    """The three runs of the demo keep their looks whether the others are there or not; other names share the rest."""
    order = [*_DEMO_RUNS, *(other for other in runs if other not in _DEMO_RUNS)]
    index = order.index(name)
    return {"color": PALETTE[index % len(PALETTE)], "marker": _MARKERS[index % len(_MARKERS)]}


def dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Title, labels and the quiet grid that all panels share."""
    axes.set_title(title, loc="left", fontweight="bold", pad=8)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(color=_GREY)
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def say_empty(axes: Axes, text: str) -> None:
    """A panel without data says why."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_GREY, fontsize=10.5)
    axes.set_xticks([])
    axes.set_yticks([])


def _series(axes: Axes, runs: Mapping[str, Run], key_of: Callable[[Run], str | None], dense: bool) -> bool:
    """Draw one line a run; returns whether any point was there. dense: too many values to mark them all."""
    drawn = False
    for name, run in runs.items():
        key = key_of(run)
        values = run.column(key) if key is not None else np.full(run.steps.shape, np.nan)
        finite = np.isfinite(values)
        style = look(runs, name)
        every = max(1, -(-int(finite.sum()) // 12)) if dense else 1
        # An empty line still gets its entry in the legend: a run without values is said to be there.
        axes.plot(run.steps[finite], values[finite], label=name, linewidth=1.8, markersize=5, markevery=every, **style)
        drawn |= bool(finite.any())
    return drawn


def by_step(axes: Axes) -> None:
    """Whole steps on the x axis."""
    low, high = axes.dataLim.intervalx
    if low == high:  # one step: matplotlib would draw an axis from 0.95 to 1.05
        axes.set_xlim(low - 1, high + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _from_zero(axes: Axes) -> None:
    """Start the axis at zero: a cut one exaggerates. Scores below zero keep matplotlib's."""
    low, high = axes.dataLim.intervaly
    if low >= 0:
        axes.set_ylim(0, 1.06 * high if high > 0 else 1)


def draw_entropy(axes: Axes, runs: Mapping[str, Run]) -> None:
    """One panel: entropy against step."""
    drawn = _series(axes, runs, lambda run: ENTROPY_KEY, dense=True)
    dress(axes, "Policy entropy", "training step", "entropy (nats per token)")
    if not drawn:
        say_empty(axes, "no training step yet")
        return
    by_step(axes)
    _from_zero(axes)
    axes.legend(frameon=False)


def draw_score(axes: Axes, runs: Mapping[str, Run]) -> None:
    """One panel: validation score against step."""
    drawn = _series(axes, runs, score_key, dense=False)
    dress(axes, "Validation score", "training step", _score_label(runs))
    if not drawn:
        say_empty(axes, "no validation yet")
        return
    by_step(axes)
    _from_zero(axes)
    axes.legend(frameon=False)


def _score_label(runs: Mapping[str, Run]) -> str:
    """`validation score (mean@4)`: what the score averages over, if the runs agree on it."""
    kinds = {key.rsplit("/", 1)[-1].replace("_", " ") for key in map(score_key, runs.values()) if key is not None}
    return f"validation score ({kinds.pop()})" if len(kinds) == 1 else "validation score"


def draw_law(axes: Axes, runs: Mapping[str, Run], fit_run: str) -> None:
    """One panel: validation score against entropy, with the law of ``fit_run``."""
    dress(axes, "Score against entropy", "entropy (nats per token), falling", _score_label(runs))
    points = {name: law_points(run) for name, run in runs.items()}
    spans = [entropy for entropy, _ in points.values() if entropy.size]
    if not spans:
        say_empty(axes, "no step with both\nentropy and validation yet")
        return
    for name, (entropy, score) in points.items():
        edge: dict[str, Any] = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(entropy, score, label=name, linestyle="none", **edge, **look(runs, name))

    entropies = np.concatenate(spans)
    low, high = float(entropies.min()), float(entropies.max())
    log = low > 0 and high / low > 5  # below that a linear axis has the better ticks
    try:
        law = fit_law(runs, fit_run)
    except ValueError as error:
        axes.plot([], [], " ", label=textwrap.fill(f"no fit to {fit_run}: {error}", 36))
    else:
        grid = np.geomspace(low, high, 400) if log else np.linspace(low, high, 400)
        label = (
            rf"$R = -a\,e^{{H}} + b$  (fit to {fit_run})" + "\n"
            rf"$a$ = {law.a:.3f}, $b$ = {law.b:.3f}, $R^2$ = {law.r2:.2f}" + "\n"
            f"ceiling at H = 0: {law.ceiling:.3f}"
        )
        line: dict[str, Any] = {"color": "black", "linewidth": 1.5, "zorder": 1.5}
        fitted = points[fit_run][0]
        inside = (grid >= fitted.min()) & (grid <= fitted.max())
        axes.plot(grid, law.predict(grid), linestyle=":", **line)  # dotted where the law leaves its points
        axes.plot(grid[inside], law.predict(grid[inside]), label=label, **line)
    entropy_axis(axes, low, high, log)
    _from_zero(axes)
    axes.legend(loc="lower right", edgecolor="#d0d0d0")  # the law rises from left to right: that corner is free


def entropy_axis(axes: Axes, low: float, high: float, log: bool) -> None:
    """Entropy from high on the left to low on the right, as in the paper: training goes to the right."""
    if log:
        axes.set_xscale("log")
        axes.set_xlim(high * 1.1, low / 1.1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ticks = [m * 10.0**e for e in range(-6, 3) for m in (1, 2, 5) if low / 1.1 <= m * 10.0**e <= high * 1.1]
        axes.set_xticks(ticks)
        axes.minorticks_off()
    else:
        margin = 0.05 * (high - low) or max(0.05 * high, 0.05)
        axes.set_xlim(high + margin, low - margin)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
