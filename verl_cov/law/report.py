"""The page of `verl-cov report`: what the law says about some runs, as HTML that needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from matplotlib.figure import Figure

from verl_cov import __version__
from verl_cov.law import beside, commands, tables
from verl_cov.law.estimate import Estimate
from verl_cov.law.plots import laws, style
from verl_cov.law.points import Points

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.6em } h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ddd }
img { max-width: 100% } table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #eee } td:first-child { text-align: left }
.warning { background: #fff4e0; border-left: 4px solid #e69f00; padding: .4em .8em; margin: .4em 0 }
.note { color: #666; font-size: .9em } .big { font-size: 1.15em }
"""
_MOST_HEADLINES = 6


def page(runs: Sequence[Points], share: float) -> str:
    """The page as HTML. share: of the points that the forecasts are fitted to. Raises ValueError as the fits do."""
    fits = commands.fit_each(runs)
    parts = [_headlines(fits), _picture(laws.fits(fits), "score against entropy with the laws")]
    parts.append(_table(tables.FIT_COLUMNS, [tables.fit_row(run, law) for run, law in fits]))
    if len(fits) > 1:
        parts += _comparison(runs)
    for run, law in fits:
        parts += _section(run, law, share)
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Entropy and performance</title><style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>Where {'these runs end' if len(runs) > 1 else 'this run ends'}</h1>\n{body}\n"
        '<p class="note">The law R = -a exp(H) + b is Eq. 6 of <a href="https://arxiv.org/abs/2505.22617">arXiv '
        f"2505.22617</a>; made by verl-cov {__version__}. 95 % intervals under autocorrelated noise.</p>\n"
        "</body></html>\n"
    )


def _headlines(fits: Sequence[tuple[Points, Estimate]]) -> str:
    lines = "".join(f'<p class="big">{_text(tables.gain_line(run, law))}.</p>' for run, law in fits[:_MOST_HEADLINES])
    rest = len(fits) - _MOST_HEADLINES
    return lines + (f"<p>{rest} more runs are below.</p>" if rest > 0 else "")


def _comparison(runs: Sequence[Points]) -> list[str]:
    title = "<h2>Do the runs share one law?</h2>"
    try:
        comparison = commands.compare_runs(runs)
    except ValueError as error:
        return [title, f"<p>They were not compared: {_text(str(error))}.</p>"]
    lines = [f"<p>{_text(line)}</p>" for line in tables.compare_lines(runs, comparison)]
    return [title, *lines, _picture(laws.comparison(comparison), "intervals of a, b and the ceiling")]


def _section(run: Points, law: Estimate, share: float) -> list[str]:
    title = f"<h2>{_text(run.name)}</h2>"
    warnings = [f'<p class="warning">{_text(warning)}</p>' for warning in law.warnings]
    notes = [f'<p class="note">{_text(note)}</p>' for note in run.notes]
    return [title, *warnings, *_beside(run, law), *_forecast(run, share), *notes]


def _beside(run: Points, law: Estimate) -> list[str]:
    """The paper's headline shares, the least-squares line and the other descriptions of the run."""
    (later,) = beside.later([run])
    lines = [f"<p>{_text(line)}</p>" for line in (*beside.fit_lines(run, law), *beside.later_lines(later))]
    return [*lines, _table(beside.RANK_COLUMNS, [beside.rank_row(one) for one in later.ranked]) if later.ranked else ""]


def _forecast(run: Points, share: float) -> list[str]:
    try:
        ((_, prediction, origins),) = commands.forecast_each([run], share)
    except ValueError as error:
        return [f"<p>No forecast: {_text(str(error))}.</p>"]
    return [
        f"<p>Fitted to the first {prediction.n} of {run.steps.size} points and given the entropy of the others, the "
        f"law misses them by {prediction.rmse_rest:.3g} (root mean square) and the last by "
        f"{prediction.final_error:+.3g}; "
        f"{100 * prediction.coverage:.0f} % of them lie in their intervals.</p>",
        _picture(laws.forecast(run, prediction), f"forecast of {run.name}"),
        "<p>How early was it predictable?</p>",
        _table(tables.FORECAST_COLUMNS, [tables.forecast_row(run, origin) for origin in origins]),
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _picture(figure: Figure, alternative: str) -> str:
    content = base64.b64encode(style.png(figure)).decode()
    return f'<img alt="{_text(alternative)}" src="data:image/png;base64,{content}">'


def _text(value: str) -> str:
    return html.escape(value)
