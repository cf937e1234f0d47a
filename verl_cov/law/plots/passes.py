"""The panel of pass@1 and pass@k: what a policy does, and what it can still find."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes

from verl_cov.law.passes import BEST, together
from verl_cov.law.plots.style import Look, by_step, dress, from_zero, looks, say_empty
from verl_cov.law.readers import Run


def draw_passes(axes: Axes, runs: Mapping[str, Run], known: Mapping[str, Look] | None = None) -> None:
    """Draw k = 1 and the largest k that all these runs have, and the greedy accuracy: a line style for each, and each
    run in its colour."""
    found, known = together(runs), known or looks(runs)
    if not found:
        dress(axes, "pass@k", "training step", "")
        say_empty(axes, "no pass@k in these logs")
        return
    some = next(iter(found.values()))
    most = max(set.intersection(*(set(its.curves) for its in found.values())), default=1)
    drawn = []
    for k, word, line in ((1, "solid", "-"), (most, "dashed", "--"))[: 1 + (most > 1)]:
        curves = {name: its.curves[k] for name, its in found.items() if k in its.curves}
        for name, curve in curves.items():
            axes.plot(*curve, linestyle=line, linewidth=1.8, markersize=4.5, **known[name])
        drawn += [f"{some.name(k)} {word}"] * bool(curves)
    greedy = {name: its.greedy for name, its in found.items() if its.greedy.values.size}
    for name, curve in greedy.items():
        axes.plot(*curve, linestyle=":", linewidth=1.5, color=known[name]["color"])
    label = ", ".join(drawn) + ",\ngreedy dotted" * bool(greedy)
    title = f"{some.kind}@k" + (" (verl's bootstrap)" if some.kind == BEST else "")
    dress(axes, title, "training step", label)
    by_step(axes)
    from_zero(axes)


def has_passes(runs: Mapping[str, Run]) -> bool:
    """Whether there is anything to draw."""
    return bool(together(runs))
