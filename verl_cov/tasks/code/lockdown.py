"""Takes from this process, for good, what a program that nobody has read must not have. Linux only.

`sandbox_server` calls `Lockdown.enter` in the process that is about to run the program. Four layers:

- system calls: the short list of `seccomp`.
- Landlock, where the kernel has it (5.13 and later, if enabled): only Python's own files and shared libraries can be
  read; /proc, home directories, data sets and credentials cannot be opened. Landlock does not cover `stat`: that a file
  exists, its size and its dates are visible.
- privileges: all capabilities are dropped and none can come back. Without them, even a process of root cannot raise a
  limit.
- resource limits: CPU seconds, address space, open files; no file is written, no core dumped.

The kernel enforces all of it, so ctypes inside the program cannot undo it. Does not require root.

Needs only the standard library, and imports its neighbour relatively: it runs in an interpreter without site-packages.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys

from .seccomp import MACHINES, Unavailable, seccomp_filter

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}  # by ABI version


def readable_paths() -> list[str]:
    """The paths that Python needs to import its standard library, and the time zones."""
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if os.path.isabs(path)]
    return [
        os.path.dirname(os.path.realpath(os.__file__)),
        *(os.path.join(sys.base_prefix, name) for name in ("lib", "lib64")),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime"),
        *("/dev/null", "/dev/zero", "/dev/urandom"),
        *libraries,
    ]


class Lockdown:
    """The confinement: prepared once in the parent, entered once in each child.

    Raises Unavailable where seccomp is missing. `landlock` says whether reading is confined too.
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

    def guard(self, parent: int) -> None:
        """From now on this process ends with its `parent`, and is hidden. Raises Unavailable if the kernel refuses."""
        self._prctl("PR_SET_PDEATHSIG", 1, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)
        self.hide()

    def hide(self) -> None:
        """Let no program look into this process through /proc, nor into its forks, not even one of the same user.

        Without Landlock, programs that run side by side could else read each other's memory and output.
        """
        self._prctl("PR_SET_DUMPABLE", 4, 0)

    def enter(self, cpu_seconds: int, memory_bytes: int, parent: int) -> None:
        """Confine this process, which must have one thread. Raises Unavailable if the kernel refuses a layer."""
        self.guard(parent)
        limits = {
            # Soft and hard limits are equal: at the soft one the program gets a signal that it could ignore.
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
        """A descriptor of the rules; None where the kernel has no Landlock."""
        abi = self._libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
        if abi < 1:
            return None
        # What is handled is forbidden unless a rule allows it: the whole file system; TCP (ABI 4); abstract sockets and
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
