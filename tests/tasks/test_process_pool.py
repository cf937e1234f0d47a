"""Persistent children: one answer per request from many threads, and what happens when a child is late or dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from verl_cov.tasks.process_pool import ChildFailed, ProcessPool

CHILD = """
import os, sys, time
from verl_cov.tasks.process_pool import read_frame, write_frame
while (request := read_frame(sys.stdin.buffer)) is not None:
    if "sleep" in request:
        time.sleep(request["sleep"])
    if "die" in request:
        os._exit(3)
    if "cpu" in request:
        import resource
        resource.setrlimit(resource.RLIMIT_CPU, (1, 5))
        while True:
            pass
    if "boast" in request:
        sys.stdout.buffer.write(b"\\xff\\xff\\xff\\xff"); sys.stdout.buffer.flush(); time.sleep(60)
    if "deaf" in request:
        time.sleep(60)
    write_frame(sys.stdout.buffer, {"pid": os.getpid(), "text": request.get("text")})
"""


def make(size: int = 2) -> ProcessPool:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))}
    return ProcessPool(lambda: [sys.executable, "-c", CHILD], size, lambda: environment)


@pytest.fixture
def pool():
    pool = make()
    yield pool
    pool.close()


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether the process ends within the time (a zombie has ended)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):  # the second: it ended between open and read
            return True
        time.sleep(0.02)
    return False


def test_a_child_is_kept(pool: ProcessPool):
    assert pool.call({}, 10)["pid"] == pool.call({}, 10)["pid"]


@pytest.mark.parametrize("text", ["", "ä\u2028\0", "\ud800", "x" * 3_000_000])
def test_any_text_there_and_back(pool: ProcessPool, text: str):
    assert pool.call({"text": text}, 20)["text"] == text


def test_many_threads_few_children(pool: ProcessPool):
    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(lambda n: pool.call({"text": n}, 20), range(400)))
    assert [answer["text"] for answer in answers] == list(range(400))
    assert len({answer["pid"] for answer in answers}) == 2


def test_threads_wait_for_a_child_and_waiting_does_not_count(pool: ProcessPool):
    pool.call({}, 10)
    started = time.monotonic()
    with ThreadPoolExecutor(20) as threads:  # two at a time, 0.4 s each: the last waits longer than it has itself
        list(threads.map(lambda _: pool.call({"sleep": 0.4}, 3.5), range(20)))
    assert time.monotonic() - started > 3.5


def test_a_late_child_is_killed_and_replaced(pool: ProcessPool):
    pid = pool.call({}, 10)["pid"]
    with pytest.raises(ChildFailed, match="in time") as failure:
        pool.call({"sleep": 60}, 0.3)
    assert failure.value.late
    assert gone(pid)
    assert pool.call({}, 10)["pid"] != pid


def test_a_child_that_does_not_read_is_late_and_not_a_deadlock(pool: ProcessPool):
    with pytest.raises(ChildFailed) as failure:
        pool.call({"deaf": 1}, 0.5)
    assert failure.value.late
    stopped = make(1)
    pid = stopped.call({}, 10)["pid"]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ChildFailed):
        stopped.call({"text": "x" * 10_000_000}, 0.5)
    assert gone(pid)


@pytest.mark.parametrize(("request_", "late"), [({"die": 1}, False), ({"cpu": 1}, True), ({"boast": 1}, False)])
def test_a_child_that_dies(pool: ProcessPool, request_: dict[str, int], late: bool):
    with pytest.raises(ChildFailed) as failure:
        pool.call(request_, 10)
    assert failure.value.late is late
    assert pool.call({"text": 1}, 10)["text"] == 1


def test_a_child_killed_while_idle_is_replaced(pool: ProcessPool):
    pid = pool.call({}, 10)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert pool.call({}, 10)["pid"] != pid


def test_failures_leave_no_descriptor_and_no_place_taken(pool: ProcessPool):
    pool.call({}, 10)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(6):
        with pytest.raises(ChildFailed):
            pool.call({"die": 1}, 10)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert pool.call({}, 10)


def test_a_pool_of_nothing_is_refused():
    with pytest.raises(ValueError, match="size=0"):
        make(0)


def test_a_forked_copy_starts_its_own(pool: ProcessPool):
    pid = pool.call({}, 10)["pid"]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, str(pool.call({}, 20)["pid"]).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(read, 100)) != pid
    assert pool.call({}, 10)["pid"] == pid


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_children_die_with_the_parent(how: signal.Signals):
    script = textwrap.dedent(
        """
        import time
        from tests.tasks.test_process_pool import make
        pool = make()
        print(pool.call({}, 10)["pid"], flush=True)
        time.sleep(60)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not gone(pid, 0.2)
    parent.send_signal(how)
    parent.communicate()
    assert gone(pid)


@pytest.fixture
def interruptible():
    """A suite that a script started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_caller_costs_the_child_and_not_the_pool(pool: ProcessPool):
    pid = pool.call({}, 10)["pid"]
    # To the thread that waits, not to the process: another thread may take it, and the wait would go on.
    timer = threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        pool.call({"sleep": 60}, 30)
    assert gone(pid)
    assert pool.call({"text": 2}, 10)["text"] == 2
