"""What counts as a lost run, on Ray's own tables of a real Ray, and in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

from verl_cov.hooks import fail_fast
from verl_cov.hooks.fail_fast import GRACE_SECONDS, PLACEMENT_SECONDS, Watch


def actor(cause="", state="ALIVE", job="01"):
    return {"ActorClassName": "AgentLoopWorkerTQ", "JobID": job, "State": state, "DeathCause": cause, "Pid": 7}


DIED = 'error_message: "The actor is dead because its worker process has died."\n reason: WORKER_DIED'


def test_a_dead_worker_is_reported_after_a_grace_and_not_before():
    watch, dead = Watch(), {"a": actor(DIED, "DEAD")}
    assert watch.verdict(dead, {}, "01", 16, now=0) is None
    assert watch.verdict(dead, {}, "01", 16, now=GRACE_SECONDS - 1) is None
    message = watch.verdict(dead, {}, "01", 16, now=GRACE_SECONDS)
    assert message is not None
    assert "AgentLoopWorkerTQ (pid 7) died" in message
    assert "\n" not in message


def test_workers_taken_down_on_purpose_and_other_jobs_are_left_alone():
    table = {
        "killed": actor("reason: RAY_KILL", "DEAD"),
        # As Ray 2.60 words it after ray.actor.exit_actor().
        "left by itself": actor("Worker exit type: INTENDED_USER_EXIT ... reason: WORKER_DIED", "DEAD"),
        "released": actor("reason: OUT_OF_SCOPE", "DEAD"),
        "of another job": actor(DIED, "DEAD", job="02"),
        "alive": actor(),
    }
    watch = Watch()
    for now in (0, 1000):
        assert watch.verdict(table, {}, "01", 16, now) is None


def test_a_dead_actor_of_the_users_is_warned_about_once_and_ends_nothing(caplog):
    crashed = "creation_task_failure_context { formatted_exception: an optional backend is missing }"
    table = {
        "sandbox": {**actor(DIED, "DEAD"), "ActorClassName": "MyToolSandbox"},
        "fallback": {**actor(crashed, "DEAD"), "ActorClassName": "their.module.MyBackend"},
    }
    watch = Watch()
    for now in (0, GRACE_SECONDS, 1000):
        assert watch.verdict(table, {}, "01", 16, now) is None
    assert [record.getMessage().split(" died")[0] for record in caplog.records] == [
        "verl-cov: actor MyToolSandbox (pid 7)",
        "verl-cov: actor their.module.MyBackend (pid 7)",
    ]


def test_the_watch_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("VERL_COV_FAIL_FAST", "0")
    before = threading.enumerate()
    fail_fast.watch.__wrapped__(own_cluster=True)
    assert threading.enumerate() == before


def test_a_group_that_cannot_be_placed_is_reported_and_a_slow_one_is_not():
    pending = {"g": {"state": "PENDING", "bundles": {0: {"CPU": 1.0}}}}
    watch = Watch()
    assert watch.verdict({}, pending, "01", 6, now=0) is None
    assert watch.verdict({}, {}, "01", 6, now=50) is None  # placed: the clock starts anew
    assert watch.verdict({}, pending, "01", 6, now=60) is None
    assert watch.verdict({}, pending, "01", 6, now=59 + PLACEMENT_SECONDS) is None
    message = watch.verdict({}, pending, "01", 6, now=60 + PLACEMENT_SECONDS)
    assert message is not None
    assert "6 CPUs" in message
    assert "ray_kwargs.ray_init.num_cpus" in message


def test_the_driver_ends_when_a_worker_dies_that_it_does_not_wait_for():
    """A real Ray: the driver waits for one actor while another is killed."""
    script = textwrap.dedent(
        """
        import os, signal, time
        import ray
        from verl_cov.hooks import fail_fast
        fail_fast.POLL_SECONDS, fail_fast.GRACE_SECONDS = 0.5, 1.0
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        @ray.remote(num_cpus=0)
        class AgentLoopWorker:
            def pid(self): return os.getpid()
            def wait(self): time.sleep(6000)
            def is_watched(self): return fail_fast.is_watched()
        waited_for, forgotten = AgentLoopWorker.remote(), AgentLoopWorker.remote()
        victim = ray.get(forgotten.pid.remote())
        assert not ray.get(forgotten.is_watched.remote())
        fail_fast.watch(own_cluster=True)
        while not ray.get(forgotten.is_watched.remote()): time.sleep(0.1)
        os.kill(victim, signal.SIGKILL)
        ray.get(waited_for.wait.remote())
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=900)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1
    assert "verl-cov: worker AgentLoopWorker" in errors
