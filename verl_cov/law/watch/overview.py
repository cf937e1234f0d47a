"""The table of all watched runs: a line for each, with sparklines that share their scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.text import Text

from verl_cov.law.display import shortened
from verl_cov.law.points import Curve
from verl_cov.law.series import Unit, unit_of
from verl_cov.law.watch.sources import Source
from verl_cov.law.watch.sparks import sparkline_by_step

_NAME = (12, 48)  # columns of the terminal: least and most for a run's name
_SPARK = (6, 24)  # for a sparkline
_NUMBER, _CEILING = 6, 17
_BETWEEN = "  "


def overview(
    sources: Sequence[Source], width: int, now: float, shown: range | None = None, selected: int | None = None
) -> list[Text]:
    """A header and a line for each of the `shown` runs (all), none longer than `width` columns (from 40 on).

    now: seconds since the epoch. selected: the run to mark. All runs share the scale of steps and of entropies, and the
    runs whose scores have the same unit that of scores.
    """
    steps = _same_width(["step", *map(_step, sources)])
    states = _same_width(["state", *(source.state(now) for source in sources)])
    name, spark, ceiling = _columns(sources, width - len(steps[0]) - len(states[0]))
    header = ["run".ljust(name), steps[0], states[0], "score".ljust(_NUMBER + spark)]
    header += ["entropy".ljust(_NUMBER + spark)] + ["ceiling, 95 %"] * ceiling
    lines = [Text(_BETWEEN.join(header)[:width].rstrip(), style="bold")]
    names = shortened([source.name for source in sources], name)
    last = max((source.step or 0 for source in sources), default=0)
    units = [unit_of(source.scores.values) if source.scores.values.size else None for source in sources]
    spans = {unit: _span([s.scores for s, its in zip(sources, units, strict=True) if its == unit]) for unit in units}
    entropies = _span([source.entropies for source in sources])
    for at in shown if shown is not None else range(len(sources)):
        source, unit = sources[at], units[at]
        line = Text(names[at].ljust(name), style="reverse" if at == selected else "default")
        line.append(_BETWEEN + steps[1 + at], style="default")
        line.append(_BETWEEN + states[1 + at], style=_colour(states[1 + at]))
        for curve, span, its in ((source.scores, spans[unit], unit), (source.entropies, entropies, None)):
            number = _number(curve, its)
            bars = sparkline_by_step(*curve, spark, last, *span)
            line.append(_BETWEEN + number.ljust(_NUMBER), style="default").append(bars.ljust(spark), style="cyan")
        if ceiling:
            line.append(_BETWEEN + _ceiling(source), style="default")
        line.truncate(width)
        line.rstrip()
        lines.append(line)
    return lines


def _columns(sources: Sequence[Source], width: int) -> tuple[int, int, bool]:
    """Columns for a name and for a sparkline, and whether the ceilings have room. width: without steps and states."""
    longest = min(max((len(source.name) for source in sources), default=0), _NAME[1])
    fixed = 2 * _NUMBER + 4 * len(_BETWEEN)
    ceiling = width >= fixed + _CEILING + len(_BETWEEN) + _NAME[0] + 2
    spare = width - fixed - (_CEILING + len(_BETWEEN)) * ceiling
    spark = max(0, min(_SPARK[1], (spare - max(longest, _NAME[0])) // 2))
    spark = spark if spark >= _SPARK[0] else max(0, min(_SPARK[0], (spare - _NAME[0]) // 2))
    return max(1, min(max(longest, _NAME[0]), spare - 2 * spark)), spark, ceiling


def _same_width(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.ljust(width) for cell in cells]


def _step(source: Source) -> str:
    step = "-" if source.step is None else str(source.step)
    return step if source.total is None else f"{step}/{source.total}"


def _colour(state: str) -> str:
    return {"done": "green", "waiting": "dim", "quiet": "yellow"}.get(state.split()[0], "default")


def _number(curve: Curve, unit: Unit | None) -> str:
    if not curve.values.size:
        return "-"
    text = f"{curve.values[-1]:.3f}"
    text = text if len(text) < _NUMBER else f"{curve.values[-1]:.3g}"
    return text[: _NUMBER - 2] + "%" if unit == "percent" else text


def _ceiling(source: Source) -> str:
    """Never without its interval: three points give a number that says nothing."""
    if isinstance(source.law, str):
        return source.law[:_CEILING]
    low, value, high = (
        f"{end:.2f}" for end in (source.law.ceiling.low, source.law.ceiling.value, source.law.ceiling.high)
    )
    text = f"{value} [{low}, {high}]"
    return text if len(text) <= _CEILING else f"{value} [wide]"


def _span(curves: Sequence[Curve]) -> tuple[float, float]:
    values = np.concatenate([curve.values for curve in curves] or [np.empty(0)])
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
