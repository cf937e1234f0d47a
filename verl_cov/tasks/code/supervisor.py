"""Runs one job of `sandbox_server`: has the zygote fork its program, collects the output and enforces the limits.

Memory, CPU time and files are limited by the kernel (`lockdown`). Wall time, output and threads are limited here, by
killing the program. Threads are counted because no limit of the kernel does: RLIMIT_NPROC spares root, and for any
other user it counts the trainer's threads too.

Needs only the standard library: it runs in an interpreter without site-packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from typing import Any

from .seccomp import Unavailable

STDERR_BYTES = 4096  # enough for the end of a traceback
TICK_SECONDS = 0.01  # between two looks at a program's threads


def run_job(job: dict[str, Any], zygote: socket.socket, requests: int) -> dict[str, Any]:
    """The answer to a job. `zygote` takes orders (`sandbox_server._serve`), `requests` shows when the parent is gone.

    Raises Unavailable if the program could not be confined, and ConnectionError if the zygote has died.
    """
    started = time.monotonic()
    pipes = [os.pipe() for _ in range(3)]  # stdout, stderr, and what goes wrong before the program runs
    given = [_memory_file(job["source"]), _memory_file(job["stdin"]), *(write for _, write in pipes)]
    reads = [read for read, _ in pipes]
    try:
        order = json.dumps([job["cpu_seconds"], job["memory_bytes"]]).encode()
        socket.send_fds(zygote, [order], given)
        for descriptor in given:
            os.close(descriptor)
        given = []
        return _supervise(receive(zygote), job, reads, zygote, requests, started)
    finally:
        for descriptor in (*given, *reads):
            os.close(descriptor)


def _memory_file(text: str) -> int:
    """A descriptor to read `text` from; a file and not a pipe: nobody has to feed it."""
    descriptor = os.memfd_create("text")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def receive(zygote: socket.socket) -> Any:
    message = zygote.recv(2000)
    if not message:
        raise ConnectionError("the zygote has died")
    return json.loads(message)


def threads(pid: int) -> int:
    """How many threads a process has; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[17])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _supervise(
    child: int, job: dict[str, Any], pipes: list[int], zygote: socket.socket, requests: int, started: float
) -> dict[str, Any]:
    """Collect the output of `child` and kill it at its limits. It cannot have children: nothing outlives it."""
    received = {pipe: bytearray() for pipe in pipes}
    stdout, stderr, setup = pipes
    deadline = started + job["wall_seconds"]
    poll = select.poll()
    for descriptor in (*pipes, zygote.fileno()):
        poll.register(descriptor, select.POLLIN)
    poll.register(requests, 0)  # only reports that the parent is gone
    open_pipes = set(pipes)
    ended, reason = None, None
    while ended is None or open_pipes:
        wait = max(0.0, min(TICK_SECONDS, deadline - time.monotonic())) if reason is None else TICK_SECONDS
        for descriptor, event in poll.poll(wait * 1000):
            if descriptor == requests:
                if event & (select.POLLHUP | select.POLLERR):
                    os._exit(0)  # and the zygote and the program with it
            elif descriptor == zygote.fileno():
                ended = receive(zygote)
                poll.unregister(descriptor)
            else:
                chunk = os.read(descriptor, 2**16)
                if not chunk:
                    poll.unregister(descriptor)
                    open_pipes.discard(descriptor)
                received[descriptor] += chunk
        del received[stderr][:-STDERR_BYTES]
        if reason is None and len(received[stdout]) > job["output_bytes"]:
            reason = "output"
        elif reason is None and ended is None and time.monotonic() >= deadline:
            reason = "timeout"
        elif reason is None and ended is None and threads(child) > job["threads"]:
            reason = "threads"
        if reason and ended is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    if received[setup]:
        raise Unavailable(received[setup].decode("utf-8", "replace"))
    status, cpu_seconds = ended
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    # Otherwise only the machine can have killed it, out of memory. Half, because the kernel enforces the limit by one
    # clock, in ticks, and reports the CPU time by another.
    if reason is None and number in (signal.SIGKILL, signal.SIGXCPU) and cpu_seconds > job["cpu_seconds"] / 2:
        reason = "timeout"
    exit_code = os.waitstatus_to_exitcode(status)
    return {
        "status": reason or ("ok" if exit_code == 0 else "error"),
        "exit_code": exit_code,
        "stdout": received[stdout][: job["output_bytes"]].decode("utf-8", "replace"),
        "stderr": received[stderr].decode("utf-8", "replace"),
        "cpu_seconds": cpu_seconds,
        "wall_seconds": time.monotonic() - started,
    }
