"""Changing files of an installation: one process at a time, each file whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from verl_cov.patch import PatchError

LOCK = ".verl_cov_patch.lock"
WAIT = 60.0  # seconds for another process; a patch takes a fraction of one

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone in this folder, other nodes of a shared disk included, and no lock file is left. Raises PatchError.

    flock, as the kernel lets go of it when a process is killed. filelock's releases differ in whether and when they
    remove the file, which has to happen under the lock; its SoftFileLock stands in where a file system has no flock.
    """
    path = folder / LOCK
    end = time.monotonic() + WAIT
    while (file := _try(path)) is None:
        if time.monotonic() > end:
            raise PatchError(f"{path} is locked by {_holder(path)}: wait until it is done")
        time.sleep(0.05)
    if file < 0:
        with _soft(path):
            yield
        return
    try:
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _try(path: Path) -> int | None:
    """The descriptor of the locked file, None while it is somebody else's, -1 if the file system has no locks."""
    import fcntl

    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink:  # else its last owner removed it since it was opened: it keeps nobody out
            return file
    except OSError as error:
        if error.errno in _NO_LOCKS:
            os.close(file)
            path.unlink(missing_ok=True)
            return -1
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            os.close(file)
            raise
    os.close(file)
    return None


@contextmanager
def _soft(path: Path) -> Iterator[None]:
    try:  # of the extra `tasks`; nearly every file system has flock, and needs none of this
        from filelock import SoftFileLock, Timeout
    except ModuleNotFoundError:
        raise PatchError(f"{path.parent} is on a file system without locks: pip install filelock") from None
    path = path.with_name(f"{path.name}.soft")
    lock = SoftFileLock(path, timeout=WAIT)
    try:
        lock.acquire()
    except Timeout:
        raise PatchError(f"{path} is locked: wait, or if no `verl-cov patch` is running anywhere, rm {path}") from None
    try:
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text() or "another process"
    return "another process"


def check_writable(folders: set[Path]) -> None:
    """Raises PatchError naming the first folder that takes no new file. The nearest that exists stands for it."""
    for folder in sorted(folders):
        while not folder.exists():
            folder = folder.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PatchError(
                f"{folder} is read-only for you: run this as the owner of that installation, or make one of your own"
            )


def temporary(path: Path) -> Path:
    """Where a file is written before it takes its place: a fixed name, so that a killed process's can be removed."""
    return path.with_name(f".{path.name}.verl_cov_patch")


def write(path: Path, content: bytes, like: Path) -> None:
    """Write a file, on the disk when this returns; mode and owner as those of another."""
    with path.open("wb") as file:
        file.write(content)
        as_of = like.stat()
        os.fchmod(file.fileno(), as_of.st_mode & 0o7777)
        with suppress(OSError):  # root only; whoever else installed it owns it
            os.fchown(file.fileno(), as_of.st_uid, as_of.st_gid)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, content: bytes, like: Path) -> None:
    """Give a file new content at once. The old file is left alone: uv links files of many environments together."""
    new = temporary(path)
    try:
        write(new, content, like)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(folder: Path) -> None:
    """Names made in a folder are on the disk when this returns."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def remove(path: Path, top: Path) -> None:
    """Remove a file and its bytecode, and the folders below top that are empty then."""
    path.unlink(missing_ok=True)
    forget_bytecode(path)
    for folder in path.parents:
        if folder == top or top not in folder.parents:
            break
        with suppress(FileNotFoundError):
            if any(folder.iterdir()):
                sync(folder)
                break
            folder.rmdir()


def forget_bytecode(path: Path) -> None:
    """Remove a module's bytecode: Python compares times by the second, and some installations do not compare."""
    cache = path.parent / "__pycache__"
    for file in cache.glob(f"{path.stem}.*.pyc"):
        with suppress(OSError):
            file.unlink()
    with suppress(OSError):  # if that was all
        cache.rmdir()


def remove_tree(folder: Path) -> None:
    """Remove a folder, if it is there."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
