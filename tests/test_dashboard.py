"""The panels for Grafana and W&B: their keys are those of the table, under the names that verl's loggers give them."""

from __future__ import annotations

import ast
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import generate_latest, start_http_server
from typer.testing import CliRunner
from verl.utils.tracking import RLInsightLogger

from verl_cov import dashboard
from verl_cov.cli import app
from verl_cov.core.metric_table import PREFIX, TABLE

RUN = Path(__file__).parents[1] / "docs" / "notebooks" / "demo" / "kl_cov" / "001.jsonl"
LABELS = {"project": "demo", "experiment_name": "kl_cov"}


def test_each_metric_of_the_table_has_one_panel_and_each_key_is_of_the_table():
    keys = [key for panel in dashboard.PANELS for key in panel.keys]
    assert len(keys) == len(set(keys))
    assert {key for key in keys if "/" not in key} == {metric.key for metric in TABLE}
    for panel in dashboard.PANELS:
        assert all(key in dashboard.description(panel) for key in panel.keys if "/" not in key)


def test_the_keys_of_a_panel_have_one_unit_which_stands_at_its_axis():
    for panel in dashboard.PANELS:
        units = {dashboard.UNITS[key] for key in panel.keys if key in dashboard.UNITS}
        assert len(units) <= 1, panel.title
        assert panel.unit in units | {""}
    drawn = {
        one["title"]: one["fieldConfig"]["defaults"]["custom"]
        for one in dashboard.grafana()["panels"]
        if "targets" in one
    }
    assert drawn["Entropy"]["axisLabel"] == "nats/token"
    assert drawn["Shares"]["axisLabel"] == ""


def test_keys_that_are_not_ours_are_some_that_verl_logs():
    logged = {key for line in RUN.read_text().splitlines() for key in json.loads(line)["data"]}
    others = {key for panel in dashboard.PANELS for key in panel.keys if "/" in key}
    assert others - logged == {"val-cov/pass@64"}  # of 64 samples a prompt; the demo has 16


def gauges(monkeypatch, keys: list[str]) -> CollectorRegistry:
    """What verl's own logger makes of the keys, as RL-Insight's registry holds it: gauges with a namespace."""
    registry = CollectorRegistry()

    def metric_gauge(name: str, value: float) -> None:
        made = Gauge(name, "", list(LABELS), namespace=dashboard.NAMESPACE, registry=registry)
        made.labels(**LABELS).set(value)

    monkeypatch.setenv(RLInsightLogger.ENABLE_ENV, "1")
    monkeypatch.setattr(RLInsightLogger, "_rl_insight_module", SimpleNamespace(metric_gauge=metric_gauge))
    monkeypatch.setattr(RLInsightLogger, "_init_done", True)
    RLInsightLogger.log(dict.fromkeys(keys, 1.0), step=1)
    return registry


def every_key() -> list[str]:
    return [key for panel in dashboard.PANELS for key in panel.logged()]


@pytest.mark.parametrize("escaping", ["underscores", "allow-utf-8"], ids=["Prometheus 2", "Prometheus 3"])
def test_each_query_finds_its_gauge_and_no_other(monkeypatch, escaping):
    registry = gauges(monkeypatch, every_key())
    text = generate_latest(registry, escaping).decode()
    names = re.findall(r'^# TYPE "?([^" ]+)"? gauge$', text, flags=re.MULTILINE)
    assert len(names) == len(every_key())
    for key in every_key():
        assert len([name for name in names if re.fullmatch(dashboard.gauge(key), name)]) == 1, key


def targets() -> list[dict[str, str]]:
    return [target for panel in dashboard.grafana()["panels"] for target in panel.get("targets", [])]


def test_the_dashboard_is_what_grafana_imports(tmp_path):
    file = tmp_path / "board.json"
    done = CliRunner().invoke(app, ["dashboard", "grafana", "-o", str(file)])
    assert done.exit_code == 0, done.output
    board = json.loads(file.read_text())
    assert board == dashboard.grafana()
    assert len(targets()) == len(every_key())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert [one["name"] for one in board["templating"]["list"]] == ["datasource", "project", "experiment_name"]
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert all(row["panels"] == [] for row in board["panels"] if row["type"] == "row")  # required by Grafana's schema
    assert len(cells) == len(set(cells))  # no panel lies on another
    assert max(x for x, _ in cells) == 23


def test_several_runs_and_zeros_can_be_drawn():
    for panel, made in zip(
        dashboard.PANELS, (one for one in dashboard.grafana()["panels"] if "targets" in one), strict=True
    ):
        look = made["fieldConfig"]["defaults"]["custom"]
        assert "stacking" not in look  # it would add one run's shares to another's
        assert look.get("scaleDistribution", {"type": "symlog"})["type"] == "symlog"  # "log" cannot show 0
        # A legend that begins with what the title says leaves no room for the picture.
        assert {one["legendFormat"].count(" ") for one in made["targets"]} == {int(len(panel.keys) > 1)}


def test_the_workspace_of_wandb_has_all_panels():
    text = dashboard.wandb("mine.py")
    tree = ast.parse(text)
    assert "python mine.py ENTITY PROJECT" in ast.get_docstring(tree)
    (sections,) = (
        json.loads(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant) and "[" in str(node.value)
    )
    panels = [panel for panels in sections.values() for panel in panels]
    assert [key for panel in panels for key in panel["keys"]] == every_key()
    assert {PREFIX + "mean", "val-cov/pass@16"} <= set(every_key())


def test_the_workspace_is_one_that_wandbs_package_takes(tmp_path):
    package = pytest.importorskip("wandb_workspaces.workspaces")
    made: dict[str, Any] = {}
    exec(compile(dashboard.wandb(), "workspace.py", "exec"), made)
    workspace = made["workspace"]("me", "mine")
    assert isinstance(workspace, package.Workspace)
    assert sum(len(section.panels) for section in workspace.sections) == len(dashboard.PANELS)
    assert "actor/cov/top_0.002" in str(workspace._to_model())


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus (Debian: apt-get install prometheus)")
def test_a_real_prometheus_answers_each_query_of_a_real_run(monkeypatch, tmp_path):
    records = [json.loads(line)["data"] for line in RUN.read_text().splitlines()]
    values = {key: value for record in records for key, value in record.items()}
    registry = gauges(monkeypatch, [])
    for key, value in values.items():
        RLInsightLogger.log({key: value}, step=25)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scrape = {"job_name": "verl", "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}]}
    config = tmp_path / "prometheus.yml"
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))  # JSON is YAML
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    process = subprocess.Popen(
        [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(expression: str) -> list[Any]:
        query = urllib.parse.urlencode({"query": expression})
        with opener.open(f"http://127.0.0.1:{port}/api/v1/query?{query}", timeout=60) as answer:
            return json.load(answer)["data"]["result"]

    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if ask("rl_insight_monitor_actor_entropy"):
                    break
            except OSError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.5)
        answered = 0
        for key, target in zip(every_key(), targets(), strict=True):
            found = ask(target["expr"].replace("$project", ".*").replace("$experiment_name", "kl_cov"))
            assert len(found) == (key in values), target["expr"]
            if found:
                assert float(found[0]["value"][1]) == pytest.approx(values[key])
                answered += 1
        assert answered > 40
    finally:
        process.terminate()
        process.wait(30)
        server.shutdown()
        thread.join()
