"""The system calls that a confined program keeps, as the kernel's filter (seccomp). Linux on x86-64 and arm64.

The list has what a single Python process needs; anything else fails with EPERM. No socket of any kind, no new process
(threads are allowed), no program start, no signal to others, no file opened for writing, nothing created, renamed,
removed or changed, no tracing, no mounts, no name spaces, no keys, no io_uring, no memfd. A call through another
architecture's table (i386, x32) kills the process.

Needs only the standard library: it runs in an interpreter without site-packages.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

# Numbers: (x86-64, arm64); None: the architecture does not have it.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # memory
    "brk": (12, 214),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    # open files, and stat on others
    "access": (21, None),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fadvise64": (221, 223),
    "fstat": (5, 80),
    "getcwd": (79, 17),
    "getdents": (78, None),
    "getdents64": (217, 61),
    "lseek": (8, 62),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "pread64": (17, 67),
    "pselect6": (270, 72),
    "read": (0, 63),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "readv": (19, 65),
    "select": (23, None),
    "stat": (4, None),
    "statx": (332, 291),
    "write": (1, 64),
    "writev": (20, 66),
    # time
    "alarm": (37, None),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "getitimer": (36, 102),
    "gettimeofday": (96, 169),
    "nanosleep": (35, 101),
    "setitimer": (38, 103),
    "time": (201, None),
    "times": (100, 153),
    # threads and signals of its own
    "exit": (60, 93),
    "exit_group": (231, 94),
    "futex": (202, 98),
    "pause": (34, None),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigpending": (127, 136),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigsuspend": (130, 133),
    "rt_sigtimedwait": (128, 137),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "sigaltstack": (131, 132),
    "wait4": (61, 260),
    "waitid": (247, 95),
    # who it is and where it runs
    "getcpu": (309, 168),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getgroups": (115, 158),
    "getpgid": (121, 155),
    "getpgrp": (111, None),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "getresgid": (120, 150),
    "getresuid": (118, 148),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "getsid": (124, 156),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "setrlimit": (160, 164),  # only downwards
    "sysinfo": (99, 179),
    "uname": (63, 160),
}

# Allowed with some arguments only: see `_conditions`.
CONDITIONAL: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "kill": (62, 129),
    "open": (2, None),
    "openat": (257, 56),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "tgkill": (234, 131),
}

# Answered with "no such call": the C library then falls back to the older one, whose arguments a filter can see.
UNKNOWN: dict[str, tuple[int | None, int | None]] = {"clone3": (435, 435), "openat2": (437, 437)}

# machine: column of the tables, AUDIT_ARCH_*, number of seccomp(), number of capset()
MACHINES = {"x86_64": (0, 0xC000003E, 317, 126), "aarch64": (1, 0xC00000B7, 277, 91)}

# O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | O_APPEND: on both machines alike. O_TMPFILE needs one of the first two;
# O_RDONLY | O_TRUNC empties a file.
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000
_CLONE_THREAD = 0x10000
_FCNTL = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_PRCTL = (15, 16)  # PR_SET_NAME, PR_GET_NAME


class Unavailable(Exception):
    """This machine cannot confine a process; the message says what is missing."""


# Classic BPF over `struct seccomp_data` {int nr; u32 arch; u64 ip; u64 args[6]}: (operation, jump if true, jump if
# false, operand). Jumps count instructions to skip.
_Step = tuple[int, int, int, int]
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL: _Step = (_RETURN, 0, 0, 0x80000000)
_ALLOW: _Step = (_RETURN, 0, 0, 0x7FFF0000)
_DENY: _Step = (_RETURN, 0, 0, 0x00050000 | errno.EPERM)
_NO_SUCH_CALL: _Step = (_RETURN, 0, 0, 0x00050000 | errno.ENOSYS)


def _argument(index: int) -> _Step:
    """Load the low half of an argument (both machines are little-endian): the kernel reads 32 bits of those we test."""
    return (_LOAD, 0, 0, 16 + 8 * index)


def _one_of(argument: int, values: Iterable[int]) -> list[_Step]:
    return [_argument(argument), *(step for value in values for step in ((_EQUAL, 0, 1, value), _ALLOW)), _DENY]


def _without(argument: int, bits: int) -> list[_Step]:
    return [_argument(argument), (_ANY_BIT, 0, 1, bits), _DENY, _ALLOW]


def _conditions(pid: int) -> dict[str, list[_Step]]:
    return {
        "clone": [_argument(0), (_ANY_BIT, 0, 1, _CLONE_THREAD), _ALLOW, _DENY],
        "fcntl": _one_of(1, _FCNTL),
        "ioctl": _one_of(1, _IOCTL),
        "kill": _one_of(0, (pid,)),  # not 0 or -1, which mean many
        "open": _without(1, _WRITING),
        "openat": _without(2, _WRITING),
        "prctl": _one_of(0, _PRCTL),
        "prlimit64": _one_of(0, (0,)),
        "tgkill": _one_of(0, (pid,)),
    }


def seccomp_filter(machine: str, pid: int) -> bytes:
    """The BPF program for process `pid` on `machine`. Raises Unavailable on a machine without a table."""
    if machine not in MACHINES:
        raise Unavailable(f"no system call table for {machine!r} processors, only for {', '.join(MACHINES)}")
    column, audit_arch, _, _ = MACHINES[machine]
    steps: list[_Step] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit_arch), _KILL, (_LOAD, 0, 0, 0)]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, 0x40000000), _KILL]  # the x32 table: the same calls under other numbers
    bodies = {name: [_ALLOW] for name in ALLOWED} | _conditions(pid) | {name: [_NO_SUCH_CALL] for name in UNKNOWN}
    numbers = {**ALLOWED, **CONDITIONAL, **UNKNOWN}
    for name, body in bodies.items():
        number = numbers[name][column]
        if number is not None:
            steps += [(_EQUAL, 0, len(body), number), *body]
    steps.append(_DENY)
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
