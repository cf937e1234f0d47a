"""A worker that is forked from a warm process is what Ray would have started, on a real Ray; others are left to Ray."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.hooks.test_cpu import fresh
from verl_cov.hooks.cpu import fork_worker

SCRIPT = """
    import json, os, time
    import ray
    from verl_cov.hooks.cpu import warm_start

    variables = {"TRANSFER_QUEUE_ENABLE": "1"}
    if %(warm)s:
        warm_start.start_server(variables, "decimal", "ray._private.workers.default_worker")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})

    @ray.remote
    class Worker:
        def look(self):
            import random, sys, torch
            from pathlib import Path
            parent = Path(f"/proc/{os.getppid()}/cmdline").read_text()
            return dict(forked="fork_server" in parent, imported="decimal" in sys.modules, pid=os.getpid(),
                        threads=torch.get_num_threads(), random=random.random(), group=os.getpgrp() == os.getpid(),
                        own=os.environ.get("OWN"), queue=os.environ["TRANSFER_QUEUE_ENABLE"], folder=os.getcwd())

        def end(self):
            os._exit(3)

    options = [{}, dict(num_cpus=2), dict(runtime_env={"env_vars": {**variables, "OWN": "1"}})]
    workers = [Worker.options(**option).remote() for option in options]
    found = ray.get([worker.look.remote() for worker in workers])
    try:
        ray.get(workers[0].end.remote())
    except ray.exceptions.ActorDiedError:
        found[0]["died"] = True
    ray.kill(workers[1])
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{one['pid']}") for one in found[:2]) and time.monotonic() < deadline:
        time.sleep(0.1)
    found[1]["killed"] = not any(os.path.exists(f"/proc/{one['pid']}") for one in found[:2])
    found.append(ray.get(Worker.remote().look.remote()))
    server = warm_start.seam.server.pid if %(warm)s else 0
    print(json.dumps([found, server]))
"""


def looked(warm: bool) -> tuple[list[dict], int]:
    out = fresh(SCRIPT % {"warm": warm}, RAY_ADDRESS="", OMP_NUM_THREADS="")
    return json.loads(out.splitlines()[-1])


def test_workers_are_forked_and_like_those_that_ray_starts():
    (plain, wide, own, after), server = looked(warm=True)
    usual = looked(warm=False)[0]
    assert [one["forked"] for one in (plain, wide, own, after)] == [True, True, False, True]
    assert [one["imported"] for one in (plain, wide, after)] == [True] * 3
    for found, wanted in zip((plain, wide, own, after), usual, strict=True):
        same = ("threads", "group", "own", "queue", "folder")
        assert {key: found[key] for key in same} == {key: wanted[key] for key in same}
    assert (plain["threads"], wide["threads"]) == (1, 2)  # by the CPUs that Ray gives them
    assert plain["random"] != wide["random"]
    assert plain["died"]
    assert wide["killed"]
    assert _ended(server)


@pytest.mark.nightly
def test_imports_that_take_longer_than_rays_patience_do_not_hang_the_driver(tmp_path):
    (tmp_path / "slow.py").write_text("import time; time.sleep(70)")  # Ray's is 60 s
    script = """
        import ray
        from verl_cov.hooks.cpu import warm_start

        warm_start.start_server({}, "slow", "ray._private.workers.default_worker")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {}})
        print(ray.get(ray.remote(lambda: "ran").remote()))
    """
    path = os.pathsep.join([str(tmp_path), *sys.path])
    assert fresh(script, RAY_ADDRESS="", PYTHONPATH=path).split()[-1] == "ran"


def _ended(pid: int) -> bool:
    import psutil

    try:
        psutil.Process(pid).wait(60)
    except psutil.NoSuchProcess:
        return True
    return not psutil.pid_exists(pid)


ENVIRONMENT = {"PATH": "/bin", "TRANSFER_QUEUE_ENABLE": "1", "RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "7"}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"RANK": "1", "MASTER_ADDR": "h", "RAY_LOCAL_WORLD_SIZE": "2", "_": "x"}, True),
        ({"TRANSFER_QUEUE_ENABLE": "0"}, False),
        ({"LD_PRELOAD": "lib.so"}, False),
        ({"RAY_JOB_ID": "02000000"}, False),
    ],
)
def test_which_environments_a_fork_can_have(change, same):
    assert fork_worker.same(ENVIRONMENT, ENVIRONMENT | change) is same
    assert fork_worker.same(ENVIRONMENT | change, ENVIRONMENT) is same


def context(**fields) -> str:
    return "--serialized-runtime-env-context=" + json.dumps(fields)


def test_what_is_not_plain_python_is_left_to_rays_own_script():
    wanted = fork_worker.request(["w.py", "--a=1", context(env_vars={"A": "b"}), "--language=PYTHON", "--c=2"])
    assert wanted is not None
    assert wanted["arguments"] == ["w.py", "--a=1", "--c=2"]
    assert wanted["environment"]["A"] == "b"
    assert fork_worker.request(["w.py", context(py_executable=sys.executable), "--language=PYTHON"]) is not None
    for arguments in (
        ["w.py", context(), "--language=JAVA"],
        ["w.py", context(py_executable="other"), "--language=PYTHON"],
        ["w.py", context(command_prefix=["nice"]), "--language=PYTHON"],
        ["w.py", context(override_worker_entrypoint="x"), "--language=PYTHON"],
        ["w.py", context(env_vars={"PATH": "/x:${PATH}"}), "--language=PYTHON"],
    ):
        assert fork_worker.request(arguments) is None
