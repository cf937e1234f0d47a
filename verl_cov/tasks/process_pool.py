"""Persistent child processes that answer requests, for work that must be stoppable from any thread.

verl calls the reward function from many threads of a Ray worker. There, signals cannot stop anything (they go to the
main thread), and a fork would copy locks that are held. So the work is done in children that are started as fresh
programs, kept, and killed when an answer is late. `math.verifier` and `code.sandbox` each have a pool.

The protocol: a frame is 4 bytes of length (big-endian) and JSON; the child reads a frame from stdin and answers with
one on stdout. A child exits when its stdin ends, which also happens when the parent is killed with SIGKILL: no other
process holds the other end of the pipe (Python opens it close-on-exec).

Not pebble 5.2: a worker of its ProcessPool outlives a parent killed in the middle of a request, imports the parent's
`__main__` again, gets the parent's environment (keys included), and cannot be started from a daemonic process.

Needs only the standard library, and knows neither mathematics nor sandboxes.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

LARGEST_FRAME = 64 * 2**20  # bytes; a child that announces more is broken


class ChildFailed(Exception):
    """A request got no answer. late: the child's time, or its CPU time, was up; otherwise the child died."""

    def __init__(self, message: str, late: bool):
        super().__init__(message)
        self.late = late


def usable_cpus() -> int:
    """How many cores this process may run on: its affinity, which containers often set, if the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_frame(stream: BinaryIO) -> Any:
    """In the child: the next request, or None at the end of the stream. Blocks."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    body = stream.read(int.from_bytes(head, "big"))
    return json.loads(body)


def write_frame(stream: BinaryIO, message: object) -> None:
    """In the child: send an answer."""
    stream.write(frame(message))
    stream.flush()


def die_first() -> None:
    """In the child: if the machine runs out of memory, let it end this process, and not the trainer."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def frame(message: object) -> bytes:
    """The bytes of a message in the pipe. As ASCII, so that lone surrogates, which a model can write, pass through."""
    body = json.dumps(message).encode("ascii")
    return len(body).to_bytes(4, "big") + body


class ProcessPool:
    """At most `size` children, started when first needed, each serving one thread at a time.

    command, environment: called at every start, for the child's program and arguments, and its environment variables.
    place: entered for each request, to wait for a place among other processes' children (`node_places`).
    """

    def __init__(
        self,
        command: Callable[[], list[str]],
        size: int,
        environment: Callable[[], dict[str, str]],
        place: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ):
        if size < 1:
            raise ValueError(f"a pool needs at least one process, got size={size}")
        self.size = size
        self._command, self._environment, self._place = command, environment, place
        self._reset()
        atexit.register(self.close)
        # A forked copy of this process must not talk into the same pipes.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._free = threading.BoundedSemaphore(self.size)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []

    def call(self, request: object, seconds: float) -> Any:
        """The child's answer to `request`, in at most `seconds` once a child is free; waiting for one does not count.

        Raises ChildFailed; the child is then gone, and a later call starts another.
        """
        with self._free, self._place():
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is not None and not child.alive():
                child.kill()
                child = None
            child = child or _Child(self._command(), self._environment())
            try:
                answer = child.exchange(frame(request), time.monotonic() + seconds)
            except BaseException:  # KeyboardInterrupt too: a child in the middle of a request cannot be used again
                child.kill()
                raise
            with self._lock:
                self._idle.append(child)
            return answer

    def close(self) -> None:
        """End the idle children. The pool can be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.kill()


class _Child:
    def __init__(self, command: list[str], environment: dict[str, str]):
        # cwd: a child must not keep the trainer's working directory in use, nor import modules from it.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=environment,
            start_new_session=True,  # Ctrl-C in the trainer's terminal is the trainer's to handle
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)  # a child that does not read must not hang us

    def alive(self) -> bool:
        return self._process.poll() is None

    def exchange(self, request: bytes, deadline: float) -> Any:
        unsent = memoryview(request)
        received = bytearray()
        wanted = 4
        while True:
            poll = select.poll()  # not select.select, which fails on descriptors above 1023
            poll.register(self._answers, select.POLLIN)
            if unsent:
                poll.register(self._requests, select.POLLOUT)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise ChildFailed("the process did not answer in time", late=True)
            events = dict(poll.poll(remaining * 1000))
            if self._requests in events:
                try:
                    unsent = unsent[os.write(self._requests, unsent) :]
                except BlockingIOError:
                    pass
                except BrokenPipeError:
                    raise self._died() from None
            if self._answers in events:
                chunk = os.read(self._answers, 2**20)
                if not chunk:
                    raise self._died()
                received += chunk
                if len(received) >= 4:
                    wanted = 4 + int.from_bytes(received[:4], "big")
                    if wanted > LARGEST_FRAME:
                        raise ChildFailed(f"the process announced an answer of {wanted} bytes", late=False)
                if len(received) >= max(wanted, 5):
                    return json.loads(bytes(received[4:wanted]))

    def _died(self) -> ChildFailed:
        try:
            code = self._process.wait(1)  # its pipes close a moment before it can be waited for
        except subprocess.TimeoutExpired:
            return ChildFailed("the process has closed its pipe", late=False)
        return ChildFailed(f"the process has died with exit code {code}", late=code == -signal.SIGXCPU)

    def kill(self) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
