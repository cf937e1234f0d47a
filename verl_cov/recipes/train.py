"""Run one training to its end: start verl's trainer as a process of its own, follow it, stop it with all it started.

The training gets a session of its own, in which Ray's and vLLM's processes stay. Signals go to that session only: to no
other process of this machine, and to no Ray cluster that ran before.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from verl_cov.law.readers import parse_line
from verl_cov.recipes.launch import Launch
from verl_cov.recipes.log import LogTail, first_error
from verl_cov.recipes.progress import Progress, Record

GRACE_S = 20.0  # between SIGINT and SIGTERM, and between SIGTERM and SIGKILL; Ray shuts down in 5 to 10 s


class TrainingFailed(Exception):
    """The training ended with an error; the message shows what began it. code: the exit code to pass on."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def train(launch: Launch, digest: str, progress: Progress, *, grace_s: float = GRACE_S, poll_s: float = 0.5) -> None:
    """Run the training to its end; its output goes to `launch.log`, its records and phases to `progress`.

    Raises ValueError if the folder is in use, TrainingFailed, and KeyboardInterrupt if the user stops it. Whatever the
    end, nothing that the training started is left running.
    """
    launch.folder.mkdir(parents=True, exist_ok=True)
    with _lock(launch.folder) as lock:
        launch.record(digest)
        with launch.log.open("ab") as file:
            file.write(f"==== metrics in {launch.metrics.name} ====\n".encode())
            file.flush()
            start = file.tell()
            # A file and no pipe: a training whose runner was killed does not die of SIGPIPE in mid-checkpoint.
            process = subprocess.Popen(
                launch.argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **launch.environment},
                start_new_session=True,
                pass_fds=(lock,),
            )
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"runner {os.getpid()}, training {process.pid}\n".encode(), 0)
            _follow(process, launch, start, progress, poll_s)
        finally:
            stop(process, grace_s, progress.say)
        if process.returncode != 0:
            raise _failure(launch, start, process.returncode, progress.step)
        launch.record_end(digest)


def _follow(process: subprocess.Popen[bytes], launch: Launch, start: int, progress: Progress, poll_s: float) -> None:
    log, metrics = LogTail(launch.log, start), MetricsTail(launch.metrics)
    while True:
        ended = process.poll() is not None  # before reading: what it said before it ended is then read below
        fresh = log.poll()
        progress.update(log.phase, log.total, metrics.poll(), fresh)
        if ended:
            return
        time.sleep(poll_s)


class MetricsTail:
    """Reads verl's file of metrics while it grows."""

    def __init__(self, path: Path):
        self._path = path
        self._offset, self._rest = 0, b""

    def poll(self) -> list[Record]:
        """The records that were completed since the last call. A line that is still being written waits."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(fresh)
        *lines, self._rest = (self._rest + fresh).split(b"\n")
        return [record for line in lines if (record := parse_line(line)) is not None]


def _failure(launch: Launch, start: int, code: int, step: int | None) -> TrainingFailed:
    with launch.log.open("rb") as file:
        earlier = file.read(start).count(b"\n")
        log = file.read().decode(errors="replace")
    error = first_error(log)
    if error is not None:
        where, shown = f"The error that began it, {launch.log}:{earlier + error[0]}:", error[1]
    else:
        where, shown = "The log has no traceback. Its end:", log.rstrip().splitlines()[-15:] or ["(it is empty)"]
    when = "before its first step" if not step else f"after step {step}"
    indented = "\n".join(f"    {line}" for line in shown)
    message = (
        f"{launch.name} failed ({_describe(code)}) {when}. {where}\n{indented}\nThe whole log: {launch.log}\n"
        "Once the cause is fixed, the same command resumes."
    )
    return TrainingFailed(message, code if code > 0 else 128 - code)  # a signal as a shell tells it: 128 + its number


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}" + (", out of memory?" if code == -signal.SIGKILL else "")
    except ValueError:
        return f"killed by signal {-code}"


def stop(process: subprocess.Popen[bytes], grace_s: float, say: Callable[[str], None]) -> None:
    """Stop the training: SIGINT, on which Ray shuts down, then SIGTERM, then SIGKILL; then what is left of its session.

    A second Ctrl-C meanwhile goes on to the next signal at once.
    """
    for number, wait_s in ((signal.SIGINT, grace_s), (signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        if process.poll() is not None:
            break
        say(f"stopping the training ({number.name})")
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(wait_s)
    # Ray's and vLLM's processes have process groups of their own. Left over, they hold memory and ports that the next
    # run needs. Ray ends its own within seconds of its driver: let it.
    _wait_for_session(process.pid, grace_s / 2)
    for number, wait_s in ((signal.SIGTERM, grace_s / 4), (signal.SIGKILL, 5.0)):
        for pid in session_members(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        _wait_for_session(process.pid, wait_s)


def _wait_for_session(session: int, limit_s: float) -> None:
    """Until it is empty, the limit is over, or the user presses Ctrl-C once more."""
    deadline = time.monotonic() + limit_s
    with suppress(KeyboardInterrupt):
        while session_members(session) and time.monotonic() < deadline:
            time.sleep(0.1)


def session_members(session: int) -> list[int]:
    """The living processes of a session; its number is the pid of the process that began it.

    The kernel gives a pid to nobody else while a session or a process group of that number has members.
    """
    members = []
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            if os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                members.append(pid)
    return members


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Hold the folder; yields a descriptor for the training to inherit. Raises ValueError if another one holds it.

    The lock lasts as long as any process has it open: if the runner alone is killed, its training still holds it.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 100).decode(errors="replace").strip() or "by an unknown process"
            raise ValueError(f"{folder} is in use ({holder}): wait for that training, or end it") from None
        yield descriptor
    finally:
        os.close(descriptor)


def in_use(folder: Path) -> bool:
    """Whether a training of this machine holds the folder. Asks for its processes: trying the lock would take it."""
    lock = folder / ".lock"
    words = lock.read_text().split() if lock.is_file() else []
    return bool(words) and words[-1].isdigit() and bool(session_members(int(words[-1])))


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """SIGTERM (`scancel`, `ray job stop`) and a closed terminal stop the training as Ctrl-C does.

    A signal that is ignored (nohup) stays ignored.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, handler in before.items():
            if handler is signal.SIG_DFL:
                signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
