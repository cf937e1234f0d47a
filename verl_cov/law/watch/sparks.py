"""Sparklines: a row of bars for a series of numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: ArrayLike, width: int, low: float | None = None, high: float | None = None) -> str:
    """``values`` as at most ``width`` bars.

    low, high: values of the lowest and highest bar, by default those of the data. If there are more values than bars,
    each bar is a mean; a bar without a finite value is a space.
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size or width < 1:
        return ""
    return _bars([_mean(cell) for cell in np.array_split(array, min(width, array.size))], low, high)


def sparkline_by_step(steps: ArrayLike, values: ArrayLike, width: int, last: int, low: float, high: float) -> str:
    """The same with the step as the axis, from 0 to `last`: several runs, one below the other, can be compared.

    steps, values: [n], ascending by step and finite. A bar without a value of its own shows the one before.
    """
    at, array = np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)
    if not array.size or width < 1:
        return ""
    bars = min(width, last + 1)
    cell = np.minimum(at * bars // (last + 1), bars - 1)
    means = [_mean(array[cell == number]) for number in range(int(cell[-1]) + 1)]
    for number in range(int(cell[0]) + 1, len(means)):
        means[number] = means[number - 1] if np.isnan(means[number]) else means[number]
    return _bars(means, low, high)


def _mean(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _bars(means: list[float], low: float | None, high: float | None) -> str:
    finite = [mean for mean in means if np.isfinite(mean)]
    if not finite:
        return " " * len(means)
    low = min(finite) if low is None else low
    high = max(finite) if high is None else high
    heights = [np.clip((mean - low) / ((high - low) or 1.0), 0, 1) * (len(_BARS) - 1) for mean in means]
    return "".join(_BARS[round(height)] if np.isfinite(height) else " " for height in heights)
