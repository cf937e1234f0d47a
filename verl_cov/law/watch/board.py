"""The terminal view: one column for each run, one row for each quantity, with a sparkline and the last value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from verl_cov.core.metric_table import LADDER, PREFIX
from verl_cov.core.update_kinds import UPDATE_KINDS
from verl_cov.law.fit import fit
from verl_cov.law.points import ENTROPY_KEY, law_points, score_key
from verl_cov.law.readers import Run

_BARS = "▁▂▃▄▅▆▇█"
_LABELS = 16  # columns of the terminal for the names of the rows
_NUMBERS = 28  # for the number beside each sparkline
_SPARK = (8, 40)  # least and most for the sparkline
_DOWN, _UP = "red", "green"  # what pulls entropy down, what lifts it

Cell = Callable[[Run, int], Text]


def board(runs: Mapping[str, Run | None], width: int = 100) -> RenderableType:
    """The runs (None: nothing written yet) side by side, as many as fit into ``width`` columns, the others below."""
    known = {name: run for name, run in runs.items() if run is not None and run.steps.size}
    beside = max(1, (width - _LABELS) // (_SPARK[0] + _NUMBERS))
    names = list(runs)
    tables = [_table(names[at : at + beside], known, width) for at in range(0, len(names), beside)]
    notes = [
        f"{name}: waiting for its first step" if name not in known else f"{name}: {known[name].damaged} damaged lines"
        for name in runs
        if name not in known or known[name].damaged
    ]
    if known and not any(key.startswith(PREFIX) for run in known.values() for key in run.keys()):  # noqa: SIM118
        notes.append("no actor/cov/ metrics in these runs: train with +verl_cov=metrics to see why entropy falls")
    return Group(*tables, *(Text(note, style="yellow") for note in notes))


def _table(names: Sequence[str], known: Mapping[str, Run], width: int) -> Table:
    least, most = _SPARK
    spark = max(least, min(most, (width - _LABELS) // len(names) - _NUMBERS))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True, style="dim", min_width=_LABELS - 2)
    for name in names:
        table.add_column(Text(name), no_wrap=True)  # as it is: "lr[1e-6]" is no markup
    for label, cell in _rows():
        cells = [cell(known[name], spark) if name in known else Text("-", style="dim") for name in names]
        if label in _ALWAYS or any(text.plain != "-" for text in cells):
            table.add_row(label, *cells)
    return table


_ALWAYS = ("step", "score", "entropy")


def _rows() -> list[tuple[str, Cell]]:
    rows: list[tuple[str, Cell]] = [
        ("step", _step),
        ("score", _score),
        ("ceiling", _ceiling),
        ("entropy", _entropy),
        ("  change", lambda run, width: _series(run, "entropy_change", width, "{:+.3g}", style=_signed)),
    ]
    rows += [(f"  theorem {n}", _theorem(n)) for n in (1, 2)]
    rows.append(("covariance", lambda run, width: _series(run, "mean", width, "{:+.3g}")))
    rows += [(f"  top {100 * share:g} %", _ladder(share)) for share in LADDER]
    rows += [(f"{kind}", _kind(kind, _DOWN if kind in UPDATE_KINDS[:2] else _UP)) for kind in UPDATE_KINDS]
    rows += [("prompts", _difficulties), ("acted on", _selected)]
    return rows


# --- cells ------------------------------------------------------------------------------------------------------------


def _step(run: Run, width: int) -> Text:
    return Text(str(int(run.steps[-1])))


def _score(run: Run, width: int) -> Text:
    key = score_key(run)
    values = run.values(key) if key else np.empty(0)
    if not values.size:
        return Text("no validation yet", style="dim")
    return _line(values, width, f"{values[-1]:.3f} (best {values.max():.3f})")


def _ceiling(run: Run, width: int) -> Text:
    """The score at which the run ends according to the law: the one with no entropy left."""
    entropy, score = law_points(run)
    try:
        law = fit(entropy, score)
    except ValueError:
        return Text(f"{len(set(entropy))} of the 3 points needed", style="dim") if score.size else Text("-")
    if law.a <= 0:
        return Text(f"none: a < 0 ({law.n} points)", style="dim")
    return Text(f"{law.ceiling:.3f} (R² {law.r2:.2f}, {law.n} points)")


def _entropy(run: Run, width: int) -> Text:
    values, errors = run.values(ENTROPY_KEY), run.values(PREFIX + "entropy_error")
    if not values.size:
        return Text("no step yet", style="dim")
    error = f" ±{errors[-1]:.3f}" if errors.size else ""
    return _line(values, width, f"{values[-1]:.3f}{error}")


def _theorem(number: int) -> Cell:
    def cell(run: Run, width: int) -> Text:
        """The predicted changes of the steps so far, each below the measured one, and that of the next step."""
        predicted = run.column(f"{PREFIX}theorem{number}_predicted")
        correlation = run.values(f"{PREFIX}theorem{number}_correlation")
        if not np.isfinite(predicted).any():
            return Text("-")
        change = run.column(PREFIX + "entropy_change")
        if not np.isfinite(change).any():
            return Text("-")
        # The prediction made at a step is for the change that the next step measures.
        past = predicted[:-1][np.isfinite(change[1:])]
        past = np.concatenate([np.full(np.isfinite(change).sum() - past.size, np.nan), past])
        latest = _finite(predicted)[-1]
        known = f", corr {correlation[-1]:.2f}" if correlation.size else ""
        return _line(past, width, f"next {latest:+.3f}{known}", low=_finite(change).min(), high=_finite(change).max())

    return cell


def _ladder(share: float) -> Cell:
    return lambda run, width: _series(run, f"top_{share:g}", width, "{:+.3g}")


def _kind(kind: str, colour: str) -> Cell:
    def cell(run: Run, width: int) -> Text:
        covariance, tokens = (run.values(f"{PREFIX}{kind}{what}") for what in ("_cov_frac", "_frac"))
        if not covariance.size or not tokens.size:
            return Text("-")
        full = round(width * float(covariance[-1]))
        text = Text("█" * full, style=colour)
        text.append("░" * (width - full), style="dim")
        return text.append(f" {100 * covariance[-1]:3.0f} % by {100 * tokens[-1]:.0f} % of tokens", style="default")

    return cell


def _difficulties(run: Run, width: int) -> Text:
    """Within-prompt covariance of hard, medium and easy prompts, over the last ten rollouts, as few are noisy."""
    text = Text()
    for name, label in (("hard", "hard"), ("medium", "mid"), ("easy", "easy")):
        values = _finite(run.column(f"{PREFIX}prompt_cov_{name}")[-10:])
        if values.size:
            text.append(f"{label} {values.mean():+.2f} ")
    text.rstrip()
    return text if text.plain else Text("-")


def _selected(run: Run, width: int) -> Text:
    tokens, share = (run.values(PREFIX + key) for key in ("selected_tokens", "selected_frac"))
    if not tokens.size or not share.size:
        return Text("-")
    return _line(tokens, width, f"{tokens[-1]:.3g} tokens ({100 * share[-1]:.2g} %)")


def _series(run: Run, key: str, width: int, form: str, style: Callable[[float], str] = lambda value: "default") -> Text:
    values = run.values(PREFIX + key)
    if not values.size:
        return Text("-")
    return _line(values, width, form.format(values[-1]), style(values[-1]))


def _signed(value: float) -> str:
    return _DOWN if value < 0 else _UP


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def _line(
    values: NDArray[np.float64],
    width: int,
    number: str,
    style: str = "default",
    low: float | None = None,
    high: float | None = None,
) -> Text:
    text = Text(f"{sparkline(values, width, low, high):<{width}}", style="cyan")
    return text.append(f" {number}", style=style)


def sparkline(values: ArrayLike, width: int, low: float | None = None, high: float | None = None) -> str:
    """``values`` as at most ``width`` bars.

    low, high: values of the lowest and highest bar, by default those of the data. If there are more values than bars,
    each bar is a mean; a bar without a finite value is a space.
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size or width < 1:
        return ""
    cells = np.array_split(array, min(width, array.size))
    means = np.array([_finite(cell).mean() if np.isfinite(cell).any() else np.nan for cell in cells])
    finite = _finite(means)
    if not finite.size:
        return " " * means.size
    low = finite.min() if low is None else low
    high = finite.max() if high is None else high
    span = (high - low) or 1.0
    height = np.clip((np.nan_to_num(means) - low) / span, 0, 1) * (len(_BARS) - 1)
    return "".join(_BARS[round(h)] if np.isfinite(mean) else " " for h, mean in zip(height, means, strict=True))
