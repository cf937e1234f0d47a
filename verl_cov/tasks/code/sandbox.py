"""Runs an untrusted Python program, confined: `run(source, stdin)`.

    run("print(int(input()) + 1)", "41\\n").stdout      # "42\\n"

The program runs as `__main__` in a fresh process, which ends within its limits. It has the standard library and nothing
else: no site-packages, so that a verdict does not depend on what is installed beside verl, and so that no test spends
seconds on `import torch`. It reads stdin and writes to stdout and stderr. It cannot write a file, open a socket (nor a
socketpair, so asyncio does not start), start a process or a program, signal or trace another process, outlive its
parent, nor use more CPU seconds, wall seconds, memory or output than `Limits` gives it. Threads are allowed. `lockdown`
says how. There is no way to run a program without it: where the machine cannot confine, `SandboxUnavailable` is raised.

What it does not protect against:

- Looking. `stat` works on any path that its user can reach, so the existence, size and dates of files are visible.
- Reading. Where the kernel has Landlock (`landlock()` says whether), a program reads only Python's files and shared
  libraries. Elsewhere it reads whatever the trainer's user can read: data sets, keys, and through /proc the environment
  of that user's other processes (not those of a root trainer: the program has lost root's capabilities). It can send
  them nowhere but to its stdout.
- Load. Programs use CPU and memory up to their limits, as many of them at a time as there are cores, over all processes
  of the user on the machine; out of memory, the kernel ends them first.
- Timing and other side channels, and holes in the kernel. Against hostile users, not only clumsy policies, use a
  virtual machine.
- Reward hacking inside a test's process: see `verifier`.

Hash seeds are fixed (sets repeat their order), `random` is not. The module needs only the standard library.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from verl_cov.tasks.node_places import NodePlaces
from verl_cov.tasks.process_pool import ChildFailed, ProcessPool, usable_cpus


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    cpu_seconds: of all its threads together; a whole number of at least 1, since the kernel counts in seconds.
    wall_seconds: for programs that sleep or wait. Well above cpu_seconds, so that a busy machine changes no verdict.
    memory_bytes: address space. The interpreter alone takes 50 MiB, a thread up to 70.
    threads: at a time, the first one included. A program with more is killed, 10 ms later at most by an idle machine.
    output_bytes: stdout; a program that writes more is killed. Of stderr the last 4 KiB are kept.
    """

    cpu_seconds: int = 4
    wall_seconds: float = 20.0
    memory_bytes: int = 2**30
    output_bytes: int = 2**20
    threads: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.cpu_seconds, int) or self.cpu_seconds < 1:
            raise ValueError(f"cpu_seconds must be a whole number of at least 1, got {self.cpu_seconds!r}")
        if not self.wall_seconds > 0:
            raise ValueError(f"wall_seconds must be positive, got {self.wall_seconds!r}")
        if self.memory_bytes < 2**27:
            raise ValueError(f"memory_bytes must be at least 128 MiB, got {self.memory_bytes!r}")
        if not isinstance(self.threads, int) or self.threads < 1:
            raise ValueError(f"threads must be a whole number of at least 1, got {self.threads!r}")
        if not 1 <= self.output_bytes <= 2**23:
            raise ValueError(f"output_bytes must be 1 to 8 MiB, got {self.output_bytes!r}")


@dataclass(frozen=True)
class Result:
    """How a program ended.

    status: `ok`: exit code 0; `error`: another exit code, or a crash; `timeout`: CPU or wall time was up; `output`: it
        wrote too much; `threads`: it had too many.
    exit_code: minus the signal's number if a signal ended it.
    stdout, stderr: as UTF-8, with what is not UTF-8 replaced.
    cpu_seconds, wall_seconds: what it used.
    """

    status: Literal["ok", "error", "timeout", "output", "threads"]
    exit_code: int
    stdout: str
    stderr: str
    cpu_seconds: float
    wall_seconds: float


class SandboxUnavailable(RuntimeError):
    """This machine cannot confine a program."""


def run(source: str, stdin: str = "", limits: Limits | None = None) -> Result:
    """Run `source` as a program with `stdin`. Thread-safe; blocks while as many programs run as there are cores, in
    all processes of this user on this machine together.

    Every source gets a Result: one that does not compile ends with `error`. Raises SandboxUnavailable.
    """
    limits = limits or Limits()
    _prove()
    return Result(**_ask({"source": source, "stdin": stdin, **asdict(limits)}, limits.wall_seconds))


def landlock() -> bool:
    """Whether programs are kept from reading files. Raises SandboxUnavailable."""
    return run("open('/etc/passwd').read()").status != "ok"


def _advice(reason: str) -> str:
    return (
        f"programs cannot be confined here: {reason}. The code verifier needs Linux on x86-64 or arm64 with seccomp "
        "(CONFIG_SECCOMP_FILTER, and a container that allows prctl and seccomp, as Docker's default profile does); "
        "run the reward workers on such a machine, or train without code tasks"
    )


def _command() -> list[str]:
    return [sys.executable, "-S", "-s", "-B", str(Path(__file__).with_name("sandbox_server.py"))]


def _environment() -> dict[str, str]:
    # Not the trainer's: it holds keys. MALLOC_ARENA_MAX: each arena reserves 64 MiB of address space.
    fixed = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LANG": "C.UTF-8", "PATH": "", "MALLOC_ARENA_MAX": "2"}
    return fixed | {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TZ") if name in os.environ}


_PLACES = NodePlaces("programs", usable_cpus())
_POOL = ProcessPool(_command, usable_cpus(), _environment, _PLACES.one)  # starts nothing yet
_proving = threading.Lock()
_proved = False


_PROBE = """
import os, socket
def refused(attempt):
    try:
        attempt()
    except OSError:
        return True
    return False
def write():
    open(os.devnull, "w")
def fork():
    if os.fork() == 0:
        os._exit(0)
print([name.__name__ for name in (write, fork, socket.socket) if not refused(name)])
"""


def _prove() -> None:
    """Once in each process: check that programs are confined. Some emulators report success and confine nothing."""
    global _proved
    with _proving:
        if not _proved:
            answer = _ask({"source": _PROBE, "stdin": "", **asdict(Limits())}, Limits().wall_seconds)
            if answer["stdout"].strip() != "[]":
                raise SandboxUnavailable(_advice(f"a probe got past the filter: {answer}"))
            _proved = True


def _ask(request: dict[str, Any], wall_seconds: float) -> dict[str, Any]:
    """The server's answer. A server that dies (the machine was out of memory) is replaced once, then it is an error."""
    for last in (False, True):
        try:
            # The server enforces the limits; this one catches a server that hangs.
            answer = _POOL.call(request, wall_seconds + 30)
            break
        except ChildFailed as failure:
            if last:
                raise SandboxUnavailable(_advice(f"its server fails: {failure}")) from None
    if "unavailable" in answer:
        raise SandboxUnavailable(_advice(answer["unavailable"]))
    return answer
