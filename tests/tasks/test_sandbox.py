"""The sandbox against programs that mean harm. Each attack is first run without it, where it must work."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.tasks.test_process_pool import gone
from verl_cov.tasks.code import sandbox
from verl_cov.tasks.code.sandbox import Limits, SandboxUnavailable, run
from verl_cov.tasks.node_places import NodePlaces
from verl_cov.tasks.process_pool import ProcessPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

SHORT = Limits(cpu_seconds=1, wall_seconds=3)
WORKED = "attack worked"
X86 = platform.machine() == "x86_64"


def unconfined(program: str, seconds: float = 20) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=seconds, check=False)


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def chain(seconds: float = 10) -> tuple[int, int, int]:
    """The processes of a running program: its server, the zygote, and the program itself, which has confined itself."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            for server in children(os.getpid()):
                for zygote in children(server):
                    for program in children(zygote):
                        if "Seccomp:\t2" in Path(f"/proc/{program}/status").read_text():
                            return server, zygote, program
        except OSError:
            pass  # one has just ended
        time.sleep(0.02)
    raise AssertionError("no program is running")


class TestPrograms:
    """What an honest program may rely on."""

    def test_stdin_and_stdout(self):
        result = run("a, b = map(int, input().split())\nprint(a + b)", "40 2\n")
        assert (result.status, result.exit_code, result.stdout, result.stderr) == ("ok", 0, "42\n", "")
        assert 0 < result.cpu_seconds < 1
        assert 0 < result.wall_seconds < 5

    @pytest.mark.parametrize(
        ("program", "printed"),
        [
            ("import sys; print(sys.stdin.read().split())", "['7', 'ä']"),
            ("import sys; print(sys.stdin.buffer.readline())", "b'7\\n'"),
            ("print(open(0).read().split())", "['7', 'ä']"),
            ("print(open('/dev/stdin').read().split())", "['7', 'ä']"),
            ("import os; print(os.read(0, 1))", "b'7'"),
            ("import sys; sys.stdout.write('x'); exit()", "x"),
            ("quit() if __name__ == '__main__' else print('imported')", ""),
            ("import threading; threading.Thread(target=lambda: print('thread')).start()", "thread"),
            ("import atexit; atexit.register(print, 'the end')", "the end"),
            ("import os; os.write(1, b'raw'); os._exit(0)", "raw"),
            (
                "from concurrent.futures import ThreadPoolExecutor as T\nwith T(4) as t: print(sum(t.map(abs, [-1])))",
                "1",
            ),
            ("import time; time.sleep(0.01); print(time.time() > 0)", "True"),
            ("import zoneinfo, sqlite3, decimal, json, hashlib; print(hashlib.sha256(b'').hexdigest()[:4])", "e3b0"),
            ("import ctypes; print(ctypes.CDLL(None).abs(-3))", "3"),
            ("import sys; sys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(50000))", "50000"),
            ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nprint(A(1))", "A(x=1)"),
            ("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)", "A"),
            ("print('\\ud800' + chr(0x1F600))", "\\ud800\U0001f600"),
            ("import signal; signal.setitimer(signal.ITIMER_REAL, 5); print('alarm')", "alarm"),
            ("import random; print(0 <= random.random() < 1)", "True"),
        ],
    )
    def test_works(self, program: str, printed: str):
        result = run(program, "7\nä\n")
        assert (result.status, result.stdout.strip()) == ("ok", printed), result.stderr

    @pytest.mark.parametrize(
        ("program", "exit_code", "said"),
        [
            ("1/0", 1, "ZeroDivisionError"),
            ("print(", 1, "SyntaxError"),
            ("(" * 5000 + ")" * 5000, None, ""),
            ("\0", 1, ""),
            ("import sys; sys.exit(7)", 7, ""),
            ("raise SystemExit('why')", 1, ""),
            ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
            ("import os; os.abort()", -6, ""),
            ("import ctypes; ctypes.string_at(0)", -11, ""),
            ("import numpy", 1, "ModuleNotFoundError"),
            ("import verl_cov", 1, "ModuleNotFoundError"),
            ("import asyncio; asyncio.run(asyncio.sleep(0))", 1, "PermissionError"),
        ],
    )
    def test_failures_are_errors(self, program: str, exit_code: int | None, said: str):
        result = run(program)
        assert result.status == "error"
        assert exit_code is None or result.exit_code == exit_code
        assert said in result.stderr

    def test_each_run_starts_afresh(self):
        run("import builtins, math, sys; builtins.print = None; math.pi = 3; sys.stray = 1", "left")
        result = run("import math, sys; print(math.pi > 3.1, hasattr(sys, 'stray'), repr(input()))", "right")
        assert result.stdout.strip() == "True False 'right'"

    def test_sets_repeat_and_chance_does_not(self):
        orders = {run("print(set('abcdefghijkl'))").stdout for _ in range(3)}
        assert len(orders) == 1
        assert len({run("import random; print(random.random())").stdout for _ in range(3)}) == 3

    def test_the_trainers_secrets_are_not_in_the_environment(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("WANDB_API_KEY", "secret")
        sandbox._POOL.close()  # a server started from now on
        assert "secret" not in run("import os; print(dict(os.environ))").stdout

    def test_from_many_threads(self):
        with ThreadPoolExecutor(32) as threads:
            results = list(threads.map(lambda n: run("print(int(input()) ** 2)", str(n)), range(200)))
        assert [int(result.stdout) for result in results] == [n**2 for n in range(200)]

    def test_all_processes_share_the_cores(self):
        waiting = threading.Thread(target=run, args=("print(1)",))
        with ExitStack() as taken:
            for _ in range(sandbox._PLACES.count):
                taken.enter_context(NodePlaces("programs", sandbox._PLACES.count).one())
            waiting.start()
            waiting.join(0.5)
            assert waiting.is_alive()
        waiting.join(30)
        assert not waiting.is_alive()


class TestWriting:
    """No file is made, changed or removed."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "old").write_text("content")
        (tmp_path / "directory").mkdir()
        (tmp_path / "directory" / "file").write_text("content")
        return tmp_path

    @staticmethod
    def state(folder: Path) -> list[tuple[object, ...]]:
        found = sorted(folder.rglob("*"))
        return [(path, path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns) for path in found]

    @pytest.mark.parametrize(
        "attack",
        [
            "open('new', 'w').write('x')",
            "open('old', 'a').write('x')",
            "open('old', 'r+').write('x')",
            "open('new', 'x')",
            "import os; os.open('new', os.O_CREAT)",
            "import os; os.open('old', os.O_RDONLY | os.O_TRUNC)",
            "import pathlib; pathlib.Path('new').write_text('x')",
            "import pathlib; pathlib.Path('new').touch()",
            "import shutil; shutil.rmtree('directory')",
            "import shutil; shutil.copy('old', 'new')",
            "import os; os.rename('old', 'new')",
            "import os; os.replace('old', 'new')",
            "import os; os.remove('old')",
            "import os; os.rmdir('directory') if os.remove('directory/file') else 0",
            "import os; os.mkdir('new')",
            "import os; os.link('old', 'new')",
            "import os; os.symlink('old', 'new')",
            "import os; os.truncate('old', 0)",
            "import os; os.chmod('old', 0o777)",
            "import os; os.utime('old', (1, 1))",
            "import os; os.mkfifo('new')",
            "import sqlite3; sqlite3.connect('new').execute('create table t(x)')",
            "import tempfile; tempfile.NamedTemporaryFile(dir='.', delete=False)",
            "import ctypes; ctypes.CDLL(None).creat(b'new', 0o600)",
            "import ctypes; ctypes.CDLL(None).unlink(b'old')",
            "import ctypes; ctypes.CDLL(None).truncate(b'old', 1)",
            "import ctypes; ctypes.CDLL(None).syscall(437, -100, b'new', (ctypes.c_uint64 * 3)(0o101, 0o600, 0), 24)",
            "import threading; t = threading.Thread(target=lambda: open('new', 'w')); t.start(); t.join()",
        ],
    )
    def test_fails(self, folder: Path, attack: str):
        before = self.state(folder)
        for name in ("directory/file", "directory", "old", "new", "."):
            attack = attack.replace(f"'{name}'", f"'{folder}/{name}'")
        assert run(attack, limits=SHORT).status != "timeout"
        assert self.state(folder) == before
        unconfined(attack)
        assert self.state(folder) != before

    def test_extended_attributes(self, folder: Path):
        attack = f"import os; os.setxattr({str(folder / 'old')!r}, 'user.x', b'1')"
        assert "PermissionError" in run(attack).stderr
        if unconfined(attack).returncode == 0:
            assert os.listxattr(folder / "old") == ["user.x"]

    def test_no_memory_file(self):
        attack = f"import os; os.memfd_create('x'); print({WORKED!r})"
        assert WORKED in unconfined(attack).stdout
        assert WORKED not in run(attack).stdout

    def test_its_own_input_cannot_become_a_store(self):
        assert run("import os; os.lseek(0, 0, 0); os.write(0, b'x' * 10**6)", "input").status == "error"


class TestReading:
    def test_landlock_is_used_where_the_kernel_has_it(self):
        version = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)  # landlock_create_ruleset(VERSION)
        assert sandbox.landlock() == (version >= 1)

    def test_files_and_other_processes(self, tmp_path: Path):
        if not sandbox.landlock():
            pytest.skip("this kernel has no Landlock: reading is open, as documented")
        (tmp_path / "gold").write_text(WORKED)
        for attack in (
            f"print(open({str(tmp_path / 'gold')!r}).read())",
            f"import os; os.listdir({str(tmp_path)!r}); print({WORKED!r})",
            f"open('/proc/{os.getpid()}/environ', 'rb').read(); print({WORKED!r})",
            f"open('/proc/{os.getpid()}/mem', 'rb'); print({WORKED!r})",
            f"import os; open('/proc/%d/mem' % os.getppid(), 'rb'); print({WORKED!r})",
            f"import os; open('/proc/%d/fd/3' % os.getppid(), 'rb'); print({WORKED!r})",
        ):
            assert WORKED not in run(attack).stdout, attack
            if "getppid" not in attack:
                assert WORKED in unconfined(attack).stdout, attack

    def test_no_descriptor_is_left_open(self):
        program = "import os\nfor n in range(3, 5000):\n    try: os.fstat(n); print(n)\n    except OSError: pass"
        assert run(program).stdout == ""


class TestNetwork:
    def test_a_listener_hears_nothing(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(0.3)
            port = listener.getsockname()[1]
            attack = f"import socket; socket.create_connection(('127.0.0.1', {port})).sendall(b'x'); print({WORKED!r})"
            assert WORKED not in run(attack, limits=SHORT).stdout
            number = 41 if platform.machine() == "x86_64" else 198
            raw = f"import ctypes; print(ctypes.CDLL(None).syscall({number}, 2, 1, 0))"
            assert run(raw).stdout.strip() == "-1"
            with pytest.raises(TimeoutError):
                listener.accept()
            assert WORKED in unconfined(attack).stdout
            listener.accept()[0].close()

    @pytest.mark.parametrize(
        "attack",
        [
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            "import socket; socket.socket(socket.AF_UNIX)",
            "import socket; socket.socketpair()",
            "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
            "import multiprocessing as m; m.Pipe()",
        ],
    )
    def test_no_socket_of_any_kind(self, attack: str):
        attack += f"; print({WORKED!r})"
        assert WORKED in unconfined(attack).stdout
        assert WORKED not in run(attack).stdout


class TestProcesses:
    @pytest.mark.parametrize(
        "attack",
        [
            "import os\nif os.fork() == 0: os._exit(0)",
            "import subprocess; subprocess.run(['/bin/true'], check=True)",
            "import os; assert os.system('true') == 0",
            "import os; os.posix_spawn('/bin/true', ['true'], {})",
            "import multiprocessing as m\np = m.get_context('fork').Process(target=print); p.start(); p.join()",
            "import ctypes; assert ctypes.CDLL(None).vfork() >= 0",
            "import os; os.execv('/bin/echo', ['echo', 'attack worked'])",
            "import pty; pty.spawn('/bin/true')",
        ],
    )
    def test_none_is_started(self, attack: str):
        attack += f"\nprint({WORKED!r})"
        if "vfork" not in attack:  # it would return twice here, on one stack
            assert WORKED in unconfined(attack).stdout
        assert WORKED not in run(attack, limits=SHORT).stdout

    def test_none_outlives(self, tmp_path: Path):
        flag = tmp_path / "flag"
        attack = textwrap.dedent(
            f"""
            import os, time
            try:
                if os.fork():
                    os._exit(0)
                os.setsid()
            except OSError:
                pass
            time.sleep(1)
            open({str(flag)!r}, "w")
            """
        )
        assert run(attack, limits=Limits(cpu_seconds=1, wall_seconds=0.3)).status == "timeout"
        time.sleep(1.5)
        assert not flag.exists()
        unconfined(attack)
        deadline = time.monotonic() + 20
        while not flag.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert flag.exists()

    @pytest.mark.parametrize("whom", ["os.getppid()", "-1", "0", "-os.getppid()"])
    def test_the_parent_lives(self, whom: str):
        server = int(run("import os; print(os.getppid())").stdout)
        result = run(f"import os; os.kill({whom}, 9)")
        assert "PermissionError" in result.stderr
        assert not gone(server, 0.1)

    def test_another_process_lives(self):
        other = subprocess.Popen(["sleep", "60"])
        try:
            run(f"import os; os.kill({other.pid}, 9)")
            run(f"import ctypes; ctypes.CDLL(None).syscall(62, {other.pid}, 9)")
            run(f"import signal, os; signal.pidfd_send_signal(os.pidfd_open({other.pid}), 9)")
            assert other.poll() is None
            unconfined(f"import os; os.kill({other.pid}, 9)")
            assert other.wait(5) == -9
        finally:
            other.kill()

    def test_a_program_dies_with_the_trainer(self):
        script = textwrap.dedent(
            """
            import threading, time
            from verl_cov.tasks.code import sandbox
            print(sandbox.run("import os; print(os.getppid())").stdout.strip(), flush=True)
            limits = sandbox.Limits(cpu_seconds=50, wall_seconds=50)
            sandbox.run("while True: pass", limits=limits)
            """
        )
        trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert trainer.stdout is not None
        server = int(trainer.stdout.readline())
        children = Path(f"/proc/{server}/task/{server}/children")
        deadline = time.monotonic() + 10
        while not (program := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.02)
        trainer.send_signal(signal.SIGKILL)
        trainer.communicate()
        assert gone(int(program[0]))
        assert gone(server)

    @pytest.mark.parametrize("whom", [0, 1], ids=["server", "zygote"])
    def test_a_program_dies_with_the_server(self, whom: int):
        def long() -> None:
            with pytest.raises(SandboxUnavailable):
                run("while True: pass", limits=Limits(cpu_seconds=20, wall_seconds=20))

        sandbox._POOL.close()
        assert run("print(1)").status == "ok"
        thread = threading.Thread(target=long)
        thread.start()
        for _ in range(2):  # the first death is forgiven
            processes = chain()
            os.kill(processes[whom], signal.SIGKILL)
            assert all(map(gone, processes))
        thread.join(20)
        assert not thread.is_alive()
        assert run("print(1)").status == "ok"

    def test_a_zygote_that_dies_between_two_programs_is_replaced(self):
        sandbox._POOL.close()
        zygote = int(run("import os; print(os.getppid())").stdout)
        os.kill(zygote, signal.SIGKILL)
        assert gone(zygote)
        assert run("print(1)").stdout == "1\n"


class TestLimits:
    @pytest.mark.parametrize(
        "program",
        [
            "while True: pass",
            "import threading\n[threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start() for _ in range(4)]",
            pytest.param("9 ** 9 ** 9", marks=pytest.mark.nightly),
            "import os; os.close(0); os.close(1); os.close(2)\nwhile True: pass",
            pytest.param("import re; re.match('(a+)+$', 'a' * 40 + 'b')", marks=pytest.mark.nightly),
            "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        ],
    )
    def test_cpu_time(self, program: str):
        started = time.monotonic()
        result = run(program, limits=SHORT)
        assert result.status == "timeout"
        assert result.cpu_seconds < 2.2
        assert time.monotonic() - started < SHORT.wall_seconds + 3

    @pytest.mark.parametrize(
        "program",
        [
            "import time\nwhile True: time.sleep(1000)",
            "import signal\nsignal.pause()",
            "import threading; threading.Event().wait()",
            "import os; os.closerange(0, 100)\nimport time; time.sleep(1000)",
            "import atexit, time; atexit.register(time.sleep, 1000)",
            "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nimport time; time.sleep(1000)",
        ],
    )
    def test_wall_time(self, program: str):
        started = time.monotonic()
        assert run(program, limits=Limits(wall_seconds=0.5)).status == "timeout"
        assert 0.5 <= time.monotonic() - started < 10

    def test_a_signal_of_the_limit_cannot_be_ignored(self):
        program = "import signal\nfor n in (24, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass"
        result = run(program, limits=Limits(cpu_seconds=1, wall_seconds=20))
        assert result.status == "timeout"
        assert result.wall_seconds < 15

    def test_the_time_limit_is_the_one_asked_for(self):
        program = "import time\nwhile time.process_time() < 1.3: pass\nprint('done')"
        assert run(program, limits=Limits(cpu_seconds=3)).stdout == "done\n"
        assert run("import time; time.sleep(1)", limits=Limits(wall_seconds=5)).status == "ok"

    @pytest.mark.parametrize(
        "program",
        [
            "x = 'a' * 2**31",
            "x = []\nwhile True: x.append(bytearray(10**7))",
            "import mmap; mmap.mmap(-1, 2**31)",
            "import threading; threading.stack_size(2**30); threading.Thread(target=print).start()",
            "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); x = bytearray(2**31)",
        ],
    )
    def test_memory(self, program: str):
        result = run(program, limits=Limits(cpu_seconds=2, memory_bytes=2**28))
        assert result.status == "error", result
        assert run("x = bytearray(10**8); print(len(x))", limits=Limits(memory_bytes=2**28)).status == "ok"
        assert run("x = bytearray(3 * 10**8)", limits=Limits(memory_bytes=2**28)).status == "error"

    def test_output(self):
        limits = Limits(output_bytes=1000)
        result = run("while True: print('x' * 100)", limits=limits)
        assert (result.status, len(result.stdout)) == ("output", 1000)
        assert run("print('x' * 999, end='')", limits=limits).status == "ok"
        assert run("import os\nwhile True: os.write(1, b'x' * 10**6)").status == "output"

    def test_a_flood_of_errors_is_bounded_by_time_and_costs_the_server_no_memory(self):
        sandbox._POOL.close()
        zygote = int(run("import os; print(os.getppid())").stdout)
        server = next(pid for pid in children(os.getpid()) if zygote in children(pid))
        result = run("import sys\nwhile True: sys.stderr.write('x' * 1000)", limits=SHORT)
        assert result.status == "timeout"
        assert len(result.stderr) <= 4096
        peak = next(line for line in Path(f"/proc/{server}/status").read_text().splitlines() if "VmHWM" in line)
        assert int(peak.split()[1]) < 100_000  # KiB

    THREADS = textwrap.dedent(
        """
        import threading
        threading.stack_size(2**16)
        wait = threading.Event()
        for n in range({}):
            threading.Thread(target=wait.wait, daemon=True).start()
        print("started all")
        {}
        """
    )

    def test_threads(self):
        assert run(self.THREADS.format(63, "")).status == "ok"
        result = run(self.THREADS.format(3000, ""))
        assert (result.status, result.stdout) == ("threads", "")
        assert run(self.THREADS.format(64, "wait.wait()")).status == "threads"
        assert (
            run(self.THREADS.format(100, "wait.wait()"), limits=Limits(threads=200, wall_seconds=1)).status == "timeout"
        )
        one_by_one = "import threading\nfor n in range(300):\n    t = threading.Thread(target=int); t.start(); t.join()"
        assert run(one_by_one).status == "ok"

    def test_threads_outlive_no_main_thread(self):
        program = self.THREADS.format(100, f"import ctypes; ctypes.CDLL(None).syscall({60 if X86 else 93}, 0)")
        assert run(program).status == "threads"

    def test_descriptors(self):
        assert run("import os\nfor _ in range(1000): os.pipe()").status == "error"

    @pytest.mark.parametrize(
        "limits",
        [
            {"cpu_seconds": 0},
            {"cpu_seconds": 1.5},
            {"wall_seconds": 0},
            {"memory_bytes": 2**20},
            {"output_bytes": 0},
            {"threads": 0},
        ],
    )
    def test_limits_out_of_range_are_refused(self, limits: dict[str, float]):
        with pytest.raises(ValueError, match=next(iter(limits))):
            Limits(**limits)  # type: ignore[arg-type]


class TestUndoing:
    """Nothing that a program does, with ctypes or without, gives back what was taken."""

    @pytest.mark.parametrize(
        ("name", "x86", "arm", "arguments"),
        [
            ("seccomp", 317, 277, "1, 0, None"),
            ("prctl(PR_SET_SECCOMP)", 157, 167, "22, 0, 0, 0, 0"),
            ("prctl(PR_SET_PDEATHSIG)", 157, 167, "1, 0, 0, 0, 0"),
            ("unshare(CLONE_NEWUSER)", 272, 97, "0x10000000"),
            ("setns", 308, 268, "0, 0"),
            ("mount", 165, 40, "None, b'/', None, 0, None"),
            ("ptrace(PTRACE_TRACEME)", 101, 117, "0, 0, None, None"),
            ("process_vm_readv", 310, 270, "1, None, 0, None, 0, 0"),
            ("capset", 126, 91, "None, None"),
            ("setuid", 105, 146, "0"),
            ("bpf", 321, 280, "0, None, 0"),
            ("io_uring_setup", 425, 425, "1, None"),
            ("keyctl", 250, 219, "0, -3, 0"),
            ("execve", 59, 221, "b'/bin/true', None, None"),
            ("memfd_create", 319, 279, "b'x', 0"),
            ("userfaultfd", 323, 282, "0"),
            ("perf_event_open", 298, 241, "None, 0, -1, -1, 0"),
            ("pidfd_open", 434, 434, "1, 0"),
            ("shmget", 29, 194, "0, 4096, 0o1000"),
            ("setsid", 112, 157, ""),
            ("chroot", 161, 51, "b'/'"),
            ("reboot", 169, 142, "0, 0, 0, None"),
            ("landlock_create_ruleset", 444, 444, "None, 0, 1"),
        ],
    )
    def test_refused(self, name: str, x86: int, arm: int, arguments: str):
        program = (
            "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
            f"print(libc.syscall({x86 if X86 else arm}{', ' * bool(arguments)}{arguments}), ctypes.get_errno())"
        )
        assert run(program).stdout.split() == ["-1", "1"], name  # EPERM: the filter, not the arguments

    def test_limits_and_capabilities_stay(self):
        program = textwrap.dedent(
            """
            import resource
            for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
                soft, hard = resource.getrlimit(limit)
                assert soft == hard
                try:
                    resource.setrlimit(limit, (hard + 1, hard + 1))
                    print("raised")
                except (ValueError, OSError):
                    pass
            """
        )
        result = run(program)
        assert (result.status, result.stdout) == ("ok", ""), result.stderr

    def test_as_the_kernel_sees_it(self):
        """From outside, while the program runs: root has capabilities to lose, whoever else has none to gain."""
        thread = threading.Thread(target=run, args=("import time; time.sleep(2)",))
        sandbox._POOL.close()
        thread.start()
        program = chain()[2]
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{program}/status").read_text().splitlines())
        assert {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == dict.fromkeys(
            ("CapInh", "CapPrm", "CapEff", "CapAmb"), 0
        )
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        thread.join()

    @pytest.mark.skipif(not X86, reason="x86-64 has other tables")
    @pytest.mark.parametrize("code", ["b8 14 00 00 00 cd 80 c3", "b8 27 00 00 40 0f 05 c3"], ids=["i386", "x32"])
    def test_another_table_of_system_calls_kills(self, code: str):
        """getpid() by int 0x80, and by the x32 number."""
        program = textwrap.dedent(
            f"""
            import ctypes, mmap
            page = mmap.mmap(-1, 4096, prot=7)
            page.write(bytes.fromhex({code!r}))
            ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
            print({WORKED!r})
            """
        )
        assert WORKED in unconfined(program).stdout
        result = run(program)
        assert (result.status, result.exit_code) == ("error", -signal.SIGSYS)


class TestUnavailable:
    """No machine runs a program without the walls."""

    @pytest.fixture
    def server(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        def altered(first: str, old: str = "", new: str = "") -> None:
            """Start servers from now on after the Python code `first`, with `old` in its source replaced by `new`."""
            path = Path(sandbox.__file__).with_name("sandbox_server.py")
            source = path.read_text()
            assert old in source
            script = f"{first}\n__file__ = {str(path)!r}\nexec({source.replace(old, new)!r})"
            pool = ProcessPool(lambda: [sys.executable, "-S", "-c", script], 1, sandbox._environment)
            monkeypatch.setattr(sandbox, "_POOL", pool)
            monkeypatch.setattr(sandbox, "_proved", False)

        return altered

    def test_the_fixture_alone_changes_nothing(self, server: Callable[..., None]):
        server("")
        assert run("print(1)").stdout == "1\n"

    @pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are x86-64's")
    @pytest.mark.parametrize(
        ("call", "answer"),
        [
            (317, "refuses seccomp"),
            (157, "refuses PR_SET_PDEATHSIG"),
            (126, "refuses capset"),
            (302, "not allowed|Oper"),
        ],
    )
    def test_a_kernel_or_container_that_refuses(self, server: Callable[..., None], call: int, answer: str):
        server(
            textwrap.dedent(
                f"""
                import ctypes, struct
                steps = [(0x20, 0, 0, 0), (0x15, 0, 1, {call}), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
                code = b"".join(struct.pack("=HBBI", *step) for step in steps)
                buffer = ctypes.create_string_buffer(code, len(code))
                libc = ctypes.CDLL(None)
                libc.prctl(38, 1, 0, 0, 0)
                libc.syscall(317, 1, 0, struct.pack("=H6xQ", 4, ctypes.addressof(buffer)))
                """
            )
        )
        with pytest.raises(SandboxUnavailable, match=answer) as failure:
            run("print(1)")
        assert "reward workers" in str(failure.value)

    def test_walls_that_are_only_said_to_stand(self, server: Callable[..., None]):
        """As under an emulator that answers `done` to seccomp: the probe sees it."""
        server("", "confine.enter(", "(lambda *_: 0)(")
        with pytest.raises(SandboxUnavailable, match="probe got past"):
            run("print(1)")

    def test_another_processor(self, server: Callable[..., None]):
        server("import platform; platform.machine = lambda: 'riscv64'")
        with pytest.raises(SandboxUnavailable, match="riscv64"):
            run("print(1)")

    def test_a_server_that_does_not_start(self, server: Callable[..., None]):
        server("raise SystemExit(5)")
        with pytest.raises(SandboxUnavailable, match="exit code 5"):
            run("print(1)")


class TestEarlierPrograms:
    """A program finds nothing of an earlier one on the same server: not what it was given, nor what it printed."""

    SECRET = "MARK-" + "7" * 9
    # Says in which places of its process the secret is. It never makes the secret itself.
    SEARCH = textwrap.dedent(
        f"""
        import ctypes, gc, os, sys

        def holds(thing):
            if isinstance(thing, dict):
                return any(map(holds, [*thing.keys(), *thing.values()]))
            if isinstance(thing, (list, tuple, set, frozenset)):
                return any(map(holds, list(thing)))
            text = thing.encode("utf-8", "replace") if isinstance(thing, str) else thing
            if not isinstance(text, (bytes, bytearray)):
                return False
            return any(part[:9] == bytes([55]) * 9 for part in text.split(b"MARK-")[1:])

        sys.setrecursionlimit(10000)
        libc, page, seen, bytes_seen = ctypes.CDLL(None, use_errno=True), 4096, set(), 0

        def readable(address):  # /proc may be closed; rt_sigprocmask(-1) looks at its argument, and does nothing
            libc.syscall({14 if X86 else 135}, -1, ctypes.c_void_p(address), None, 8)
            return ctypes.get_errno() != 14  # EFAULT

        def in_memory():
            here = ctypes.c_int()
            libc.sbrk.restype = ctypes.c_void_p
            known = [id(it) for it in gc.get_objects()] + [id(it) for it in vars(sys).values()]
            known += [libc.sbrk(0) - 1, ctypes.addressof(here), ctypes.cast(libc.write, ctypes.c_void_p).value]
            for start in sorted({{address // page for address in known}}):
                for step in (1, -1):
                    number, holes = start, 0
                    while holes < 16 and number not in seen:
                        seen.add(number)
                        if readable(number * page):
                            holes = 0
                            if holds(ctypes.string_at(number * page, page)):
                                return True
                        else:
                            holes += 1
                        number += step
                    seen.discard(start)
                seen.add(start)
            return False

        def in_frames(frame):
            while frame := frame.f_back:
                if holds(frame.f_locals) or holds(frame.f_globals):
                    return True
            return False

        def in_files():
            for number in range(3, 4096):
                try:
                    if holds(os.pread(number, 10**6, 0)):
                        return True
                except OSError:
                    pass
            return False

        print([name for name, found in {{
            "memory": in_memory(),
            "frames": in_frames(sys._getframe()),
            "objects": any(holds(it) for it in gc.get_objects() if isinstance(it, (dict, list, tuple, bytearray))),
            "modules": any(holds(vars(module)) for module in list(sys.modules.values())),
            "environment": holds(dict(os.environ)),
            "files": in_files(),
        }}.items() if found], len(seen) > 2000)
        """
    )

    @pytest.mark.parametrize(
        ("source", "stdin"),
        [
            ("print('MARK-' + '7' * 9)", ""),
            ("import sys; print('MARK-' + '7' * 9, file=sys.stderr)", ""),
            (f"print('{SECRET}')", ""),
            (f"kept = '{SECRET}' * 10**4", ""),
            ("print(input())", SECRET),
            ("", f"{SECRET}\n" * 10**4),
            ("print('MARK-' + '7' * 9)\nwhile True: pass", ""),
            (f"syntax error '{SECRET}'", ""),
        ],
    )
    def test_nothing_is_left(self, source: str, stdin: str):
        sandbox._POOL.close()
        server = run("import os; print(os.getppid())").stdout
        for _ in range(3):
            run(source, stdin, SHORT)
        result = run(self.SEARCH)
        assert (result.status, result.stdout) == ("ok", "[] True\n"), result.stderr
        assert run("import os; print(os.getppid())").stdout == server  # it was the same one

    def test_the_search_finds(self):
        found = run("import sys; kept = sys.stdin.read()\n" + self.SEARCH, self.SECRET).stdout
        assert "memory" in found
        assert "modules" in found
        assert "memory" in run(self.SEARCH + f"\n# {self.SECRET}").stdout

    def test_programs_at_the_same_time_are_hidden_from_each_other(self):
        """Without Landlock only this stands between them; the kernel checks it before it gives a process's memory."""
        thread = threading.Thread(target=run, args=("import time; time.sleep(3)",))
        sandbox._POOL.close()
        thread.start()
        try:
            for pid in chain():
                script = textwrap.dedent(
                    f"""
                    import ctypes, os
                    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
                    assert ctypes.CDLL(None).syscall({126 if X86 else 91}, header, nothing) == 0  # capset
                    for pid, name in ((os.getpid(), "mem"), ({pid}, "mem"), ({pid}, "environ"), ({pid}, "maps")):
                        try:
                            os.open(f"/proc/{{pid}}/{{name}}", os.O_RDONLY)
                            print(pid == os.getpid())
                        except PermissionError:
                            pass
                    """
                )
                assert unconfined(script).stdout == "True\n"
        finally:
            thread.join()
