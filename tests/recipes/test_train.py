"""One training as a process: followed, stopped, failed, resumed. A script stands in for verl's trainer."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.recipes.conftest import STAND_IN
from verl_cov.law.readers import find_runs, read_metrics
from verl_cov.recipes import launch, train
from verl_cov.recipes.catalogue import parse
from verl_cov.recipes.progress import Progress


def a_launch(tmp_path, name="mine"):
    return launch.launch(parse(["tiny/grpo/kl_cov/toy", f"recipe.name={name}"]), tmp_path, tmp_path, tmp_path / "runs")


def run(made, *, verbose=False):
    """Train, and return what was printed."""
    console = Console(file=io.StringIO(), width=200)
    with Progress(console, verbose=verbose) as progress:
        progress.begin(made.name, 6)
        train.train(made, "digest", progress, grace_s=2, poll_s=0.02)
    return console.file.getvalue()


def steps(folder):
    [(_, paths)] = find_runs([folder])
    return read_metrics(paths).steps.tolist()


def in_background(tmp_path, grace_s=2.0, **do):
    """The runner as a process of its own, as a user starts it; kill it as one likes."""
    code = f"""
import sys
from pathlib import Path
from rich.console import Console
from verl_cov.recipes import launch, train
from verl_cov.recipes.progress import Progress
from tests.recipes.test_train import a_launch
launch.TRAINER = {STAND_IN!r}
try:
    with train.signals_as_interrupt(), Progress(Console(width=200)) as progress:
        progress.begin("mine", 6)
        train.train(a_launch(Path({str(tmp_path)!r})), "digest", progress, grace_s={grace_s}, poll_s=0.02)
except KeyboardInterrupt:
    sys.exit(130)
"""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "STAND_IN": json.dumps(do)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A suite that a script started in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_steps(folder, number, limit_s=100.0):
    path = folder / "001.jsonl"
    deadline = time.monotonic() + limit_s
    while not path.exists() or path.read_bytes().count(b"\n") < number:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def training_of(folder):
    return int((folder / ".lock").read_text().rsplit(" ", 1)[1])


def test_a_training_shows_one_line_a_step_and_keeps_verls_log(stand_in, tmp_path):
    stand_in(pause=0.1)
    made = a_launch(tmp_path)
    printed = run(made).splitlines()
    assert steps(made.folder) == list(range(7))
    assert [line.split("  ")[0] for line in printed if "/6" in line] == [f"mine {step}/6" for step in range(1, 7)]
    assert "entropy 0.335  score 0.620  val 0.420  0.1 s/step  ETA 0s" in printed[-1]
    assert "loading" in made.log.read_text()
    assert not [line for line in printed if "WorkerDict" in line]


def test_verbose_shows_verls_log_instead(stand_in, tmp_path):
    printed = run(a_launch(tmp_path), verbose=True)
    assert "(WorkerDict pid=1) loading" in printed
    assert "entropy" not in printed


@pytest.mark.parametrize(
    ("do", "code", "says"),
    [
        ({"fail": 4}, 3, "mine failed (exit code 3) after step 3. The log has no traceback. Its end:"),
        ({"fail": 1, "kill": signal.SIGKILL}, 137, "failed (killed by SIGKILL, out of memory?) before its first step"),
        (
            {"fail": 2, "last_words": "Traceback (most recent call last):\n  File 'x'\nKeyError: 'advantages'"},
            3,
            "KeyError: 'advantages'",
        ),
    ],
)
def test_a_failure_is_told_with_its_cause_and_passes_its_exit_code_on(stand_in, tmp_path, do, code, says):
    if "last_words" in do:
        do = {**do, "last_words": do["last_words"].replace("File 'x'", 'File "/x/losses.py", line 12, in clip')}
    stand_in(**do)
    made = a_launch(tmp_path)
    with pytest.raises(train.TrainingFailed) as raised:
        run(made)
    assert raised.value.code == code
    assert says in str(raised.value)
    assert f"The whole log: {made.log}" in str(raised.value)


def test_a_failed_training_resumes_and_nothing_is_overwritten(stand_in, tmp_path):
    stand_in(fail=4)
    first = a_launch(tmp_path)
    with pytest.raises(train.TrainingFailed):
        run(first)
    before = {path: path.read_bytes() for path in (first.metrics, first.log, first.folder / launch.RECORD)}
    stand_in()
    second = a_launch(tmp_path)
    run(second)
    assert (first.metrics.name, second.metrics.name) == ("001.jsonl", "002.jsonl")
    assert first.metrics.read_bytes() == before[first.metrics]
    assert read_metrics(second.metrics).steps.tolist() == [2, 3, 4, 5, 6]  # from verl's checkpoint of step 2
    assert steps(first.folder) == list(range(7))
    for path in (first.log, first.folder / launch.RECORD):
        assert path.read_bytes().startswith(before[path])
        assert len(path.read_bytes()) > len(before[path])


def test_a_killed_runner_leaves_its_training_in_possession(stand_in, tmp_path):
    runner = in_background(tmp_path, pause=0.1, hang=6)
    made = a_launch(tmp_path)
    wait_for_steps(made.folder, 3)
    runner.kill()
    runner.communicate()
    wait_for_steps(made.folder, 6)  # steps 0 to 5, the last of them without the runner
    training = training_of(made.folder)
    try:
        with pytest.raises(ValueError, match=rf"in use \(runner {runner.pid}, training {training}\): wait"):
            run(a_launch(tmp_path))
    finally:
        os.kill(training, signal.SIGKILL)
    while train.session_members(training):
        time.sleep(0.02)
    run(a_launch(tmp_path))
    assert steps(made.folder) == list(range(7))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_runner_stops_all_that_the_training_started(tmp_path, number):
    runner = in_background(tmp_path, pause=0.1, hang=3, orphan=True)
    folder = a_launch(tmp_path).folder
    wait_for_steps(folder, 3)
    training = training_of(folder)
    assert len(train.session_members(training)) == 2
    runner.send_signal(number)
    output, _ = runner.communicate(timeout=1000)
    assert runner.returncode == 130
    assert "stopping the training (SIGINT)" in output
    assert "Traceback" not in output
    assert not train.session_members(training)


def test_a_training_that_ignores_every_request_is_killed(tmp_path):
    runner = in_background(tmp_path, hang=1, stubborn=True, grace_s=0.3)
    wait_for_steps(a_launch(tmp_path).folder, 1)
    runner.send_signal(signal.SIGINT)
    output, _ = runner.communicate(timeout=1000)
    assert runner.returncode == 130
    assert "stopping the training (SIGKILL)" in output


def test_what_a_finished_training_leaves_behind_is_ended(stand_in, tmp_path):
    stand_in(orphan=True)
    made = a_launch(tmp_path)
    run(made)
    assert train.session_members(training_of(made.folder)) == []


def test_a_record_is_read_when_its_line_is_whole(tmp_path):
    path = tmp_path / "001.jsonl"
    tail = train.MetricsTail(path)
    assert tail.poll() == []
    with path.open("ab", buffering=0) as file:
        file.write(b'{"step": 1, "data": {"a": 1}}\n{"step": 2, "da')
        assert tail.poll() == [(1, {"a": 1})]
        file.write(b'ta": {"a": 2}}\n{"step": 1, "data": {"a": 9}}\nnonsense\n')
        assert tail.poll() == [(2, {"a": 2}), (1, {"a": 9})]


def test_settings_of_an_earlier_launch(tmp_path):
    made = a_launch(tmp_path)
    made.folder.mkdir(parents=True)
    assert made.other_settings("digest") is None
    made.record("digest")
    with (made.folder / launch.RECORD).open("a") as file:
        file.write('{"when": "cut o')
    assert made.other_settings("digest") is None
    assert made.other_settings("another") == "the files of the recipe, or verl's, have changed"
    assert replace(made, overrides=["a=1"]).other_settings("another").startswith("+recipe/model=tiny ")
    assert replace(made, overrides=[*made.overrides, "a=1"]).other_settings("another") == "without a=1"


@pytest.mark.parametrize("name", ["plain", "a b", "it's", "x,y=[1]", "back\\slash", "a\\'b", "end\\"])
def test_paths_survive_hydras_grammar(name):
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser.create()
    override = parser.parse_override(f"data.train_files={launch.quote(Path('/data') / name)}")
    assert override.value() == f"/data/{name}"
