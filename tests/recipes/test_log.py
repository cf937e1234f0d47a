"""What a training's log says: its phase, its number of steps, and the error that ended it."""

from __future__ import annotations

import textwrap

from verl_cov.recipes.log import LogTail, first_error

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


def test_the_error_that_began_it_and_what_it_led_to():
    line, shown = first_error(FLOOD)
    assert shown == [
        '  File "/x/losses.py", line 12, in clip',
        "    return table[key]",
        "KeyError: 'advantages'",
        "which led to:",
        "RuntimeError: the batch has no advantages",
        "give it some",
    ]
    assert "KeyError" in FLOOD.splitlines()[line - 1]


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
        assert tail.poll() == text
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
