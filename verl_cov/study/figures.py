"""The figures of a study, as the paper draws them, from the results alone.

Lines are means over the replicates and bands their standard errors; points are logged values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from verl_cov.law import NoPoints, fit, forecast, points
from verl_cov.law.plots.style import (
    PALETTE,
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
    marks,
    picture,
    say_empty,
)
from verl_cov.law.points import ENTROPY_KEY, Points
from verl_cov.law.readers import AVERAGE_KEY
from verl_cov.study import curves
from verl_cov.study.protocol import Protocol
from verl_cov.study.result import Result
from verl_cov.study.shown import Figure
from verl_cov.study.statistics import COV, entropy_of, of_each, of_whole, values
from verl_cov.study.verdicts import interval

Groups = Mapping[str, Sequence[Result]]  # level -> its results
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")

ENTROPY = curves.logged(COV + "entropy", ENTROPY_KEY)
SCORE = curves.logged(AVERAGE_KEY)
ENTROPY_LABEL = "entropy (nats per token)"


def draw(protocol: Protocol, figure: Figure, results: Mapping[str, Result]) -> bytes | None:
    """Returns one figure as a PNG, None if none of its runs is there."""
    by_level = protocol.by_level(figure.by, figure.runs, results)
    groups = {level: found for level, found in by_level.items() if found}
    if not groups:
        return None
    # A level keeps its look when others have no results yet; beyond the colours the markers move on.
    known: dict[str, Look] = {
        level: {"color": PALETTE[at % len(PALETTE)], "marker": _MARKERS[(at + at // len(PALETTE)) % len(_MARKERS)]}
        for at, level in enumerate(by_level)
    }
    with rc_context(TEXT):
        return picture(KINDS[figure.kind](groups, known), dpi=110)


def _panels(count: int, groups: Groups, known: Mapping[str, Look]) -> tuple[Canvas, list[Axes]]:
    canvas = Canvas(figsize=(4.3 * count, 4.4), layout="constrained")
    panels = list(np.atleast_1d(canvas.subplots(1, count)))
    counted = [f"{level} ({len(found)})" for level, found in groups.items()]
    legend_below(canvas, marks(groups, known), labels(counted))
    return canvas, panels


def _curves(groups: Groups, known: Mapping[str, Look]) -> Canvas:
    """Entropy, pass@1 and pass@k for the largest k of all runs against the step (Figures 1, 11 and 12)."""
    most = _most(groups)
    canvas, panels = _panels(3, groups, known)
    for axes, title, series, label in (
        (panels[0], "Policy entropy", ENTROPY, ENTROPY_LABEL),
        (panels[1], "pass@1", SCORE, "pass@1"),
        (panels[2], f"pass@{most}", curves.logged(f"val-cov/pass@{most}"), f"pass@{most}"),
    ):
        drawn = curves.draw(axes, groups, series, known)
        dress(axes, title, "training step", label)
        if not drawn:
            say_empty(axes, "not measured")
            continue
        by_step(axes)
        from_zero(axes)
    return canvas


def _ends(groups: Groups, known: Mapping[str, Look]) -> Canvas:
    """Entropy, pass@1 and pass@k at the end, a row a level: each run, the mean and its standard error; a line at the
    first level's mean."""
    most = _most(groups)
    canvas = Canvas(figsize=(12.4, 1.3 + 0.3 * len(groups)), layout="constrained")
    panels = canvas.subplots(1, 3, sharey=True)
    for axes, title, statistic in (
        (panels[0], "Policy entropy at the end, nats", "entropy_end"),
        (panels[1], "pass@1 at the end", "pass@1"),
        (panels[2], f"pass@{most} at the end", f"pass@{most}"),
    ):
        for row, found in enumerate(groups.values()):
            numbers = of_each(statistic, found)
            if not numbers:
                continue
            mean, error, *_ = interval(numbers)
            color = "#000000" if row == 0 else PALETTE[0]
            axes.plot(numbers, [row] * len(numbers), ".", color=color, alpha=0.35)
            axes.errorbar(mean, row, xerr=np.nan_to_num(error), fmt="o", color=color, capsize=3, markersize=5)
            if row == 0:
                axes.axvline(mean, color=color, linewidth=0.8, linestyle=":")
        dress(axes, title, "", "")
        axes.set_xlim(left=0)
    panels[0].set_yticks(range(len(groups)), labels([f"{level} ({len(found)})" for level, found in groups.items()]))
    panels[0].invert_yaxis()
    return canvas


def _most(groups: Groups) -> int:
    """The largest k of pass@k that every run has."""
    every = [result for found in groups.values() for result in found]
    return next((k for k in (64, 16, 4) if all(result.run.values(f"val-cov/pass@{k}").size for result in every)), 64)


def _consumption(groups: Groups, known: Mapping[str, Look]) -> Canvas:
    """Shares of the entropy consumed and of the gain realised against the share of the run (Figure 2)."""
    canvas, panels = _panels(2, groups, known)
    shares = np.linspace(0, 1, 25)
    for axes, title, series in (
        (panels[0], "Entropy consumed", entropy_of),
        (panels[1], "Gain in pass@1", lambda result: values(result, AVERAGE_KEY)),
    ):
        for level, found in groups.items():
            usable = [one for one in map(series, found) if np.ptp(one) > 0]
            if usable:
                middle = np.mean([[of_whole(one, share) for share in shares] for one in usable], axis=0)
                axes.plot(shares, middle, linewidth=1.8, markersize=5, markevery=4, **known[level])
        dress(axes, title, "share of the run", "share of the whole")
        axes.axhline(1, color="#5a5a5a", linewidth=0.8, linestyle=":")
    return canvas


def _joined(result: Result) -> Points | None:
    try:
        return points(result.run, result.name)
    except NoPoints:
        return None


def _law(groups: Groups, known: Mapping[str, Look]) -> Canvas:
    """Scores against entropies, with the law of the first level (Figures 1 and 6)."""
    canvas, panels = _panels(1, groups, known)
    canvas.set_size_inches(6.4, 4.8)
    axes = panels[0]
    dress(axes, "Score against entropy", f"{ENTROPY_LABEL}, falling", "pass@1")
    spans: list[float] = []
    for at, (level, found) in enumerate(groups.items()):
        joined = [one for one in map(_joined, found) if one is not None]
        if not joined:
            continue
        entropy, score = (np.concatenate([getattr(one, name) for one in joined]) for name in ("entropy", "score"))
        axes.plot(entropy, score, linestyle="", markersize=4, alpha=0.6, **known[level])
        spans += [float(entropy.min()), float(entropy.max())]
        if at == 0:
            law = fit(entropy, score)
            grid = law_grid(float(entropy.min()), float(entropy.max()))
            axes.plot(grid, law.predict(grid), color="#000000", linewidth=1.5)
    if spans:
        entropy_axis(axes, min(spans), max(spans))
    else:
        say_empty(axes, "no step with both\nentropy and validation yet")
    return canvas


def _forecast(groups: Groups, known: Mapping[str, Look]) -> Canvas:
    """Scores as they came against scores by the law of the first 15 % (Figure 5)."""
    canvas, panels = _panels(1, groups, known)
    canvas.set_size_inches(5.6, 5)
    axes = panels[0]
    dress(axes, "Predicted from the first 15 %", "pass@1 as it came", "pass@1 by the law")
    ends: list[float] = []
    for level, found in groups.items():
        for one in map(_joined, found):
            if one is None:
                continue
            ahead = forecast(one.steps, one.entropy, one.score)
            axes.plot(ahead.score, ahead.predicted, linestyle="", markersize=4, alpha=0.7, **known[level])
            ends += [*ahead.score, *ahead.predicted]
    if ends:
        low, high = max(min(ends), -0.2), min(max(ends), 1.2)
        axes.plot([low, high], [low, high], color="#5a5a5a", linewidth=0.8, linestyle=":")
        axes.set(xlim=(low, high), ylim=(low, high))
    else:
        say_empty(axes, "no run with a law yet")
    return canvas


def _sizes(groups: Groups, known: Mapping[str, Look]) -> Canvas:
    """The law's a and b against the model's size (Figure 7)."""
    canvas, panels = _panels(2, groups, known)
    for axes, name in zip(panels, "ab", strict=True):
        places: list[tuple[float, float]] = []
        for level, found in groups.items():
            for result in found:
                joined = _joined(result)
                if joined is not None and result.parameters:
                    value = float(getattr(fit(joined.entropy, joined.score), name))
                    places.append((result.parameters, value))
                    axes.plot(*places[-1], linestyle="", markersize=6, **known[level])
        dress(axes, f"{name} of the law", "parameters without embeddings", name)
        axes.set_xscale("log")
        if len({size for size, _ in places}) > 1:
            sizes, found_values = np.array(places).T
            slope, start = np.polyfit(np.log(sizes), found_values, 1)
            ends = np.array([sizes.min(), sizes.max()])
            axes.plot(ends, start + slope * np.log(ends), color="#5a5a5a", linewidth=1.2)
    return canvas


def _covariance(groups: Groups, known: Mapping[str, Look]) -> Canvas:
    """Covariance, fall of the entropy, and covariance by the prompts' difficulty (Figure 8)."""
    canvas, panels = _panels(3, groups, known)
    fall = curves.logged(COV + "entropy_change")
    curves.draw(panels[0], groups, curves.logged(COV + "prompt_cov"), known)
    dress(panels[0], "Cov(log π, π A) of a prompt", "training step", "nats x advantage")
    curves.draw(panels[1], groups, lambda result: (fall(result)[0], -fall(result)[1]), known)
    dress(panels[1], "Fall of the entropy in a step", "training step", "nats per token")
    every = [result for found in groups.values() for result in found]
    for style, kind in (("-", "easy"), ("--", "medium"), (":", "hard")):
        steps, middle, _ = curves.mean(every, curves.logged(COV + f"prompt_cov_{kind}"))
        panels[2].plot(steps, middle, linestyle=style, color="#000000", linewidth=1.4, label=kind)
    dress(panels[2], "By difficulty, all runs", "training step", "nats x advantage")
    panels[2].legend(frameon=False)
    for axes in panels:
        axes.axhline(0, color="#5a5a5a", linewidth=0.8)
        by_step(axes)
    return canvas


def _targets(groups: Groups, known: Mapping[str, Look]) -> Canvas:
    """Entropy and knob of every run, with the target and its band; a column a level."""
    canvas = Canvas(figsize=(3.6 * len(groups), 5.4), layout="constrained")
    above, below = canvas.subplots(2, len(groups), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 2))
    for entropy, knob, (level, found) in zip(above, below, groups.items(), strict=True):
        for result in found:
            entropy.plot(*ENTROPY(result), color=known[level]["color"], linewidth=1, alpha=0.8)
            knob.plot(*curves.logged(COV + "knob")(result), color=known[level]["color"], linewidth=1, alpha=0.8)
        draw_target(entropy, found[0].run, known[level])
        dress(entropy, f"{level} ({len(found)})", "", ENTROPY_LABEL)
        dress(knob, "", "training step", "knob")
        knob.set_yscale("log")
    from_zero(above[0])
    for axes in (*above[1:], *below[1:]):
        axes.set_ylabel("")
    return canvas


KINDS: dict[str, Callable[[Groups, Mapping[str, Look]], Canvas]] = {
    "curves": _curves,
    "ends": _ends,
    "consumption": _consumption,
    "law": _law,
    "forecast": _forecast,
    "sizes": _sizes,
    "covariance": _covariance,
    "targets": _targets,
}
