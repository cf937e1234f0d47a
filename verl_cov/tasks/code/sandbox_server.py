"""The child process of `sandbox`: runs Python programs one after the other, each in a fork that confines itself.

    python -S sandbox_server.py        # speaks `process_pool`'s frames; not for people

Two processes and the program. The server (`main`) reads jobs, watches programs (`supervisor`) and answers. The zygote,
its child, only forks: it gets descriptors and limits and never a byte of a job, so that no program can find in its own
memory what an earlier one was given or printed. The fork reads its source, confines itself and runs it.

A fork costs two milliseconds where a new interpreter costs twenty, and is safe: the zygote has one thread and runs no
code of a program. It has no site-packages and an empty environment.

A request is {source, stdin} and the fields of `sandbox.Limits`, the answer is `sandbox.Result`'s fields, or
{unavailable: why}. The server ends with its parent, the zygote with the server, the program with the zygote.
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
import json  # noqa: E402
import socket  # noqa: E402
import threading  # noqa: E402
import traceback  # noqa: E402
import types  # noqa: E402
from typing import IO, Any, NoReturn  # noqa: E402

_COMMON = (
    *("array", "bisect", "collections", "contextlib", "copy", "datetime", "decimal", "enum", "fractions", "functools"),
    *("hashlib", "heapq", "io", "itertools", "json", "math", "operator", "queue", "random", "re", "statistics"),
    *("string", "textwrap", "time", "typing"),
)


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


lockdown, process_pool, supervisor = _import_ours("lockdown", "process_pool", "supervisor")


def main() -> None:
    # The frames move away from 0 and 1, which will be the programs'.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)
    process_pool.die_first()
    try:
        zygote = _start_zygote(requests, answers)
    except (lockdown.Unavailable, OSError) as problem:
        zygote, why = None, str(problem)
    while (job := process_pool.read_frame(requests)) is not None:
        try:
            answer = supervisor.run_job(job, zygote, requests.fileno()) if zygote else {"unavailable": why}
        except ConnectionError:  # the zygote has died: end too, and the parent starts another server
            raise
        except (lockdown.Unavailable, OSError) as problem:
            answer = {"unavailable": str(problem)}
        process_pool.write_frame(answers, answer)


def _warm_up() -> None:
    """Load what most programs import, once for all of them."""
    for name in _COMMON:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the first collection in each fork would copy every page


def _start_zygote(*ours: IO[bytes]) -> socket.socket:
    """Fork the zygote, while no job is here yet. Returns the socket that takes orders: see `_serve`."""
    _warm_up()
    confine = lockdown.Lockdown()
    server = os.getpid()
    orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote = os.fork()
    if zygote == 0:
        orders.close()
        for stream in ours:
            stream.close()
        _zygote(theirs, confine, server)
    theirs.close()
    if problem := supervisor.receive(orders):
        raise lockdown.Unavailable(problem)
    if not supervisor.threads(zygote):
        raise lockdown.Unavailable("/proc is not mounted, or hides this process's own children")
    confine.hide()
    return orders


# --- in the zygote ----------------------------------------------------------------------------------------------------


def _zygote(orders: socket.socket, confine: Any, server: int) -> NoReturn:
    code = 1
    try:
        problem = ""
        try:
            confine.guard(server)
        except lockdown.Unavailable as refusal:
            problem = str(refusal)
        orders.send(json.dumps(problem).encode())
        while _serve(orders, confine):
            pass
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _serve(orders: socket.socket, confine: Any) -> bool:
    """Fork one program, say its number, and how it ended. False when no order will come any more.

    An order is [cpu_seconds, memory_bytes], with the descriptors of source, stdin, stdout, stderr and setup.
    """
    order, descriptors, _, _ = socket.recv_fds(orders, 200, 5)
    if not descriptors:
        return False
    zygote = os.getpid()
    child = os.fork()
    if child == 0:
        _child(order, descriptors, confine, zygote)
    for descriptor in descriptors:
        os.close(descriptor)
    orders.send(json.dumps(child).encode())
    _, status, usage = os.wait4(child, 0)
    orders.send(json.dumps([status, usage.ru_utime + usage.ru_stime]).encode())
    return True


# --- in the fork ------------------------------------------------------------------------------------------------------


def _child(order: bytes, descriptors: list[int], confine: Any, zygote: int) -> NoReturn:
    code = 1
    try:
        text, stdin, stdout, stderr, setup = descriptors
        try:
            with open(text, "rb") as file:
                source = file.read().decode("utf-8", "surrogatepass")
            for descriptor, target in ((stdin, 0), (stdout, 1), (stderr, 2)):
                os.dup2(descriptor, target)
            confine.enter(*json.loads(order), zygote)
        except BaseException as problem:
            os.write(setup, f"{problem}"[:1000].encode("utf-8", "replace") or b"unknown")
            os._exit(1)
        os.closerange(3, 2**16)  # the zygote's socket, and `setup`: from here on no failure is the machine's
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
