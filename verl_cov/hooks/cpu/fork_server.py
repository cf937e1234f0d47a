"""Imports what a run's workers import, once, and forks a worker whenever :mod:`.fork_worker` asks for one.

    python -m verl_cov.hooks.cpu.fork_server SOCKET [MODULE ...]

Ends when its standard input does, which the driver holds. A worker ends when the connection of the script that stands
for it does. Leans on Ray calling ``ray._private.utils.set_omp_num_threads_if_unset`` before an actor's class is loaded.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import select
import selectors
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from verl_cov.hooks.cpu.fork_worker import same

# What the workers of both trainers import; a module that a release does not have is left to them.
FIRST = ("torch", "numpy", "tensordict", "transformers.models.qwen2.modeling_qwen2", "datasets")
THEN = (
    "verl.trainer.main_ppo",
    "verl.trainer.ppo.v1.agent_loop_tq",
    "verl.workers.engine_workers",
    "verl.experimental.reward_loop.reward_loop",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
    "verl.checkpoint_engine",
    "verl_cov.hooks.cpu.v1_batch",
    "ray._private.workers.default_worker",
)
TICK_SECONDS = 0.05
FIRST_JOB = "01000000"  # the only one on a Ray that a trainer starts


def main(path: str, *modules: str) -> None:
    """Serves until standard input ends. Returns in a forked worker only, which is then to run (:func:`run`)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as Ray's processes: the driver ends the run
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    environment, imported = _warm_up(path, listener, modules)
    workers: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin.buffer, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select(TICK_SECONDS):
            if key.fileobj is listener:
                connection = listener.accept()[0]
                wanted, files = _receive(connection)
                if not same(environment, wanted["environment"]):
                    _refuse(connection, files)
                    continue
                if pid := os.fork():
                    with suppress(OSError):  # the script is gone: seen below
                        connection.sendall(str(pid).encode())
                    workers[pid] = connection
                    selector.register(connection, selectors.EVENT_READ)
                else:
                    listener.close()
                    selector.close()
                    for other in (connection, *workers.values()):
                        other.close()
                    _become(wanted["arguments"], {**imported, **wanted["environment"]}, wanted["folder"], files)
                    return
                for file in files:
                    os.close(file)
            elif key.fileobj is sys.stdin.buffer:
                _end(path)
            else:  # the script that stands for a worker is gone
                selector.unregister(key.fileobj)
                for pid, connection in workers.items():
                    if connection is key.fileobj:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
        _reap(workers, selector)


def _warm_up(path: str, listener: socket.socket, modules: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
    """Imports. Returns the environment that a worker has to have, and what the imports added to it."""
    environment = dict(os.environ)
    _import(() if modules else FIRST)
    # Ray reads its variables when it is imported, two of them once and for all: they have to be a worker's by then.
    # The first to ask is one of the spare workers that Ray starts before its driver is there.
    if sys.stdin.buffer in select.select([listener, sys.stdin.buffer], [], [])[0]:
        _end(path)
    connection = listener.accept()[0]
    wanted, files = _receive(connection)
    _refuse(connection, files)
    rays = {key: value for key, value in wanted["environment"].items() if key.startswith("RAY_")}
    environment |= {**rays, "RAY_JOB_ID": FIRST_JOB}
    os.environ.update(environment)
    _import(modules or THEN)
    gc.collect()
    gc.freeze()  # or each worker copies the pages that it collects in
    return environment, {key: value for key, value in os.environ.items() if environment.get(key) != value}


def _end(path: str) -> NoReturn:
    Path(path).unlink(missing_ok=True)
    with suppress(OSError):
        Path(path).parent.rmdir()
    os._exit(0)


def _import(modules: Iterable[str]) -> None:
    for module in modules:
        with suppress(ImportError):
            importlib.import_module(module)


def _refuse(connection: socket.socket, files: list[int]) -> None:
    with suppress(OSError):
        connection.sendall(b"no")
    connection.close()
    for file in files:
        os.close(file)


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    """What a script asks for, and its standard files; an environment that nobody has if it is gone."""
    header, files, _, _ = socket.recv_fds(connection, 8, 3)
    message = b""
    while len(message) < int.from_bytes(header, "big") and (part := connection.recv(1 << 20)):
        message += part
    return json.loads(message or b'{"environment": {}}'), list(files)


def _reap(workers: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    """Tells the scripts whose workers have ended how they did."""
    for pid, connection in list(workers.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del workers[pid]
            with suppress(KeyError, ValueError):  # of one whose script is gone
                selector.unregister(connection)
            with suppress(OSError):
                connection.sendall(str(abs(os.waitstatus_to_exitcode(status))).encode())
            connection.close()


def _become(arguments: list[str], environment: dict[str, str], folder: str, files: list[int]) -> None:
    """Makes this process what Ray's script would have started."""
    import numpy
    import ray._private.utils
    import torch
    from ray._raylet import AuthenticationTokenLoader, Config

    os.setpgrp()  # as Ray does: it ends a worker by its group
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    Config.initialize("")  # Ray read its variables when it was imported; its driver sets some after that
    AuthenticationTokenLoader.instance().reset_cache()
    random.seed()
    numpy.random.seed()
    sys.argv = arguments
    sys.path[0] = os.path.dirname(sys.argv[0])
    set_omp = ray._private.utils.set_omp_num_threads_if_unset

    def set_threads() -> bool:
        # Of a worker that imports torch after this call, torch reads the variable; here it is imported already.
        changed = set_omp()
        if threads := os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))
        return changed

    ray._private.utils.set_omp_num_threads_if_unset = set_threads


def run() -> NoReturn:
    """Runs Ray's worker."""
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    main(*sys.argv[1:])
    run()
