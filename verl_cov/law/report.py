"""The page of `verl-cov report`: what the law says about some runs, as HTML that needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from verl_cov import __version__
from verl_cov.law import beside, commands, tables
from verl_cov.law.display import Fitted, baseline_first, by_unit
from verl_cov.law.estimate import Estimate
from verl_cov.law.plots import covariance, fits, laws, style
from verl_cov.law.points import Points
from verl_cov.law.series import unit_of

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.6em } h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ddd }
h2, td:first-child { overflow-wrap: anywhere } a { color: inherit }
img { max-width: 100% } table { border-collapse: collapse; margin: 1em 0; font-size: .9em }
td, th { padding: .2em .7em; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }
td:first-child { text-align: left; white-space: normal; min-width: 9em }
th:first-child { text-align: left } .run { border-left: .5em solid; padding-left: .4em }
.warning { background: #fff4e0; border-left: 4px solid #e69f00; padding: .4em .8em; margin: .4em 0 }
.note { color: #666; font-size: .9em } .big { font-size: 1.15em }
"""
_HEADLINES = ("run", "last score", "best", "entropy", "ceiling b - a", "still to gain", "R²", "points", "warnings")


def page(runs: Sequence[Points], fraction: float, left_out: Sequence[str] = ()) -> str:
    """The page as HTML.

    fraction: of the points that the forecasts are fitted to. left_out: one line for each run that could not be read.
    Raises ValueError as the fits do.
    """
    fitted = baseline_first(commands.fit_each(runs))
    known = style.looks(run.name for run in runs)
    place = {run.name: f"run{at}" for at, (run, _) in enumerate(fitted)}
    units = by_unit(fitted)
    parts: list[str] = []
    for unit, same in units.items():
        parts += _overview(unit, same, known, place, alone=len(units) == 1)
    if len(fitted) > 1:
        parts += _comparison([run for run, _ in fitted])
    for run, law in fitted:
        parts += _section(run, law, fraction, known, place, alone=len(fitted) == 1)
    parts += _notes(runs, left_out)
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Entropy and performance</title><style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>Where {'these runs end' if len(runs) > 1 else 'this run ends'}</h1>\n{body}\n"
        '<p class="note">The law R = -a exp(H) + b is Eq. 6 of <a href="https://arxiv.org/abs/2505.22617">arXiv '
        f"2505.22617</a>; made by verl-cov {__version__}. 95 % intervals under autocorrelated noise.</p>\n"
        "</body></html>\n"
    )


def _overview(
    unit: str, fitted: Fitted, known: Mapping[str, style.Look], place: Mapping[str, str], alone: bool
) -> list[str]:
    """The headlines and the pictures of the runs whose scores have one unit."""
    title = [] if alone else [f"<h2>Runs with scores {_text(unit)}</h2>"]
    rows = [(_link(run, known, place), *map(_text, _headline(run, law))) for run, law in fitted]
    pictures = [
        _picture(fits.training(part, known), "score and entropy against the step, and score against entropy")
        for part in fits.groups(fitted, known)
    ]
    return [*title, _table(_HEADLINES, rows), *pictures]


def _headline(run: Points, law: Estimate) -> tuple[str, ...]:
    """Cells under `_HEADLINES`, but for the run's name."""
    steps, scores = run.scores
    best = int(scores.argmax())
    first, last = (float(run.entropies.values[at]) for at in (0, -1))
    gain = law.gain(last)
    return (
        f"{scores[-1]:.3g} at {steps[-1]}",
        f"{scores[best]:.3g} at {steps[best]}",
        f"{first:.3g} → {last:.3g}",
        tables.with_ends(law.ceiling),
        tables.with_ends(gain) if law.a.value > 0 else "-",
        f"{law.law.r2:.3f}",
        str(law.n),
        str(len(law.warnings) or ""),
    )


def _comparison(runs: Sequence[Points]) -> list[str]:
    """The tests, among the runs that can be put side by side."""
    groups: dict[tuple[object, ...], list[Points]] = {}
    for run in runs:
        key = run.entropy_key, run.score_key, run.averaged, unit_of(run.score)
        groups.setdefault(key, []).append(run)
    comparable = [group for group in groups.values() if len(group) > 1] or [list(runs)]
    parts = ["<h2>Do the runs share one law?</h2>"]
    for group in comparable:
        try:
            comparison = commands.compare_runs(group)
        except ValueError as error:
            parts.append(f"<p>They were not compared: {_text(str(error))}.</p>")
            continue
        parts += [f"<p>{_text(line)}</p>" for line in tables.compare_lines(group, comparison)]
        parts.append(_picture(laws.comparison(comparison), "intervals of a, b and the ceiling"))
    rest = len(runs) - sum(map(len, comparable))
    more = f"<p>Not compared, as no other has the same entropy, score and unit: {rest} of the {len(runs)} runs.</p>"
    return parts + [more] * (rest > 0)


def _section(
    run: Points,
    law: Estimate,
    fraction: float,
    known: Mapping[str, style.Look],
    place: Mapping[str, str],
    alone: bool,
) -> list[str]:
    """Everything about one run. alone: the pictures of all runs already show it by itself."""
    colour = known[run.name]["color"]
    parts = [f'<h2 id="{place[run.name]}" class="run" style="border-left-color: {colour}">{_text(run.name)}</h2>']
    parts.append(f'<p class="big">{_text(tables.gain_line(run, law))}.</p>')
    if (line := tables.passes_line(run.run)) is not None:
        parts.append(f"<p>{_text(line)}</p>")
    parts += [f'<p class="warning">{_text(warning)}</p>' for warning in law.warnings]
    parts.append(_table(tables.FIT_COLUMNS, [tuple(map(_text, tables.fit_row(run, law)))]))
    if not alone:
        parts.append(_picture(fits.training([(run, law)], known), f"score and entropy of {run.name}"))
    if covariance.has_metrics(run.run):
        parts += ["<h3>Why its entropy falls</h3>", _picture(covariance.covariance(run.run), f"covariance, {run.name}")]
    parts += ["<h3>How early was it predictable?</h3>", *_forecast(run, fraction, known[run.name])]
    return [*parts, "<h3>What else describes it?</h3>", *_beside(run, law)]


def _beside(run: Points, law: Estimate) -> list[str]:
    """The paper's headline shares, the least-squares line and the other descriptions of the run."""
    (later,) = beside.later([run])
    lines = [f"<p>{_text(line)}</p>" for line in (*beside.fit_lines(run, law), *beside.later_lines(later))]
    rows = [tuple(map(_text, beside.rank_row(one))) for one in later.ranked]
    return [*lines, _table(beside.RANK_COLUMNS, rows)] if rows else lines


def _forecast(run: Points, fraction: float, look: style.Look) -> list[str]:
    try:
        ((_, prediction, origins),) = commands.forecast_each([run], fraction)
    except ValueError as error:
        return [f"<p>No forecast: {_text(str(error))}.</p>"]
    rows = [tuple(map(_text, tables.forecast_row(run, origin))) for origin in origins]
    return [
        f"<p>Fitted to the first {prediction.n} of {run.steps.size} points and given the entropy of the others, the "
        f"law misses them by {prediction.rmse_rest:.3g} (root mean square) and the last by "
        f"{prediction.final_error:+.3g}; "
        f"{100 * prediction.coverage:.0f} % of them lie in their intervals.</p>",
        _picture(laws.forecast(run, prediction, look), f"forecast of {run.name}"),
        _table(tables.FORECAST_COLUMNS, rows),
    ]


def _notes(runs: Sequence[Points], left_out: Sequence[str]) -> list[str]:
    """What was read, joined and left out; a note of several runs stands once."""
    parts = ["<h2>What was read</h2>"]
    for who, notes in tables.remarks(runs):
        parts.append(f'<p class="note"><b>{_text(who)}</b>: {_text(" ".join(notes))}</p>')
    return parts + [f'<p class="warning">Left out: {_text(line)}</p>' for line in left_out]


def _link(run: Points, known: Mapping[str, style.Look], place: Mapping[str, str]) -> str:
    colour = known[run.name]["color"]
    return f'<a class="run" style="border-left-color: {colour}" href="#{place[run.name]}">{_text(run.name)}</a>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the cells of the rows are HTML."""
    cells = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _picture(figure: Figure, alternative: str) -> str:
    content = base64.b64encode(style.picture(figure)).decode()
    return f'<img alt="{_text(alternative)}" src="data:image/png;base64,{content}">'


def _text(value: str) -> str:
    return html.escape(value)
