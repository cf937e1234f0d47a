"""Writes the parts of the documentation that are made from the code: `python -m docs.pages`.

docs/metrics.md: the table of metrics. (Programs that measure write docs/benchmarks.md, docs/compatibility.md and the
tables of recipes/README.md.)
"""

from __future__ import annotations

from pathlib import Path

from verl_cov.core.metric_table import TABLE

METRICS_PAGE = Path(__file__).with_name("metrics.md")
_BEGIN, _END = "<!-- table of metrics: begin -->", "<!-- table of metrics: end -->"


def metrics_table() -> str:
    """The metrics as a Markdown table."""
    lines = ["| key | unit | meaning | `cov_metrics` | reduction | paper |", "|---|---|---|---|---|---|"]
    levels = {"off": "any, with a control", "basic": "basic, full", "full": "full", "target": "any, with a target"}
    reductions = {"update": "mean over a rollout's updates", "rollout": "one value a rollout"}
    for metric in TABLE:
        level = levels[metric.level]
        if metric.key in ("tokens", "non_finite_tokens"):
            level = "any"
        if metric.key == "threshold":
            level = "any, with KL-Cov"
        meaning = metric.meaning.replace("|", "\\|")
        cells = (f"`{metric.key}`", metric.unit, meaning, level, reductions[metric.per], metric.source)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_metrics(page: str) -> str:
    """`page` with the table between its two marks brought up to date. Raises ValueError if a mark is missing."""
    head, begin, rest = page.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"the page must have the lines {_BEGIN!r} and {_END!r}")
    return f"{head}{_BEGIN}\n\n{metrics_table()}\n\n{_END}{tail}"


if __name__ == "__main__":
    METRICS_PAGE.write_text(with_metrics(METRICS_PAGE.read_text()))
