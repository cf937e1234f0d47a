"""A study from nothing to its page, with verl's own trainer: killed, gone on with, and reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from verl_cov.study import protocol, results

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]


def test_the_smoke_study(tmp_path):
    places = ["--data", tmp_path / "data", "--runs", tmp_path / "runs"]
    main = [sys.executable, "-c", "from verl_cov.cli import main; main()", "study"]
    command = [*map(str, [*main, "run", "smoke", *places, "--toy", tmp_path / "toy"])]
    printed = tmp_path / "printed"
    with printed.open("w") as file:
        # A suite that a script started in the background ignores SIGINT, and so would its children.
        runner = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        log = tmp_path / "runs" / "smoke" / "pointer-none-pointer-mini-0" / "001.jsonl"
        deadline = time.monotonic() + 3000
        while not (log.is_file() and b'"step": 1' in log.read_bytes().replace(b'"step":1', b'"step": 1')):
            assert runner.poll() is None, printed.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(runner.pid, signal.SIGINT)
        assert runner.wait(600) == 130
    assert not list((tmp_path / "data").rglob("*.csv.gz"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    study = protocol.load("smoke")
    found = results.find(tmp_path / "data", study)
    assert (len(found.results), found.problems) == (2, ())
    for result in found.results.values():
        run = result.run
        assert run.steps.tolist() == [0, 1, 2]
        assert (run.values("actor/entropy") > 0).all()
        assert run.values("val-cov/acc/sample_weighted").size == 3
        assert result.parameters == 26_976
        assert 0 < result.seconds < 3600
    assert not list((tmp_path / "runs").rglob("checkpoints"))
    status = subprocess.run([*map(str, [*main, "status", "smoke", "--json", *places])], capture_output=True, text=True)
    assert json.loads(status.stdout)["left"] == []
    page = tmp_path / "study.md"
    words = [*main, "report", "smoke", "-o", page, "--data", tmp_path / "data"]
    subprocess.run([*map(str, words)], check=True, capture_output=True)
    assert "all 2 runs" in page.read_text()
    assert (tmp_path / "study" / "smoke" / "curves.png").is_file()
