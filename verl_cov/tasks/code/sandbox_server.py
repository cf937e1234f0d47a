"""The child process of `sandbox`: runs Python programs one after the other, each in a fork that confines itself.

    python -S sandbox_server.py        # speaks `process_pool`'s frames; not for people

A fork of this process costs two milliseconds where a new interpreter costs twenty, and is safe: this process has one
thread and runs no code of a program. It starts without site-packages, in an empty environment.

A request is {source, stdin, cpu_seconds, wall_seconds, memory_bytes, output_bytes}, the answer is `sandbox.Result`'s
fields, or {unavailable: why}. When the parent dies, the program is killed and this process ends.
"""

from __future__ import annotations

import os
import sys

# Started as a file, not as a module: without site-packages `verl_cov` cannot be found, and importing it would show
# programs the way to it. This folder leaves the path again before anything else is imported.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _HERE]

import atexit  # noqa: E402
import builtins  # noqa: E402
import gc  # noqa: E402
import importlib  # noqa: E402
import io  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
import types  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

_COMMON = (
    *("array", "bisect", "collections", "contextlib", "copy", "datetime", "decimal", "enum", "fractions", "functools"),
    *("hashlib", "heapq", "io", "itertools", "json", "math", "operator", "queue", "random", "re", "statistics"),
    *("string", "textwrap", "time", "typing"),
)
STDERR_BYTES = 4096  # enough for the end of a traceback


def _import_ours(*names: str) -> list[types.ModuleType]:
    """Modules of this folder and the one above it, not left in sys.modules, where programs could find them."""
    package = types.ModuleType("ours")
    package.__path__ = [_HERE, os.path.dirname(_HERE)]
    sys.modules["ours"] = package
    try:
        return [importlib.import_module(f"ours.{name}") for name in names]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "ours"]:
            del sys.modules[name]


lockdown, process_pool = _import_ours("lockdown", "process_pool")


def main() -> None:
    # The frames move away from 0 and 1, which will be the programs'.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if memory runs out, the machine ends a program and not the trainer
    except OSError:
        pass
    _warm_up()
    confine: Any = None
    while (job := process_pool.read_frame(requests)) is not None:
        try:
            confine = confine or lockdown.Lockdown()
            answer = _run(job, confine, requests.fileno())
        except (lockdown.Unavailable, OSError) as problem:
            answer = {"unavailable": str(problem)}
        process_pool.write_frame(answers, answer)
        del job, answer  # the next program can walk up to this frame, and must not read there what this one printed


def _warm_up() -> None:
    """Load what most programs import, once for all of them."""
    for name in _COMMON:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the first collection in each fork would copy every page


def _run(job: dict[str, Any], confine: Any, requests: int) -> dict[str, Any]:
    stdin = os.memfd_create("stdin")  # a file and not a pipe: nobody has to feed it
    pipes = [os.pipe() for _ in range(3)]  # stdout, stderr, and what goes wrong before the program runs
    parent = os.getpid()
    started = time.monotonic()
    try:
        with os.fdopen(os.dup(stdin), "wb") as file:
            file.write(job["stdin"].encode("utf-8", "surrogatepass"))
        os.lseek(stdin, 0, os.SEEK_SET)
        child = os.fork()
        if child == 0:
            _child(job, confine, parent, stdin, [write for _, write in pipes])
        for _, write in pipes:
            os.close(write)
        pipes = [(read, -1) for read, _ in pipes]
        return _supervise(child, job, [read for read, _ in pipes], requests, started)
    finally:
        os.close(stdin)
        for descriptor in (descriptor for pipe in pipes for descriptor in pipe if descriptor >= 0):
            os.close(descriptor)


def _supervise(child: int, job: dict[str, Any], pipes: list[int], requests: int, started: float) -> dict[str, Any]:
    """Collect the output of `child` and kill it at its limits. It cannot have children: nothing outlives it."""
    received = {pipe: bytearray() for pipe in pipes}
    stdout, stderr, setup = pipes
    deadline = started + job["wall_seconds"]
    poll = select.poll()
    for pipe in pipes:
        poll.register(pipe, select.POLLIN)
    poll.register(requests, 0)  # only reports that the parent is gone
    open_pipes = set(pipes)
    status, reason = None, None
    while status is None:
        # A program can close its output and go on; then there is nothing to poll for.
        wait = max(0.0, deadline - time.monotonic()) if open_pipes else 0.001
        for descriptor, event in poll.poll(wait * 1000):
            if descriptor == requests:
                if event & (select.POLLHUP | select.POLLERR):
                    os.kill(child, signal.SIGKILL)
                    os._exit(0)
                continue
            chunk = os.read(descriptor, 2**16)
            if not chunk:
                poll.unregister(descriptor)
                open_pipes.discard(descriptor)
            received[descriptor] += chunk
        del received[stderr][:-STDERR_BYTES]
        if len(received[stdout]) > job["output_bytes"]:
            reason = "output"
        elif time.monotonic() >= deadline:
            reason = "timeout"
        if reason:
            os.kill(child, signal.SIGKILL)
        if reason or not open_pipes:
            pid, code, usage = os.wait4(child, 0 if reason else os.WNOHANG)
            status = code if pid else None
    if received[setup]:
        raise lockdown.Unavailable(received[setup].decode("utf-8", "replace"))
    cpu_seconds = usage.ru_utime + usage.ru_stime
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


# --- in the fork ------------------------------------------------------------------------------------------------------


def _child(job: dict[str, Any], confine: Any, parent: int, stdin: int, writes: list[int]) -> NoReturn:
    code = 1
    try:
        stdout, stderr, setup = writes
        try:
            for descriptor, target in ((stdin, 0), (stdout, 1), (stderr, 2)):
                os.dup2(descriptor, target)
            confine.enter(job["cpu_seconds"], job["memory_bytes"], parent)
        except BaseException as problem:
            os.write(setup, f"{problem}"[:1000].encode("utf-8", "replace") or b"unknown")
            os._exit(1)
        source = job["source"]
        job.clear()  # the program can walk up to this frame and its callers', and must not read its stdin there
        os.closerange(3, 2**16)  # the frames, and `setup`: from here on no failure is the machine's
        code = _program(source)
    finally:
        os._exit(code)


def _program(source: str) -> int:
    """Run `source` as `__main__`; returns its exit code."""
    for name, descriptor, mode in (("stdin", 0, "rb"), ("stdout", 1, "wb"), ("stderr", 2, "wb")):
        errors = "surrogateescape" if name == "stdin" else "backslashreplace"
        stream = io.TextIOWrapper(
            open(descriptor, mode, closefd=False),  # noqa: SIM115
            encoding="utf-8",
            errors=errors,
            line_buffering=name == "stderr",
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["program.py"]
    main_module = types.ModuleType("__main__")
    sys.modules["__main__"] = main_module
    for name in ("exit", "quit"):  # programs use them, and -S leaves them out
        setattr(builtins, name, sys.exit)
    code = 0
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), main_module.__dict__)
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 0 if leave.code is None else 1
    except BaseException:
        traceback.print_exc(limit=-8)
        code = 1
    # What an interpreter does at its end, short of tearing itself down: programs work in threads and at exit.
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for output in (sys.stdout, sys.stderr):
        try:
            output.flush()
        except Exception:
            code = code or 1
    return code & 0xFF


if __name__ == "__main__":
    main()
