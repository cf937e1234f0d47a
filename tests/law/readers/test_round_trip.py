"""A run that verl's own Tracking logged to TensorBoard and to W&B (offline) is read back by `fit` and `report`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from verl_cov.cli import app

pytest.importorskip("wandb")
pytest.importorskip("tensorboard")
RUN = Path(__file__).parents[3] / "docs" / "notebooks" / "demo" / "kl_cov" / "001.jsonl"

# The records of a real run, as numpy's scalars and in one call a step, as verl's trainer logs them.
_LOG = """
import json, sys
import numpy as np
from verl.utils.tracking import Tracking
tracking = Tracking("project", "a run", ["tensorboard", "wandb"], config={"trainer": {}})
for line in open(sys.argv[1]):
    record = json.loads(line)
    tracking.log({key: np.float64(value) for key, value in record["data"].items()}, step=record["step"])
getattr(tracking, "finish", tracking.__del__)()  # verl before 0.9 has the second alone
"""


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("logged")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    environment = {key: value for key, value in environment.items() if key != "TENSORBOARD_DIR"}
    command = [sys.executable, "-c", _LOG, str(RUN)]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=1200)
    return folder


def fit(path: Path) -> dict:
    done = CliRunner().invoke(app, ["fit", str(path), "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    (run,) = answer["runs"]
    assert answer["left_out"] == []
    return run


@pytest.mark.parametrize(
    ("backend", "close"), [("tensorboard_log", 1e-5), ("wandb", 1e-12)], ids=["TensorBoard (float32)", "W&B"]
)
def test_fit_gives_what_it_gives_for_verls_own_file(logged, backend, close):
    made, expected = fit(logged / backend), fit(RUN)
    for key in ("entropy_key", "score_key", "n"):
        assert made[key] == expected[key], key
    for key in ("a", "b", "ceiling"):
        assert made[key] == pytest.approx(expected[key], rel=close)
        assert made[f"{key}_interval"] == pytest.approx(expected[f"{key}_interval"], rel=10 * close)


@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["tensorboard_log", "wandb"])
def test_report_has_the_run_with_its_covariances(logged, backend, tmp_path):
    page, own = tmp_path / "report.html", tmp_path / "own.html"
    for source, output in ((logged / backend, page), (RUN, own)):
        done = CliRunner().invoke(app, ["report", str(source), "-o", str(output)])
        assert done.exit_code == 0, done.output
    # As many pictures as of verl's own file: curves, law, covariances.
    assert page.read_text().count("<svg") + page.read_text().count("<img") == (
        own.read_text().count("<svg") + own.read_text().count("<img")
    )
    assert "covariance" in page.read_text()
