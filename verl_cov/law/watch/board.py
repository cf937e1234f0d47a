"""What `watch` shows on a terminal: a line for each run, and below it why the entropy of some of them falls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from verl_cov.core.metric_table import LADDER, PREFIX
from verl_cov.core.update_kinds import UPDATE_KINDS
from verl_cov.law.display import shortened
from verl_cov.law.passes import GREEDY_KEY, last_values, passes
from verl_cov.law.readers import Run
from verl_cov.law.watch.overview import overview
from verl_cov.law.watch.sources import Source
from verl_cov.law.watch.sparks import sparkline

_LABELS = 16  # columns of the terminal for the names of the rows
_NUMBERS = 28  # for the number beside each sparkline
_SPARK = (8, 40)  # least and most for the sparkline
_DOWN, _UP = "red", "green"  # what pulls entropy down, what lifts it
_HELP = "q quit   ↑ ↓ choose a run"

Scale = tuple[float, float]
Cell = Callable[[Run, int, "Scale | None"], Text]


def board(sources: Sequence[Source], width: int, now: float) -> RenderableType:
    """All runs, and why the entropy of each falls: side by side, as many as fit into ``width`` columns.

    now: seconds since the epoch.
    """
    lines = overview(sources, width, now)
    explained = [source for source in sources if source.run is not None and _explains(source.run)]
    beside = max(1, (width - _LABELS) // (_SPARK[0] + _NUMBERS))
    tables = [_details(explained[at : at + beside], width) for at in range(0, len(explained), beside)]
    return Group(*lines, *(part for table in tables for part in (Text(), table)), *_notes(sources))


def screen(sources: Sequence[Source], width: int, height: int, selected: int, now: float) -> RenderableType:
    """The same for a terminal of ``height`` lines: all runs, or those round the ``selected`` one, and its details."""
    room = height - 2  # the header, and the line of keys
    first = max(0, min(selected - room // 2, len(sources) - room))
    shown = range(first, min(len(sources), first + room))
    lines = overview(sources, width, now, shown, selected)
    hidden = len(sources) - len(shown)
    keys = Text(_HELP + (f"   {hidden} more runs" if hidden else ""), style="dim")
    left = height - len(lines) - 1
    source = sources[selected] if sources else None
    if source is not None and source.run is not None and _explains(source.run) and left > 2:
        details: RenderableType = Group(Text(), _details([source], width, rows=left - 2))
        return Group(*lines, details, keys)
    return Group(*lines, *_notes(sources)[:left], keys)


def _notes(sources: Sequence[Source]) -> list[Text]:
    notes = [
        f"{source.name}: {source.run.damaged} damaged lines" for source in sources if source.run and source.run.damaged
    ]
    known = [source.run for source in sources if source.run is not None and source.run.steps.size]
    if known and not any(map(_has_metrics, known)):
        notes.append("no actor/cov/ metrics in these runs: train with +verl_cov=metrics to see why entropy falls")
    return [Text(note, style="yellow", no_wrap=True, overflow="ellipsis") for note in notes]


def _explains(run: Run) -> bool:
    return _has_metrics(run) or passes(run) is not None


def _has_metrics(run: Run) -> bool:
    return any(key.startswith(PREFIX) for key in run.keys())  # noqa: SIM118


def _details(sources: Sequence[Source], width: int, rows: int | None = None) -> Table:
    """One column for each run and one row for each quantity, in which the sparklines have one scale."""
    least, most = _SPARK
    spark = max(least, min(most, (width - _LABELS) // len(sources) - _NUMBERS))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True, style="dim", min_width=_LABELS - 2)
    for name in shortened([source.name for source in sources], spark + _NUMBERS - 2):
        table.add_column(Text(name), no_wrap=True)  # as it is: "lr[1e-6]" is no markup
    runs = [source.run for source in sources if source.run is not None]
    for label, key, cell in _rows():
        values = np.concatenate([run.values(PREFIX + key) for run in runs]) if key else np.empty(0)
        scale = (float(values.min()), float(values.max())) if values.size else None
        cells = [cell(run, spark, scale) for run in runs]
        if any(text.plain != "-" for text in cells) and (rows is None or table.row_count < rows):
            table.add_row(label, *cells)
    return table


def _rows() -> list[tuple[str, str, Cell]]:
    """Label, key of the scale that the runs share, and cell of each row."""
    rows: list[tuple[str, str, Cell]] = [
        ("entropy", "entropy_error", _error),
        ("  change", "entropy_change", _series("entropy_change", "{:+.3g}", style=_signed)),
        ("  target", "", _target),
        ("  knob", "", _series("knob", "{:.3g}")),
    ]
    rows += [(f"  theorem {n}", "entropy_change", _theorem(n)) for n in (1, 2)]
    rows.append(("covariance", "mean", _series("mean", "{:+.3g}")))
    rows += [(f"  top {100 * share:g} %", f"top_{share:g}", _series(f"top_{share:g}", "{:+.3g}")) for share in LADDER]
    rows += [(kind, "", _kind(kind, _DOWN if kind in UPDATE_KINDS[:2] else _UP)) for kind in UPDATE_KINDS]
    rows += [("prompts", "", _difficulties), ("acted on", "selected_tokens", _selected)]
    return [("pass@k", "", _passes), ("  greedy", "", _greedy), *rows]


# --- cells ------------------------------------------------------------------------------------------------------------


def _passes(run: Run, width: int, scale: Scale | None) -> Text:
    found = passes(run)
    return Text("-") if found is None else _line(found.curves[found.most].values, width, last_values(found), scale)


def _greedy(run: Run, width: int, scale: Scale | None) -> Text:
    values = run.values(GREEDY_KEY)
    return _line(values, width, f"{values[-1]:.3f}", scale) if values.size else Text("-")


def _error(run: Run, width: int, scale: Scale | None) -> Text:
    errors = run.values(PREFIX + "entropy_error")
    return _line(errors, width, f"standard error {errors[-1]:.3f}", scale) if errors.size else Text("-")


def _target(run: Run, width: int, scale: Scale | None) -> Text:
    target, error, held, clamped = (
        run.values(PREFIX + key) for key in ("target", "target_error", "target_held", "knob_clamped")
    )
    if not target.size or not error.size:
        return Text("-")
    known = f", held {100 * held[-1]:.0f} %" if held.size else ""
    return _line(error, width, f"{target[-1]:.3g}{known}{', clamped' if clamped.size and clamped[-1] else ''}", scale)


def _theorem(number: int) -> Cell:
    def cell(run: Run, width: int, scale: Scale | None) -> Text:
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
        return _line(past, width, f"next {latest:+.3f}{known}", scale)

    return cell


def _kind(kind: str, colour: str) -> Cell:
    def cell(run: Run, width: int, scale: Scale | None) -> Text:
        covariance, tokens = (run.values(f"{PREFIX}{kind}{what}") for what in ("_cov_frac", "_frac"))
        if not covariance.size or not tokens.size:
            return Text("-")
        full = round(width * float(covariance[-1]))
        text = Text("█" * full, style=colour)
        text.append("░" * (width - full), style="dim")
        return text.append(f" {100 * covariance[-1]:3.0f} % by {100 * tokens[-1]:.0f} % of tokens", style="default")

    return cell


def _difficulties(run: Run, width: int, scale: Scale | None) -> Text:
    """Within-prompt covariance of hard, medium and easy prompts, over the last ten rollouts, as few are noisy."""
    text = Text()
    for name, label in (("hard", "hard"), ("medium", "mid"), ("easy", "easy")):
        values = _finite(run.column(f"{PREFIX}prompt_cov_{name}")[-10:])
        if values.size:
            text.append(f"{label} {values.mean():+.2f} ")
    text.rstrip()
    return text if text.plain else Text("-")


def _selected(run: Run, width: int, scale: Scale | None) -> Text:
    tokens, share = (run.values(PREFIX + key) for key in ("selected_tokens", "selected_frac"))
    if not tokens.size or not share.size:
        return Text("-")
    return _line(tokens, width, f"{tokens[-1]:.3g} tokens ({100 * share[-1]:.2g} %)", scale)


def _series(key: str, form: str, style: Callable[[float], str] = lambda value: "default") -> Cell:
    def cell(run: Run, width: int, scale: Scale | None) -> Text:
        values = run.values(PREFIX + key)
        return _line(values, width, form.format(values[-1]), scale, style(values[-1])) if values.size else Text("-")

    return cell


def _signed(value: float) -> str:
    return _DOWN if value < 0 else _UP


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def _line(values: NDArray[np.float64], width: int, number: str, scale: Scale | None, style: str = "default") -> Text:
    text = Text(f"{sparkline(values, width, *(scale or ())):<{width}}", style="cyan")
    return text.append(f" {number}", style=style)
