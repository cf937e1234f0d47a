"""Places that processes share: never more holders than places, and none is lost with a holder that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from verl_cov.tasks.node_places import NodePlaces


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def start(script: str) -> subprocess.Popen[str]:
    script = "from verl_cov.tasks.node_places import NodePlaces\n" + textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_processes_and_threads_share_them():
    script = """
        import time
        from concurrent.futures import ThreadPoolExecutor
        places = NodePlaces("p", 3)
        def work(_):
            with places.one():
                begin = time.monotonic()
                time.sleep(0.02)
                return begin, time.monotonic()
        with ThreadPoolExecutor(4) as threads:
            for begin, end in threads.map(work, range(12)):
                print(begin, end)
    """
    processes = [start(script) for _ in range(3)]
    spans = [tuple(map(float, line.split())) for one in processes for line in one.communicate()[0].splitlines()]
    assert len(spans) == 36
    at_a_time = [sum(begin <= moment < end for begin, end in spans) for moment, _ in spans]
    assert max(at_a_time) <= 3


def test_another_name_is_another_set():
    with NodePlaces("a", 1).one(), NodePlaces("b", 1).one():
        pass


def test_a_killed_holder_frees_its_place():
    holder = start("import time\nwith NodePlaces('p', 1).one():\n    print('held', flush=True)\n    time.sleep(60)")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    with NodePlaces("p", 1).one():
        assert holder.wait(10) == -signal.SIGKILL


def test_a_forked_copy_of_the_holder_keeps_no_place():
    places = NodePlaces("p", 1)
    with places.one():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with places.one():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_an_error_of_the_holder_passes_and_frees():
    places = NodePlaces("p", 1)
    for _ in range(2):
        with pytest.raises(BlockingIOError), places.one():
            raise BlockingIOError


def test_no_places_are_refused():
    with pytest.raises(ValueError, match="count=0"):
        NodePlaces("p", 0)
