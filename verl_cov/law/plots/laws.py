"""Figures of what is derived from laws: forecasts, comparisons and model sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from verl_cov.law.compare import Comparison
from verl_cov.law.distributions import p_text
from verl_cov.law.fit import Interval
from verl_cov.law.forecast import Forecast
from verl_cov.law.plots.style import (
    PALETTE,
    TEXT,
    Look,
    by_step,
    dress,
    entropy_axis,
    labels,
    law_grid,
    legend_below,
    limits,
    looks,
)
from verl_cov.law.points import Points
from verl_cov.law.scale import Scaling, Trend

_MOST_INTERVALS = 36


def forecast(points: Points, prediction: Forecast, look: Look | None = None) -> Figure:
    """What the first points of a run predicted of the rest, against entropy and against step. look: of the run."""
    look = look or looks([points.name])[points.name]
    colour = look["color"]
    with rc_context(TEXT):
        figure = Figure(figsize=(11, 4.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        (name,), level = labels([points.name]), f"{100 * prediction.estimate.level:g} % interval of a point"
        figure.suptitle(name, x=0.01, ha="left", fontweight="bold")
        title = f"fitted to the first {prediction.n} of {points.steps.size} points"
        dress(left, title, "entropy (nats per token), falling", "score")
        order = np.argsort(prediction.entropy)
        low, high = float(points.entropy.min()), float(points.entropy.max())
        grid = law_grid(low, high)
        left.plot(grid, prediction.estimate.law.predict(grid), color="black", linewidth=1.5)
        for axes, x, rest in ((left, points.entropy, prediction.entropy), (right, points.steps, prediction.step)):
            at = order if axes is left else np.arange(rest.size)
            axes.fill_between(
                rest[at],
                prediction.low[at],
                prediction.high[at],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
            axes.plot(x[: prediction.n], points.score[: prediction.n], ls="none", ms=7, mfc="white", mew=1.8, **look)
            axes.plot(rest, prediction.score, ls="none", ms=5, **look)
        right.plot(prediction.step, prediction.predicted, color="black", linewidth=1.5)
        dress(
            right,
            f"error at the end {prediction.final_error:+.3g}, RMSE {prediction.rmse_rest:.3g}",
            "training step",
            "score",
        )
        by_step(right)
        entropy_axis(left, low, high)
        for axes in (left, right):
            # An early forecast's interval may be wider than any score: scale the axis to the points.
            low, high = points.score.min(), points.score.max()
            axes.set_ylim(low - 0.6 * (high - low), high + 0.6 * (high - low))
        law, fitted, later = left.get_lines()
        band = left.collections[0]
        texts = ("law of the first points", level, "fitted", "came later")
        legend_below(figure, (law, band, fitted, later), texts)
        return figure


def comparison(result: Comparison) -> Figure:
    """Intervals of a, b and the ceiling of each run."""
    names = result.names[:_MOST_INTERVALS]
    known = looks(names)
    with rc_context(TEXT):
        figure = Figure(figsize=(11, 1.6 + 0.35 * len(names)), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes, key, title in zip(panels, ("a", "b", "ceiling"), ("a", "b", "ceiling b - a"), strict=True):
            intervals: Sequence[Interval] = getattr(result, key)[: len(names)]
            dress(axes, title, "units of the score", "")
            for at, (name, interval) in enumerate(zip(names, intervals, strict=True)):
                axes.plot([interval.low, interval.high], [at, at], color=known[name]["color"], linewidth=2)
                axes.plot(interval.value, at, **known[name])
            usual = float(np.median([i.high - i.low for i in intervals]))
            axes.set_xlim(*limits([i.value for i in intervals], [(i.low, i.high) for i in intervals], usual))
            axes.set_yticks(range(len(names)), labels(names, 32))
            axes.set_ylim(len(names) - 0.5, -0.5)
        rest = len(result.names) - len(names)
        more = f" ({rest} more runs are not drawn)" if rest else ""
        figure.suptitle(f"The same law? Wald test {p_text(result.wald_p)}{more}")
        return figure


def sizes(scaling: Scaling, a: Sequence[float], b: Sequence[float], target: float | None = None) -> Figure:
    """a, b and the ceiling against model size, with the prediction for `target`. a, b: in the order of `scaling`."""
    with rc_context(TEXT):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        marks: list[Line2D] = []
        values = {"a": np.asarray(a), "b": np.asarray(b), "ceiling": np.asarray(b) - np.asarray(a)}
        for axes, (key, y) in zip(figure.subplots(1, 3), values.items(), strict=True):
            trend: Trend = getattr(scaling, key)
            dress(axes, key if key != "ceiling" else "ceiling b - a", "parameters", "units of the score")
            axes.set_xscale("log")
            ends = [*scaling.parameters, *([target] if target else [])]
            grid = np.geomspace(min(ends), max(ends), 100)
            predictions = [trend.predict(float(size)) for size in grid]
            axes.fill_between(
                grid,
                [p.low for p in predictions],
                [p.high for p in predictions],
                color=PALETTE[0],
                alpha=0.15,
                linewidth=0,
            )
            axes.plot(grid, [p.value for p in predictions], color=PALETTE[0])
            axes.plot(scaling.parameters, y, "o", color="black")
            if target:
                marks = axes.plot(target, trend.predict(target).value, "s", color=PALETTE[1])
            low, high = min(y.min(), predictions[-1].value), max(y.max(), predictions[-1].value)
            axes.set_ylim(low - 0.5 * (high - low), high + 0.5 * (high - low))
        if target:
            legend_below(figure, marks, [f"predicted for {target:g}"])
        return figure
