"""`verl-cov report`: what the law says of some runs, on one page that needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from verl_cov import __version__
from verl_cov.law import commands, figures
from verl_cov.law.estimate import Estimate, Interval
from verl_cov.law.points import Points

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.6em } h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ddd }
img { max-width: 100% } table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #eee } td:first-child { text-align: left }
.warning { background: #fff4e0; border-left: 4px solid #e69f00; padding: .4em .8em; margin: .4em 0 }
.note { color: #666; font-size: .9em } .big { font-size: 1.15em }
"""


def page(runs: Sequence[Points], share: float) -> str:
    """The page as HTML. Raises ValueError as the fits do."""
    fitted = commands.fit_each(runs)
    parts = [_headline(fitted), _picture(figures.png(figures.laws(fitted)), "score against entropy with the laws")]
    parts += [_laws(fitted)]
    if len(fitted) > 1:
        parts += _compared(runs)
    for run, law in fitted:
        parts += _run(run, law, share)
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Entropy and performance</title><style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>Where {'these runs end' if len(runs) > 1 else 'this run ends'}</h1>\n{body}\n"
        '<p class="note">The law R = -a exp(H) + b is Eq. 6 of <a href="https://arxiv.org/abs/2505.22617">arXiv '
        f"2505.22617</a>; made by verl-cov {__version__}. 95 % intervals under autocorrelated noise.</p>\n"
        "</body></html>\n"
    )


def _compared(runs: Sequence[Points]) -> list[str]:
    parts = ["<h2>Do the runs share one law?</h2>"]
    try:
        found = commands.compare_runs(runs)
    except ValueError as error:
        return [*parts, f"<p>They were not compared: {_text(str(error))}.</p>"]
    parts += [f"<p>{_text(line)}</p>" for line in commands.compare_lines(runs, found)]
    return [*parts, _picture(figures.png(figures.comparison(found)), "intervals of a, b and the ceiling")]


def _headline(fitted: Sequence[tuple[Points, Estimate]]) -> str:
    lines = "".join(f'<p class="big">{_text(commands.left_line(run, law))}.</p>' for run, law in fitted[:6])
    rest = len(fitted) - 6
    return lines + (f"<p>{rest} more runs are below.</p>" if rest > 0 else "")


def _laws(fitted: Sequence[tuple[Points, Estimate]]) -> str:
    rows = [
        (
            run.name,
            _ends(law.a),
            _ends(law.b),
            _ends(law.ceiling),
            f"{law.law.r2:.3f}",
            f"{law.law.rmse:.3g}",
            str(law.n),
        )
        for run, law in fitted
    ]
    return _table(("run", "a", "b", "ceiling b - a", "R²", "RMSE", "points"), rows)


def _run(run: Points, law: Estimate, share: float) -> list[str]:
    parts = [f"<h2>{_text(run.name)}</h2>"]
    parts += [f'<p class="warning">{_text(warning)}</p>' for warning in law.warnings]
    try:
        ((_, made, origins),) = commands.forecast_each([run], share)
    except ValueError as error:
        parts.append(f"<p>No forecast: {_text(str(error))}.</p>")
    else:
        parts.append(
            f"<p>Fitted to the first {made.n} of {run.steps.size} points and given the entropy of the others, the law "
            f"misses them by {made.rmse_rest:.3g} (root mean square) and the last by {made.final_error:+.3g}; "
            f"{100 * made.coverage:.0f} % of them lie in their intervals.</p>"
        )
        parts.append(_picture(figures.png(figures.forecast(run, made)), f"forecast of {run.name}"))
        rows = [
            (
                f"{100 * row.n / run.steps.size:.0f} %",
                str(row.n),
                _ends(row.ceiling),
                f"{row.rmse_rest:.3g}",
                f"{row.final_error:+.3g}",
                f"{100 * row.coverage:.0f} %",
            )
            for row in origins
        ]
        header = ("first", "points", "ceiling", "RMSE of the rest", "error at the end", "in the interval")
        parts += ["<p>How early was it predictable?</p>", _table(header, rows)]
    parts += [f'<p class="note">{_text(note)}</p>' for note in run.notes]
    return parts


def _ends(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _picture(content: bytes, alternative: str) -> str:
    return f'<img alt="{_text(alternative)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def _text(value: str) -> str:
    return html.escape(value)
