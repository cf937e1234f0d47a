"""`verl-cov dashboard`: panels for Grafana and for W&B, made from the table of metrics.

verl's loggers give our keys to W&B as they are. To Prometheus (`trainer.logger=[rl_insight]`, PyPI rl-insight) it gives
each as a gauge `rl_insight_monitor_KEY` with `_` for `/`, and labels `project` and `experiment_name`. Trap: what else
Prometheus does not know in a name (`.`, `@`, `-`) is `_` up to Prometheus 2 and stays from 3 on, so that a panel asks
for either.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from verl_cov import terminal
from verl_cov.core.metric_table import LADDER, PREFIX, TABLE, ladder_key

EXAMPLES = terminal.examples(
    "verl-cov dashboard grafana -o verl-cov.json", "verl-cov dashboard wandb -o workspace.py", "verl-cov dashboard list"
)
NAMESPACE = "rl_insight_monitor"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {metric.key: metric.unit for metric in TABLE}
_KINDS = ("exploitation", "confirmation", "exploration", "correction")


@dataclass(frozen=True)
class Panel:
    """A picture of some keys over the steps.

    Args:
        row: the section it stands in.
        keys: of `TABLE`, without the prefix; or whole keys of verl's log, which have a slash.
        log: where a logarithmic axis begins; it is linear below, for values that are 0 or negative. 0: a linear axis.
    """

    row: str
    title: str
    keys: tuple[str, ...]
    log: float = 0

    @property
    def unit(self) -> str:
        """The unit of its axis, which is one; "" for shares and for keys that are not ours."""
        unit = next((UNITS[key] for key in self.keys if key in UNITS), "1")
        return "" if unit == "1" else unit

    def logged(self) -> tuple[str, ...]:
        """The keys as verl logs them."""
        return tuple(key if "/" in key else PREFIX + key for key in self.keys)


PANELS = (
    Panel("Score and entropy", "Validation score", ("val-cov/acc/sample_weighted",)),
    Panel("Score and entropy", "pass@k", tuple(f"val-cov/pass@{k}" for k in (1, 4, 16, 64))),
    Panel("Score and entropy", "Training score", ("critic/score/mean",)),
    Panel("Score and entropy", "Entropy", ("entropy", "entropy_sampled", "target", "target_measured", "actor/entropy")),
    Panel("Score and entropy", "Standard error of the entropy", ("entropy_error",)),
    Panel("Why entropy falls", "Covariance ladder", (*map(ladder_key, LADDER), "mean"), log=0.01),
    Panel("Why entropy falls", "Spread of the covariance", ("std",)),
    Panel("Why entropy falls", "Covariance by kind", tuple(f"{kind}_cov_frac" for kind in _KINDS)),
    Panel("Why entropy falls", "Tokens by kind", tuple(f"{kind}_frac" for kind in _KINDS)),
    Panel(
        "Why entropy falls",
        "Change of entropy, measured and predicted",
        ("entropy_change", "theorem1_predicted", "theorem2_predicted"),
    ),
    Panel("Why entropy falls", "Theorems, per unit step", ("theorem1", "theorem2")),
    Panel("Why entropy falls", "What gradient clipping leaves of a step", ("clip_scale",)),
    Panel(
        "Why entropy falls",
        "How well the theorems predict",
        (*(f"theorem{n}_{what}" for n in (1, 2) for what in ("correlation", "agreement")), "entropy_falls"),
    ),
    Panel(
        "The data", "Covariance by difficulty", tuple(f"prompt_cov{each}" for each in ("", "_hard", "_medium", "_easy"))
    ),
    Panel("The data", "Prompts by difficulty", tuple(f"prompts{each}" for each in ("", "_hard", "_medium", "_easy"))),
    Panel("The control", "Tokens acted on", ("selected_tokens", "candidate_tokens", "tied_tokens", "tokens"), log=1),
    Panel("The control", "Shares", ("selected_frac", "selected_negative_frac", "changed_gradient_frac")),
    Panel("The control", "Covariance of the selected", ("selected_mean", "threshold")),
    Panel("The control", "Does it select what the present policy would?", ("overlap_current", "overlap_old")),
    Panel("The target", "Error", ("target_error",)),
    Panel("The target", "Knob", ("knob",)),
    Panel("The target", "Held, and clamped", ("target_held", "knob_clamped")),
    Panel("Health", "Tokens without a finite value", ("non_finite_tokens",)),
    Panel("Health", "Log-prob change that KL-Cov does not see", ("kl_dead_zone",)),
    Panel("Health", "Additional forward", ("forward_seconds",)),
)


def by_row() -> dict[str, list[Panel]]:
    """The panels of each section, in order."""
    rows: dict[str, list[Panel]] = {}
    for panel in PANELS:
        rows.setdefault(panel.row, []).append(panel)
    return rows


def gauge(key: str) -> str:
    """A regular expression for the name that a key has in Prometheus."""
    name = f"{NAMESPACE}_{key.replace('/', '_')}"
    return re.sub(r"[^A-Za-z0-9_]", lambda one: f"[{one[0]}_]", name)


def grafana() -> dict[str, Any]:
    """A dashboard for Grafana 9 and later, to be imported; its data source is a variable."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, inside in by_row().items():
        panels.append(_at({"type": "row", "title": row, "collapsed": False, "panels": []}, 0, top, 24, 1))
        for index, panel in enumerate(inside):
            drawn = {
                "type": "timeseries",
                "title": panel.title,
                "description": description(panel),
                "datasource": _SOURCE,
                "targets": [_target(panel, number) for number in range(len(panel.keys))],
                "fieldConfig": {"defaults": {"custom": _look(panel)}, "overrides": []},
                "options": {"tooltip": {"mode": "multi"}},
            }
            panels.append(_at(drawn, 12 * (index % 2), top + 1 + 8 * (index // 2), 12, 8))
        top += 1 + 8 * -(-len(inside) // 2)
    for number, made in enumerate(panels, 1):
        made["id"] = number
    labels = [
        _variable(name, f'label_values({{__name__=~"{NAMESPACE}_.*"}}, {name})')
        for name in ("project", "experiment_name")
    ]
    choice = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return {
        "title": "verl-cov: why entropy falls",
        "uid": "verl-cov",
        "tags": ["verl", "verl-cov"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [choice, *labels]},
        "panels": panels,
    }


def _at(panel: dict[str, Any], x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return {**panel, "gridPos": {"x": x, "y": y, "w": width, "h": height}}


def _look(panel: Panel) -> dict[str, Any]:
    # No area, no stack: Grafana would put all runs that are chosen on one pile.
    look: dict[str, Any] = {"lineWidth": 2, "spanNulls": True, "axisLabel": panel.unit}
    if panel.log:
        look["scaleDistribution"] = {"type": "symlog", "log": 10, "linearThreshold": panel.log}
    return look


def _target(panel: Panel, number: int) -> dict[str, Any]:
    key = panel.logged()[number]
    chosen = 'project=~"$project", experiment_name=~"$experiment_name"'
    run = "{{experiment_name}}"
    return {
        "refId": chr(ord("A") + number),
        "expr": f'{{__name__=~"{gauge(key)}", {chosen}}}',
        "legendFormat": run if len(panel.keys) == 1 else f"{key.removeprefix(PREFIX)} {run}",
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    ways = {"refresh": 2, "multi": True, "includeAll": True, "allValue": ".*"}
    every = {"text": "All", "value": "$__all"}
    return {"name": name, "type": "query", "datasource": _SOURCE, "query": query, "current": every, **ways}


def description(panel: Panel) -> str:
    """What each of our keys means, from the table."""
    meanings = {metric.key: f"{metric.key} ({metric.unit}): {metric.meaning}" for metric in TABLE}
    return "\n\n".join(meanings[key] for key in panel.keys if key in meanings)


_WORKSPACE = '''"""A W&B workspace for verl-cov's metrics: python {file} ENTITY PROJECT

It needs `pip install wandb-workspaces` and `wandb login`.
"""

import json
import sys

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

SECTIONS = json.loads("""
{sections}
""")


def workspace(entity, project):
    sections = []
    for row, panels in SECTIONS.items():
        plots = [
            wr.LinePlot(
                title=panel["title"],
                y=panel["keys"],
                title_y=panel["unit"] or None,
                log_y=panel["log"] or None,
            )
            for panel in panels
        ]
        sections.append(ws.Section(name=row, panels=plots, is_open=True))
    return ws.Workspace(entity=entity, project=project, name="verl-cov: why entropy falls", sections=sections)


if __name__ == "__main__":
    print(workspace(*sys.argv[1:3]).save().url)
'''


def wandb(file: str = "workspace.py") -> str:
    """A script that makes a workspace in W&B: W&B takes templates from its own package only, not from files."""
    sections = {
        row: [
            {"title": panel.title, "keys": panel.logged(), "unit": panel.unit, "log": panel.log > 0} for panel in panels
        ]
        for row, panels in by_row().items()
    }
    return _WORKSPACE.format(sections=json.dumps(sections, indent=1), file=file)


def dashboard(
    kind: Annotated[Literal["grafana", "wandb", "list"], typer.Argument(help="For what; `list`: panels and keys.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file; else it is printed.")] = None,
) -> None:
    """Write panels of verl-cov's metrics: a dashboard for Grafana (verl's rl_insight logger), or a W&B workspace."""
    from verl_cov.law import files

    with terminal.one_line():
        if output is not None:
            files.check_output(output)
        if kind == "grafana":
            text = json.dumps(grafana(), indent=1) + "\n"
        elif kind == "wandb":
            text = wandb(output.name if output else "workspace.py")
        else:
            text = "\n".join(f"{panel.row}: {panel.title}\n  {', '.join(panel.logged())}" for panel in PANELS) + "\n"
        if output is None:
            typer.echo(text, nl=False)
            return
        files.write(output, text.encode())
        typer.echo(f"written: {output}")
