"""What a sandboxed process takes from itself, for ever: system calls, files, privileges, memory and time. Linux only.

`sandbox_server` calls `Lockdown.enter` in the process that is about to run a program nobody has read. Four layers:

- seccomp: a list of the system calls that a single Python process needs; anything else fails with EPERM. No socket of
  any kind, no new process (threads are), no program start, no signal to others, no file opened for writing, nothing
  created, renamed, removed or changed, no tracing, no mounts, no name spaces, no keys, no io_uring, no memfd. A call
  through another architecture's table (i386, x32) kills the process.
- Landlock, where the kernel has it (5.13 and later, if enabled): reading is confined to Python's own files and shared
  libraries; /proc, home directories, data sets and credentials cannot be opened. Landlock does not cover `stat`: that a
  file exists, its size and its dates are visible.
- privileges: all capabilities are dropped and none can come back. Without them a process of root cannot raise a limit.
- resource limits: CPU seconds, address space, open files; no written file, no core dump.

The kernel keeps all of it, so ctypes inside the program cannot undo it. Nothing here is needed to be root for.

Only the standard library, and no package of ours: it runs in an interpreter without site-packages.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable

# --- seccomp: which system calls --------------------------------------------------------------------------------------

# Numbers: (x86-64, arm64); None: the architecture does not have it.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # memory
    "brk": (12, 214),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    # open files, and looking at others
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
    # what it is and where
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

# Allowed by their arguments: see `_conditions`.
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

# "No such call": the C library then takes the older one, whose arguments a filter can see.
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
    """Load the low half of an argument (both machines are little-endian). The kernel uses 32 bits of all we test."""
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


# --- Landlock: which files --------------------------------------------------------------------------------------------

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}  # by ABI version


def readable_paths() -> list[str]:
    """What Python needs to import its standard library, and the time zones."""
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if os.path.isabs(path)]
    return [
        os.path.dirname(os.path.realpath(os.__file__)),
        *(os.path.join(sys.base_prefix, name) for name in ("lib", "lib64")),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime"),
        *("/dev/null", "/dev/zero", "/dev/urandom"),
        *libraries,
    ]


# --- all together -----------------------------------------------------------------------------------------------------


class Lockdown:
    """Prepared once in the parent, entered once in each child.

    Raises Unavailable where seccomp is missing. `landlock` says whether reading will be confined too.
    """

    def __init__(self) -> None:
        self._machine = platform.machine()
        if sys.platform != "linux":
            raise Unavailable(f"it needs Linux, this is {sys.platform}")
        if sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8:
            raise Unavailable("it needs a 64-bit little-endian Python")
        seccomp_filter(self._machine, 0)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._ruleset = self._landlock_ruleset()
        self.landlock = self._ruleset is not None

    def enter(self, cpu_seconds: int, memory_bytes: int, parent: int) -> None:
        """Confine this process, which must have one thread. Raises Unavailable if the kernel refuses a layer."""
        self._prctl("PR_SET_PDEATHSIG", 1, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
        limits = {
            # Soft and hard alike: at the soft limit comes a signal that the program could ignore.
            resource.RLIMIT_CPU: cpu_seconds,
            resource.RLIMIT_AS: memory_bytes,
            resource.RLIMIT_STACK: 100 * 2**20,  # for recursion; more would run into the mappings below it
            resource.RLIMIT_NOFILE: 64,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_CORE: 0,
        }
        for limit, value in limits.items():
            _, hard = resource.getrlimit(limit)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))
        self._prctl("PR_SET_NO_NEW_PRIVS", 38, 1)
        if self._ruleset is not None:
            self._check("landlock_restrict_self", self._libc.syscall(_LANDLOCK_RESTRICT, self._ruleset, 0))
            os.close(self._ruleset)
        _, _, seccomp, capset = MACHINES[self._machine]
        header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
        self._check("capset", self._libc.syscall(capset, header, none))
        code = seccomp_filter(self._machine, os.getpid())
        buffer = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer))  # struct sock_fprog
        self._check("seccomp", self._libc.syscall(seccomp, 1, 0, program))  # 1: SECCOMP_SET_MODE_FILTER

    def _prctl(self, name: str, option: int, value: int) -> None:
        self._check(name, self._libc.prctl(option, *(ctypes.c_ulong(x) for x in (value, 0, 0, 0))))

    def _check(self, name: str, returned: int) -> int:
        if returned < 0:
            raise Unavailable(f"the kernel refuses {name}: {os.strerror(ctypes.get_errno())}")
        return returned

    def _landlock_ruleset(self) -> int | None:
        """A descriptor of the rules, None where the kernel has no Landlock."""
        abi = self._libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
        if abi < 1:
            return None
        # Handled, and so forbidden unless a rule allows it: all of the file system; TCP (ABI 4); abstract sockets and
        # signals to others (ABI 6).
        attributes = struct.pack("=QQQ", _RIGHTS[min(abi, 5)], 3, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]
        create = self._libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0)
        ruleset = self._check("landlock_create_ruleset", create)
        for path in readable_paths():
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            rights = _READ_FILE | _EXECUTE | (_READ_DIR if os.path.isdir(path) else 0)
            rule = struct.pack("=Qi", rights, descriptor)
            self._check("landlock_add_rule", self._libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0))
            os.close(descriptor)
        return ruleset
