"""Figures of the law with its uncertainty: fits, forecasts, comparisons and model sizes.

As in the paper (arXiv 2505.22617, Fig. 3) entropy falls from left to right, so that training goes to the right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from verl_cov.law.compare import Comparison
from verl_cov.law.distributions import p_text
from verl_cov.law.estimate import Estimate
from verl_cov.law.fit import Array, Interval
from verl_cov.law.forecast import Forecast
from verl_cov.law.plots.style import LEGEND, PALETTE, TEXT, by_step, dress, entropy_axis, literal
from verl_cov.law.points import Points
from verl_cov.law.scale import Scaling, Trend

_MOST_RUNS = 12  # more would be a tangle; the tables have them all


def fits(fitted: Sequence[tuple[Points, Estimate]]) -> Figure:
    """Points, law and ceiling of each run."""
    with rc_context(TEXT):
        figure = Figure(figsize=(7.5, 4.8), layout="constrained")
        axes = figure.subplots()
        dress(axes, "Score against entropy", "entropy (nats per token), falling", "score")
        shown = fitted[:_MOST_RUNS]
        for (points, estimate), colour in zip(shown, _colours(), strict=False):
            label = f"{literal(points.name)}: a {estimate.a.value:.3g}, b {estimate.b.value:.3g}"
            axes.plot(points.entropy, points.score, "o", color=colour, markeredgecolor="white", markersize=6)
            grid = _grid(points.entropy)
            axes.plot(grid, estimate.law.predict(grid), color=colour, linewidth=1.6, label=label)
            axes.axhline(estimate.ceiling.value, color=colour, linestyle=":", linewidth=1.2)
        _entropies(axes, [points.entropy for points, _ in shown])
        axes.legend(title=_rest(len(fitted), "dotted: ceilings, H = 0"), **LEGEND)
        return figure


def forecast(points: Points, prediction: Forecast) -> Figure:
    """What the first points of a run predicted of the rest, against entropy and against step."""
    with rc_context(TEXT):
        figure = Figure(figsize=(11, 4.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        name, level = literal(points.name), f"{100 * prediction.estimate.level:g} % interval of a point"
        dress(
            left,
            f"{name}: fitted to the first {prediction.n} of {points.steps.size}",
            "entropy (nats per token), falling",
            "score",
        )
        order = np.argsort(prediction.entropy)
        grid = _grid(points.entropy)
        left.plot(
            grid, prediction.estimate.law.predict(grid), color="black", linewidth=1.5, label="law of the first points"
        )
        for axes, x, rest in ((left, points.entropy, prediction.entropy), (right, points.steps, prediction.step)):
            at = order if axes is left else np.arange(rest.size)
            axes.fill_between(
                rest[at],
                prediction.low[at],
                prediction.high[at],
                color=PALETTE[0],
                alpha=0.15,
                linewidth=0,
                label=level,
            )
            axes.plot(
                x[: prediction.n], points.score[: prediction.n], "o", color=PALETTE[1], markersize=6, label="fitted"
            )
            axes.plot(rest, prediction.score, "o", color=PALETTE[0], markersize=5, label="came later")
        right.plot(
            prediction.step, prediction.predicted, color="black", linewidth=1.5, label="predicted from its entropy"
        )
        dress(
            right,
            f"error at the end {prediction.final_error:+.3g}, RMSE {prediction.rmse_rest:.3g}",
            "training step",
            "score",
        )
        by_step(right)
        _entropies(left, [points.entropy])
        for axes in (left, right):
            # An early forecast's interval may be wider than any score: scale the axis to the points.
            low, high = points.score.min(), points.score.max()
            axes.set_ylim(low - 0.6 * (high - low), high + 0.6 * (high - low))
            axes.legend(loc="lower right", **LEGEND)
        return figure


def comparison(result: Comparison) -> Figure:
    """Intervals of a, b and the ceiling of each run."""
    names = result.names[: 3 * _MOST_RUNS]
    with rc_context(TEXT):
        figure = Figure(figsize=(11, 1.6 + 0.35 * len(names)), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes, key, title in zip(panels, ("a", "b", "ceiling"), ("a", "b", "ceiling b - a"), strict=True):
            intervals: Sequence[Interval] = getattr(result, key)[: len(names)]
            dress(axes, title, "units of the score", "")
            for at, (interval, colour) in enumerate(zip(intervals, _colours(len(names)), strict=True)):
                axes.plot([interval.low, interval.high], [at, at], color=colour, linewidth=2)
                axes.plot(interval.value, at, "o", color=colour)
            axes.set_yticks(range(len(names)), [literal(name) for name in names])
            axes.set_ylim(len(names) - 0.5, -0.5)
        figure.suptitle(
            f"The same law? Wald test {p_text(result.wald_p)}{_rest(len(result.names), '', 3 * _MOST_RUNS)}"
        )
        return figure


def sizes(scaling: Scaling, a: Sequence[float], b: Sequence[float], target: float | None = None) -> Figure:
    """a, b and the ceiling against model size, with the prediction for `target`. a, b: in the order of `scaling`."""
    with rc_context(TEXT):
        figure = Figure(figsize=(11, 4), layout="constrained")
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
                axes.plot(target, trend.predict(target).value, "s", color=PALETTE[1], label=f"predicted for {target:g}")
                axes.legend(frameon=False)
            low, high = min(y.min(), predictions[-1].value), max(y.max(), predictions[-1].value)
            axes.set_ylim(low - 0.5 * (high - low), high + 0.5 * (high - low))
        return figure


def _grid(entropy: Array) -> Array:
    low, high = float(entropy.min()), float(entropy.max())
    return np.geomspace(low, high, 200) if low > 0 else np.linspace(low, high, 200)


def _entropies(axes: Axes, entropies: Sequence[Array]) -> None:
    low, high = (float(end(np.concatenate(entropies))) for end in (np.min, np.max))
    entropy_axis(axes, low, high)


def _colours(count: int = _MOST_RUNS) -> list[str]:
    return [PALETTE[at % len(PALETTE)] for at in range(count)]


def _rest(runs: int, otherwise: str, shown: int = _MOST_RUNS) -> str:
    return otherwise if runs <= shown else f" ({runs - shown} more runs are not drawn)"
