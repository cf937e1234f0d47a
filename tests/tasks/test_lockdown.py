"""The system call filter, run here by a small BPF machine for both processors; `test_sandbox` runs it in the kernel."""

from __future__ import annotations

import os
import platform
import re
import struct
import sys
from pathlib import Path

import pytest

from verl_cov.tasks.code import lockdown, seccomp

MACHINES = list(seccomp.MACHINES)
PID = 4321
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


def decide(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """What the kernel would answer to a system call."""
    code = seccomp.seccomp_filter(machine, PID)
    steps = [struct.unpack_from("=HBBI", code, offset) for offset in range(0, len(code), 8)]
    assert len(steps) <= 4096  # the kernel's limit
    arch = seccomp.MACHINES[machine][1] if arch is None else arch
    padded = [argument & (2**64 - 1) for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("=iIQ6Q", number, arch, 0, *padded)
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, operand = steps[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x06:
            return operand
        else:
            taken = {
                0x15: accumulator == operand,
                0x35: accumulator >= operand,
                0x45: bool(accumulator & operand),
            }[operation]
            at += if_true if taken else if_false


def numbers(machine: str) -> dict[str, int]:
    column = seccomp.MACHINES[machine][0]
    tables = {**seccomp.ALLOWED, **seccomp.CONDITIONAL, **seccomp.UNKNOWN}
    return {name: row[column] for name, row in tables.items() if row[column] is not None}


@pytest.mark.parametrize("machine", MACHINES)
def test_only_the_listed_calls_are_allowed(machine: str):
    listed = {row[seccomp.MACHINES[machine][0]] for row in seccomp.ALLOWED.values()} - {None}
    assert {number for number in range(1000) if decide(machine, number) == ALLOW} - listed <= {
        numbers(machine)[name]
        for name in ("open", "openat", "fcntl", "prlimit64")  # with all arguments 0
        if name in numbers(machine)
    }
    assert all(decide(machine, number) == ALLOW for number in listed)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    "flags", [os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_TMPFILE | os.O_RDWR]
)
def test_files_open_for_reading_only(machine: str, flags: int):
    number = numbers(machine)["openat"]
    assert decide(machine, number, -100, 0, os.O_CLOEXEC) == ALLOW
    assert decide(machine, number, -100, 0, flags) == EPERM
    assert decide(machine, number, -100, 0, flags | 7 << 32) == EPERM  # the kernel takes 32 bits of them


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_and_no_processes(machine: str):
    clone = numbers(machine)["clone"]
    assert decide(machine, clone, 0x3D0F00) == ALLOW  # what pthread_create asks for
    assert decide(machine, clone, 17) == EPERM  # fork: SIGCHLD
    assert decide(machine, clone, 17 | 0x10000000) == EPERM  # with a new user name space
    assert decide(machine, clone, 17 | 0x10000 << 32) == EPERM  # CLONE_THREAD in the half that is not looked at
    assert decide(machine, numbers(machine)["clone3"]) == ENOSYS
    assert decide(machine, numbers(machine)["openat2"]) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["kill", "tgkill"])
def test_signals_to_itself_only(machine: str, name: str):
    number = numbers(machine)[name]
    assert decide(machine, number, PID, 15) == ALLOW
    for other in (0, -1, 1, PID + 1, -PID):
        assert decide(machine, number, other, 15) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_another_table_kills(machine: str):
    read = numbers(machine)["read"]
    assert decide(machine, read) == ALLOW
    for _, arch, _, _ in seccomp.MACHINES.values():
        if arch != seccomp.MACHINES[machine][1]:
            assert decide(machine, read, arch=arch) == KILL
    assert decide(machine, read, arch=0x40000003) == KILL  # i386, by int 0x80
    if machine == "x86_64":
        assert decide(machine, read | 0x40000000) == KILL  # x32


@pytest.mark.parametrize("machine", MACHINES)
def test_controls_with_side_effects(machine: str):
    table = numbers(machine)
    assert decide(machine, table["ioctl"], 0, 0x5401) == ALLOW
    assert decide(machine, table["ioctl"], 0, 0x5412) == EPERM  # TIOCSTI types into the terminal
    assert decide(machine, table["fcntl"], 0, 8) == EPERM  # F_SETOWN: signals to others
    assert decide(machine, table["fcntl"], 0, 1031) == EPERM  # F_SETPIPE_SZ
    assert decide(machine, table["prctl"], 15) == ALLOW
    assert decide(machine, table["prctl"], 1) == EPERM  # PR_SET_PDEATHSIG: to outlive its parent
    assert decide(machine, table["prctl"], 4) == EPERM  # PR_SET_DUMPABLE
    assert decide(machine, table["prlimit64"], 0) == ALLOW
    assert decide(machine, table["prlimit64"], 1) == EPERM


HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+)\s+(\d+)"),
    "aarch64": ("/usr/include/asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+)\s+(\d+)"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_tables_are_the_kernels(machine: str):
    path, pattern = HEADERS[machine]
    if not os.path.exists(path):
        pytest.skip(f"no {path} here")
    kernel = {name: int(number) for name, number in re.findall(pattern, Path(path).read_text())}
    if machine == "aarch64":
        kernel["newfstatat"] = kernel.pop("fstatat")
    known = {name: number for name, number in numbers(machine).items() if name in kernel}
    assert known == {name: kernel[name] for name in known}
    assert not numbers(machine).keys() - kernel.keys() - {"openat2", "faccessat2", "close_range", "clone3", "rseq"}
    # What the architecture has under our names and our table denies it, would break programs on it alone.
    assert not {name for name in {**seccomp.ALLOWED, **seccomp.CONDITIONAL} if name in kernel} - known.keys()
    _, _, *numbers_of_two = seccomp.MACHINES[machine]
    assert numbers_of_two == [kernel["seccomp"], kernel["capset"]]


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(lockdown.Unavailable, match="riscv64"):
        seccomp.seccomp_filter("riscv64", 1)
    with monkeypatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "ppc64le")
        with pytest.raises(lockdown.Unavailable, match="ppc64le"):
            lockdown.Lockdown()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(lockdown.Unavailable, match="darwin"):
        lockdown.Lockdown()
