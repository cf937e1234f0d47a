"""Series over the replicates: the mean of runs that are logged at the same steps, with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from verl_cov.law.fit import Array
from verl_cov.law.plots.style import Look
from verl_cov.study.result import Result

Series = Callable[[Result], "tuple[NDArray[np.int64], Array]"]  # steps and values, both [n]


class Mean(NamedTuple):
    """steps, mean, se: [n]; se is 0 where one run has a value."""

    steps: NDArray[np.int64]
    mean: Array
    se: Array


def logged(*keys: str) -> Series:
    """The values of the first key that a run has."""

    def series(result: Result) -> tuple[NDArray[np.int64], Array]:
        for key in keys:
            column = result.run.column(key)
            there = np.isfinite(column)
            if there.any():
                return result.run.steps[there], column[there]
        return np.empty(0, dtype=np.int64), np.empty(0)

    return series


def mean(results: Sequence[Result], series: Series) -> Mean:
    """The mean at each step that at least half of the runs have."""
    at: dict[int, list[float]] = {}
    for result in results:
        for step, value in zip(*series(result), strict=True):
            at.setdefault(int(step), []).append(float(value))
    kept = {step: found for step, found in sorted(at.items()) if 2 * len(found) >= len(results)}
    return Mean(
        np.array(list(kept), dtype=np.int64),
        np.array([np.mean(found) for found in kept.values()]),
        np.array([np.std(found, ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0.0 for found in kept.values()]),
    )


def draw(axes: Axes, groups: Mapping[str, Sequence[Result]], series: Series, known: Mapping[str, Look]) -> bool:
    """A line for each group, its standard error as a band; returns whether there was any point."""
    drawn = False
    for name, results in groups.items():
        steps, middle, se = mean(results, series)
        every = max(1, -(-steps.size // 12))
        axes.plot(steps, middle, linewidth=1.8, markersize=5, markevery=every, **known[name])
        axes.fill_between(steps, middle - se, middle + se, color=known[name]["color"], alpha=0.18, linewidth=0)
        drawn |= bool(steps.size)
    return drawn
