"""The demo's runner, driven with a small script in the trainer's place: this tests the runner, not verl."""

import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import verl_cov
from verl_cov.demo import launch
from verl_cov.demo.folder import DemoError, Metrics, RunFolder, Segment, choose, lock
from verl_cov.demo.launch import Assets
from verl_cov.demo.log import LogTail, first_error
from verl_cov.demo.progress import LiveView, PlainView, State, duration
from verl_cov.demo.run import main, parse
from verl_cov.demo.summary import table
from verl_cov.law.readers import Run, read_metrics

EMPTY = Run(np.array([], dtype=np.int64), ())

# Logs, metrics, checkpoints and resuming as verl 0.9.1 does them. FAKE is a JSON dict: what should happen.
TRAINER = r"""
import json, math, os, pathlib, signal, subprocess, sys, time
do = json.loads(os.environ.get("FAKE", "{}"))
overrides = dict(a.lstrip("+").split("=", 1) for a in sys.argv[2:])
checkpoints = pathlib.Path(overrides["trainer.default_local_dir"].strip("'"))
total, name = int(overrides.get("trainer.total_training_steps", 6)), sys.argv[1]
if do.get("stubborn"):
    signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
if do.get("orphan"):
    subprocess.Popen(["sleep", "300"], preexec_fn=os.setpgrp)
print("ray init kwargs: {}"); print("INFO Started a local Ray instance."); print("(WorkerDict pid=1) loading")
if do.get("silent"): sys.exit(0)
metrics = open(os.environ["VERL_FILE_LOGGER_PATH"], "wb", buffering=0)
tracker = checkpoints / "latest_checkpointed_iteration.txt"
start = int(tracker.read_text()) if tracker.exists() else 0
def log(step, **data): metrics.write(json.dumps({"step": step, "data": data}).encode() + b"\n")
V = "val-core/verl_cov/countdown/acc/mean@4"
log(start, **{V: 0.3 + 0.02 * start})
print(f"Training Progress:   0%| | {start}/{total}", end="\r")
for step in range(start + 1, total + 1):
    time.sleep(do.get("pause", 0))
    if do.get("fail") == step and name == do.get("who", "vanilla"):
        sys.stdout.flush(); print(do["flood"]); sys.exit(1)
    if do.get("hang") == step: time.sleep(300)
    h = 0.2 + math.exp(-step / 3)
    log(step, **{"actor/entropy": h, "critic/score/mean": 0.9 - 0.2 * math.exp(h), V: 0.3 + 0.02 * step,
                 "timing_s/step": 0.1, "launch": os.getpid(), "actor/cov/selected_tokens": 7})
    if step % 2 == 0 or step == total:
        checkpoints.mkdir(parents=True, exist_ok=True); tracker.write_text(str(step))
"""

FLOOD = textwrap.dedent("""\
    (TaskRunnerV1 pid=7) UserWarning: megatron engine is not available: ModuleNotFoundError("No module named 'x'")
    \x1b[36m(WorkerDict pid=9)\x1b[0m Traceback (most recent call last):
    \x1b[36m(WorkerDict pid=9)\x1b[0m   File "/x/harmless.py", line 1, in probe
    (TaskRunnerV1 pid=7) Training Progress:  10%|#  | 2/6
    \x1b[36m(WorkerDict pid=9)\x1b[0m     import probe
    \x1b[36m(WorkerDict pid=9)\x1b[0m ImportError: harmless, and caught
    Error executing job with overrides: []
    Traceback (most recent call last):
      File "/x/main_ppo.py", line 93, in run_ppo
        ray.get(runner.run.remote(config))
        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ray.exceptions.RayTaskError(RuntimeError): \x1b[36mray::TaskRunnerV1.run()\x1b[39m (pid=7, ip=192.0.2.2)
      File "/x/losses.py", line 12, in clip
        return table[key]
    KeyError: 'advantages'

    The above exception was the direct cause of the following exception:

    \x1b[36mray::TaskRunnerV1.run()\x1b[39m (pid=7, ip=192.0.2.2)
      File "/x/losses.py", line 14, in clip
        raise RuntimeError("the batch has no advantages") from error
    RuntimeError: the batch has no advantages
    give it some
    (WorkerDict pid=9) Traceback (most recent call last):
    (WorkerDict pid=9)   File "/x/socket.py", line 1, in send
    (WorkerDict pid=9) BrokenPipeError: teardown""")


@pytest.fixture
def demo(tmp_path, monkeypatch, capfd):
    """demo(*arguments, **fake) runs main and returns (exit code, output); it has no model and no data to make."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)

    def call(*arguments, quiet_limit_s=20.0, grace_s=2.0, **fake):
        monkeypatch.setenv("FAKE", json.dumps(fake))
        code = main(
            ["--runs-dir", str(tmp_path / "runs" / "demo"), "--cache-dir", str(tmp_path / "cache"), *arguments],
            command=lambda name, overrides: [sys.executable, str(script), name, *overrides],
            prepare=lambda cache: Assets(cache / "model", cache / "train", cache / "validation", "f00d"),
            quiet_limit_s=quiet_limit_s,
            grace_s=grace_s,
            poll_s=0.02,
        )
        return code, capfd.readouterr().out

    call.script = script
    call.runs = tmp_path / "runs"
    return call


@pytest.fixture
def no_report(monkeypatch):
    """Leave out the figures, which cost a second and have tests of their own."""
    monkeypatch.setattr("verl_cov.demo.summary.report", lambda folder, console: [])


def in_background(demo, **fake):
    """The runner as a process of its own, as a user starts it; kill it as one likes."""
    code = f"""
import sys
from verl_cov.demo.run import main
from verl_cov.demo.launch import Assets
arguments = ["--runs-dir", {str(demo.runs / "demo")!r}, "--only", "vanilla"]
sys.exit(main(arguments, poll_s=0.02, grace_s={fake.pop("grace_s", 2)},
    command=lambda name, overrides: [sys.executable, {str(demo.script)!r}, name, *overrides],
    prepare=lambda cache: Assets(cache, cache, cache, "f00d")))
"""
    root = str(Path(verl_cov.__file__).parent.parent)
    env = {**os.environ, "FAKE": json.dumps(fake), "PYTHONPATH": root}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A suite that a script started in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def content(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_whole_demo_and_the_next_one_goes_beside_it(demo):
    code, output = demo()
    assert code == 0
    first = demo.runs / "demo"
    for name in ("vanilla", "clip_cov", "kl_cov"):
        run = RunFolder(first / name)
        status = run.status()
        assert (status["state"], status["steps"], status["total"]) == ("finished", 6, 6)
        assert read_metrics(run.metrics).steps.tolist() == list(range(7))
        assert run.metrics.read_bytes() == run.segments()[0].read_bytes()
        command = (run.path / "command.txt").read_text()
        assert f" {name} " in command
        assert "resume_mode=auto" in command
        assert ".rollout.seed=0" in command
        assert ("cov_seed=0" in command) == (name != "vanilla")
    assert {path.name for path in (first / "plots").iterdir()} == {"entropy.png", "score.png", "law.png", "demo.png"}
    assert f"New set of runs in {first}: vanilla, clip_cov, kl_cov" in output
    assert "Law of vanilla: R = " in output
    assert str(first / "plots" / "demo.png") in output
    assert "0.320 → 0.420 → 0.420" not in output  # the score starts at step 0
    assert "0.300 → 0.420 → 0.420" in output
    assert " 7.0 " in output

    before = content(first)
    code, output = demo("--only", "kl_cov")
    assert code == 0
    assert content(first) == before
    assert f"New set of runs in {first}-2: kl_cov ({first} is finished)" in output
    assert RunFolder(demo.runs / "demo-2" / "kl_cov").finished()


def test_a_failure_is_told_with_its_cause_and_the_next_call_resumes(demo, no_report):
    code, output = demo(fail=4, who="clip_cov", flood=FLOOD)
    run = RunFolder(demo.runs / "demo" / "clip_cov")
    assert code == 1
    assert "clip_cov failed (exit code 1) after step 3" in output
    assert "KeyError: 'advantages'" in output
    assert "losses.py" in output
    assert "which led to:\n    RuntimeError: the batch has no advantages\n    give it some" in output
    assert "harmless" not in output
    assert "BrokenPipe" not in output
    assert "RayTaskError" not in output
    assert str(run.log) in output
    assert run.status()["state"] == "failed"
    where = next(line for line in output.splitlines() if "began it" in line).split(":")[-2]
    assert "KeyError" in run.log.read_bytes().split(b"\n")[int(where) - 1].decode()
    assert not (demo.runs / "demo" / "kl_cov").exists()

    first, log = run.metrics.read_bytes(), run.log.read_bytes()
    code, output = demo()
    assert code == 0
    assert "vanilla is finished, clip_cov resumes after step 2, kl_cov starts" in output
    assert run.metrics.read_bytes().startswith(first)
    assert read_metrics(run.metrics).steps.tolist() == list(range(7))
    assert lines(run.metrics) == 4 + 5  # steps 2 and 3 twice: before the failure and trained again
    assert read_metrics(run.segments()[1]).steps.tolist() == [2, 3, 4, 5, 6]
    assert run.log.read_bytes().startswith(log)
    assert run.log.read_text().count("==== launch") == 2
    assert len(RunFolder(demo.runs / "demo" / "vanilla").segments()) == 1


def test_a_killed_runner_leaves_its_training_in_possession_and_loses_nothing(demo, no_report):
    runner = in_background(demo, pause=0.1, hang=6)
    run = RunFolder(demo.runs / "demo" / "vanilla")
    wait_for(lambda: lines(run.metrics) >= 3)
    runner.kill()
    runner.communicate()
    segment = run.segments()[0]
    wait_for(lambda: lines(segment) == 6)  # steps 0 to 5, the last of them without the runner
    training = int((demo.runs / "demo" / ".lock").read_text().rsplit(" ", 1)[1])
    try:
        code, output = demo("--only", "vanilla")
        assert code == 1
        assert f"is in use (runner {runner.pid}, training {training})" in output
    finally:
        os.kill(training, signal.SIGKILL)
    wait_for(lambda: not launch.session_members(training))

    with run.metrics.open("ab") as file:
        file.write(b'{"step": 99, "da')  # as if it had been killed while it wrote
    before = run.metrics.read_bytes()
    code, output = demo("--only", "vanilla")
    assert code == 0
    assert "vanilla resumes after step 4" in output
    assert run.metrics.read_bytes().startswith(before)
    metrics = read_metrics(run.metrics)
    assert metrics.steps.tolist() == list(range(7))
    assert metrics.damaged == 1
    pids = metrics.column("launch")
    assert pids[1] != pids[5] == pids[6]  # trained again: the later record counts
    kept = [json.loads(line) for line in run.metrics.read_bytes().splitlines() if b'"step": 5' in line]
    # The first, which nobody had copied, too.
    assert [record["data"]["launch"] for record in kept] == [pids[1], pids[6]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_ends_the_training_and_says_how_to_go_on(demo, number):
    runner = in_background(demo, pause=0.1, hang=3, orphan=True)
    run = RunFolder(demo.runs / "demo" / "vanilla")
    wait_for(lambda: lines(run.metrics) >= 3)
    training = int((demo.runs / "demo" / ".lock").read_text().rsplit(" ", 1)[1])
    runner.send_signal(number)
    output, _ = runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert "the same command resumes" in output
    assert "Traceback" not in output
    assert run.status()["state"] == "stopped"
    assert not launch.session_members(training)


def test_a_training_that_ignores_every_request_is_killed(demo):
    runner = in_background(demo, hang=1, stubborn=True, grace_s=0.3)
    wait_for(lambda: lines(demo.runs / "demo" / "vanilla" / "metrics.jsonl") >= 1)
    runner.send_signal(signal.SIGINT)
    output, _ = runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert "SIGKILL" in output


def test_a_training_without_output_is_ended(demo):
    started = time.monotonic()
    code, output = demo("--only", "vanilla", hang=2, quiet_limit_s=0.6)
    assert code == 1
    assert time.monotonic() - started < 10
    assert "no log output and no metrics for 0.01 minutes" in output
    run = RunFolder(demo.runs / "demo" / "vanilla")
    assert run.status()["state"] == "failed"
    assert read_metrics(run.metrics).steps.tolist() == [0, 1]


def test_success_without_metrics_is_a_failure(demo):
    code, output = demo("--only", "vanilla", silent=True)
    assert code == 1
    assert "trainer.logger" in output
    assert "loading" in output


def test_what_a_training_leaves_behind_is_ended(demo, no_report):
    code, _ = demo("--only", "vanilla", orphan=True, grace_s=0.4)
    training = int((demo.runs / "demo" / ".lock").read_text().rsplit(" ", 1)[1])
    assert code == 0
    assert launch.session_members(training) == []


def test_other_settings_go_to_another_folder(demo, no_report):
    assert demo("--only", "vanilla", "--steps", "3")[0] == 0
    code, output = demo("--only", "clip_cov", "--steps", "2", "--extra", "a.b=1", "c=d")
    assert code == 0
    assert f"New set of runs in {demo.runs}/demo-2: clip_cov ({demo.runs}/demo has other settings (steps=3))" in output
    assert "a.b=1 c=d" in (demo.runs / "demo-2" / "clip_cov" / "command.txt").read_text()
    code, output = demo("--steps", "3")  # the first set goes on where it was
    assert "Continuing" in output
    assert "vanilla is finished, clip_cov starts, kl_cov starts" in output
    assert RunFolder(demo.runs / "demo" / "kl_cov").status()["steps"] == 3


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "demo" / "vanilla").mkdir(parents=True)
    (tmp_path / "demo" / "vanilla" / "thesis.tex").touch()
    choice = choose(tmp_path / "demo", ["vanilla"], "f", [])
    assert choice.path == tmp_path / "demo-2"
    assert "holds something else" in choice.note
    (tmp_path / "file").touch()
    with pytest.raises(DemoError, match="is a file"):
        choose(tmp_path / "file", ["vanilla"], "f", [])


def test_the_lock(tmp_path):
    with lock(tmp_path / "demo"), pytest.raises(DemoError, match="in use"), lock(tmp_path / "demo"):
        pass
    with lock(tmp_path / "demo"):
        pass


def test_a_line_is_copied_when_it_is_whole(tmp_path):
    run = RunFolder(tmp_path)
    metrics = Metrics(run)
    path = run.next_segment()
    segment = Segment(path, metrics)
    assert segment.poll() == []
    with path.open("ab", buffering=0) as file:
        file.write(b'{"step": 1, "data": {"a": 1}}\n{"step": 2, "da')
        assert segment.poll() == [(1, {"a": 1})]
        assert lines(run.metrics) == 1
        file.write(b'ta": {"a": 2}}\n{"step": 1, "data": {"a": 9}}\nnonsense\n')
        assert segment.poll() == [(2, {"a": 2}), (1, {"a": 9})]
    assert read_metrics(run.metrics).column("a").tolist() == [9, 2]  # the later record of a step is the valid one
    assert run.next_segment().name == "002.jsonl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "vanilla,nope"], "--only: nope is not a run; the runs are vanilla, clip_cov, kl_cov"),
        (["--only", ","], "nothing is not a run"),
        (["--steps", "0"], "--steps must be 1 or more"),
        (["--seed", "-1"], "--seed must be 0 to"),
        (["--extra", "trainer.nope"], "is not key=value"),
        (["--extra", "++trainer.resume_mode=disable"], "the runner's own"),
    ],
)
def test_bad_arguments_get_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_plots_are_missed_before_the_trainings(tmp_path, monkeypatch, capfd):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    folders = ("--runs-dir", str(tmp_path / "demo"), "--cache-dir", str(tmp_path / "cache"))
    assert main(folders, prepare=lambda folder: pytest.fail("prepared")) == 1
    assert "pip install 'verl-cov[law]'" in capfd.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_order_of_the_runs_is_the_demos():
    assert parse(["--only", "kl_cov, vanilla"]).only == ["vanilla", "kl_cov"]


def test_the_command_and_the_environment(tmp_path):
    assert launch.trainer_command("kl_cov", ["a=1"])[1:] == [
        "-m",
        "verl.trainer.main_ppo",
        "+verl_cov_demo=kl_cov",
        "a=1",
    ]
    made = launch.environment({"HOME": "/h", "VERL_PLATFORM": "cuda"}, Path("segments/001.jsonl"))
    assert made["HOME"] == "/h"
    assert made["VERL_PLATFORM"] == "cpu"
    assert made["HF_HUB_OFFLINE"] == "1"
    assert Path(made["VERL_FILE_LOGGER_PATH"]).is_absolute()


@pytest.mark.parametrize("name", ["plain", "a b", "it's", "x,y=[1]", "back\\slash", "a\\'b", "end\\"])
def test_paths_survive_hydras_grammar(name):
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser.create()
    override = parser.parse_override(f"data.train_files={launch.quote(Path('/data') / name)}")
    assert override.value() == f"/data/{name}"


def test_preparation_fails_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_PREPARE", "import sys; sys.exit(3)")
    with pytest.raises(DemoError, match="could not make the tiny model"):
        launch.prepare(tmp_path / "cache")
    monkeypatch.setattr(launch, "_PREPARE", "print('no answer')")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_dead_worker_is_told_with_what_it_said_before():
    log = textwrap.dedent("""\
        (EngineCore pid=3) ERROR 11-23 06:45:50 [core.py:123] Traceback (most recent call last):
        (EngineCore pid=3) ERROR 11-23 06:45:50 [core.py:123]   File "/x/core.py", line 5, in load
        (EngineCore pid=3) ERROR 11-23 06:45:50 [core.py:123]     raise ValueError("no room")
        (EngineCore pid=3) ERROR 11-23 06:45:50 [core.py:123] ValueError: no room
        Traceback (most recent call last):
          File "/x/main_ppo.py", line 93, in run_ppo
        ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.""")
    line, shown = first_error(log)
    assert line == 4
    assert "ValueError: no room" in shown
    assert shown[-1].startswith("ray.exceptions.ActorDiedError")
    assert first_error("Killed\n") is None
    assert first_error("") is None


def test_the_phase_never_goes_back(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"header\n")
    tail = LogTail(path, 7)
    seen = []
    for text in (
        "warning\n",
        "ray init kwargs\n",
        "Started a local Ray instance\n",
        "\x1b[36m(vLLMHttpServer pid=3)\x1b[0m x\n",
        "(WorkerDict pid=4) late\n",
        "INFO: Total training steps: 60\n",
        "Creating file log",
        "ger at /x\n",
        "Training Progress:   5%|5   | 3/60 [00:1\r",
    ):
        with path.open("a") as file:
            file.write(text)
        assert tail.poll()
        seen.append((tail.phase, tail.total))
    assert not tail.poll()
    assert [phase for phase, _ in seen] == [
        "importing verl",
        "starting Ray",
        "starting workers",
        *["starting vLLM"] * 4,
        "validating",
        "training",
    ]
    assert seen[-1][1] == 60


def a_state(tmp_path, now=100.0):
    log = tmp_path / "log"
    log.touch()
    state = State("vanilla", total=10, started=0.0)
    tail = LogTail(log, 0)
    state.take([(0, {"val-core/x/acc/mean@4": 0.25})], tail, now)
    return state, tail


def test_pace_and_eta(tmp_path):
    state, tail = a_state(tmp_path)
    assert state.pace_s is None
    assert state.eta_s is None
    assert state.validation == 0.25
    state.take([(1, {"actor/entropy": 1.0, "timing_s/step": 4.0})], tail, 110.0)
    assert (state.pace_s, state.eta_s) == (4.0, 36.0)
    state.take([(3, {"actor/entropy": None, "critic/score/mean": 0.5})], tail, 120.0)
    assert (state.pace_s, state.eta_s, state.entropy) == (5.0, 35.0, 1.0)
    assert [duration(seconds) for seconds in (None, 5, 65, 7500)] == ["-", "5s", "1m05s", "2h05m"]


def test_plain_progress_is_one_line_a_step(tmp_path, capsys):
    state, tail = a_state(tmp_path)
    view = PlainView(Console(width=200))
    view.update(state)
    view.update(state)
    state.take([(1, {"actor/entropy": 1.0, "critic/score/mean": 0.5, "timing_s/step": 4.0})], tail, 110.0)
    view.update(state)
    view.update(state)
    assert capsys.readouterr().out.splitlines() == [
        "vanilla: importing verl, 1m40s since its start",
        "vanilla: step 1/10, score 0.500, entropy 1.000, validation 0.250, 4.0 s a step, ETA 36s",
    ]


def test_the_table_fits_a_terminal():
    names = ("vanilla", "clip_cov", "kl_cov")
    record = {"actor/entropy": 1.123, "val-core/x/acc/mean@4": 0.123, "actor/cov/selected_tokens": 1234.5}
    runs = {name: Run(np.array([1234]), (record | {"timing_s/step": 123.4},)) for name in names} | {"none": EMPTY}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(runs, dict.fromkeys(names, 8000.0)))
    text = console.export_text()
    assert "…" not in text
    assert "0.123 → 0.123 → 0.123" in text
    assert "2h13m" in text


def test_live_progress_fits_a_terminal(tmp_path):
    state, tail = a_state(tmp_path)
    console = Console(width=80, record=True, force_terminal=True, file=io.StringIO())
    with LiveView(console, ["vanilla", "clip_cov", "kl_cov"], finished=["clip_cov"]) as view:
        view.update(state)
        console.print(view._draw())
        state.take([(9, {"actor/entropy": 1.0, "critic/score/mean": 0.5, "timing_s/step": 444.0})], tail, 9110.0)
        view.update(state)
        view.note("ending the training (SIGINT)")
        console.print(view._draw())
        view.finish(state, "failed")
        console.print(view._draw())
    text = console.export_text()
    assert "importing verl, 1m40s" in text
    assert "9/10" in text
    assert "444.0" in text
    assert "failed, 2h31m" in text
    assert "finished" in text
    assert "waiting" in text
    assert "…" not in text
