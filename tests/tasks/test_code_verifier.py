"""The verdicts on programs: each kind of test, what counts as equal, and programs that only want the points."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tasks.test_sandbox import TestEarlierPrograms as Earlier
from verl_cov.tasks.code import pytest_shim
from verl_cov.tasks.code.comparison import same_output, same_value
from verl_cov.tasks.code.ground_truth import PRELUDE
from verl_cov.tasks.code.sandbox import Limits
from verl_cov.tasks.code.verifier import extract_program, judge

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")


def fenced(program: str) -> str:
    return f"I would do this:\n\n```python\n{program}\n```\nIt is right."


def passed(program: str, truth: dict[str, Any], **options: Any) -> tuple[int, int]:
    verdict = judge(fenced(program), json.dumps(truth), **options)
    return verdict.passed, verdict.tests


def stdio(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"kind": "stdio", "inputs": [given for given, _ in pairs], "outputs": [wanted for _, wanted in pairs]}


def call(*pairs: tuple[list[Any], Any], function: str = "f") -> dict[str, Any]:
    inputs, outputs = [given for given, _ in pairs], [wanted for _, wanted in pairs]
    return {"kind": "call", "function": function, "inputs": inputs, "outputs": outputs}


def asserts(*statements: str) -> dict[str, Any]:
    return {"kind": "asserts", "asserts": list(statements)}


def module(source: str) -> dict[str, Any]:
    return {"kind": "pytest", "tests": source}


class TestExtraction:
    @pytest.mark.parametrize(
        ("response", "program"),
        [
            ("```python\na\n```", "a\n"),
            ("```python\na\n```\nor better\n```python\nb\n```", "b\n"),
            ("```python\na\n```\nIt prints\n```\n3\n```", "a\n"),
            ("```\na\n```", "a\n"),
            ("```\na\n```\n```text\nb\n```", "b\n"),
            ("```py\na\n```", "a\n"),
            ("```Python3\na\n```", "a\n"),
            ("```python title='x'\na\n```", "a\n"),
            ("``` python\na\n```  ", "a\n"),
            ("1. so:\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b\n"),
            ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''\n"),
            ("```python\na\n```\n```python\nb", "a\n"),  # cut off: the last closed one
            ("```python\r\na\r\n```\r\n", "a\n"),
            ("```python\n```", "\n"),
            ("```python\na", None),
            ("print(1)", None),
            ("`a`", None),
            ("```pythonic```", None),
            ("", None),
        ],
    )
    def test_last_block(self, response: str, program: str | None):
        assert extract_program(response) == program

    @given(st.text(alphabet="`python\n a"))
    def test_total(self, response: str):
        program = extract_program(response)
        assert program is None or program.endswith("\n")

    def test_linear(self):
        started = time.perf_counter()
        for response in ("```python\n" * 200_000, "`" * 10**6, "```\n" * 200_001, " " * 10**6):
            extract_program(response)
        assert time.perf_counter() - started < 30  # quadratic in a million would be hours

    def test_nothing_to_run_is_zero(self):
        verdict = judge("I do not know.", json.dumps(stdio(("1", "1"), ("2", "2"))))
        assert (verdict.score, verdict.passed, verdict.tests, verdict.has_program) == (0.0, 0, 2, False)


class TestStdio:
    def test_the_share_of_the_passed(self):
        truth = stdio(("1", "1"), ("2", "4"), ("3", "9"), ("4", "0"))
        verdict = judge(fenced("print(int(input()) ** 2)"), json.dumps(truth))
        assert (verdict.passed, verdict.tests, verdict.score, verdict.late) == (3, 4, 0.75, False)

    @pytest.mark.parametrize(
        "program",
        [
            "if __name__ == '__main__':\n    print(input())",
            "from __future__ import annotations\nprint(input())",
            "print(sys.stdin.readline())",  # the prelude has the usual imports
            "print(input(), end='')",
            "import sys\nfor line in sys.stdin: sys.stdout.write(line)",
            "def main():\n    print(input())\n    exit(0)\nmain()",
            "import threading\nthreading.stack_size(2**27)\nthreading.Thread(target=lambda: print(input())).start()",
            'x = """\n"""\nprint(input())',
            "pow(2, 3, 5)\nprint(input())",  # the builtins are not shadowed by the prelude
            "# -*- coding: utf-8 -*-\nprint(input())",
        ],
    )
    def test_usual_programs(self, program: str):
        assert passed(program, stdio(("hello", "hello\n"))) == (1, 1)

    def test_a_crash_or_a_hang_loses_one_test(self):
        program = "n = int(input())\nif n == 1: 1 / 0\nif n == 2:\n    while True: pass\nprint(n)"
        verdict = judge(
            fenced(program), json.dumps(stdio(*((str(n), str(n)) for n in range(5)))), limits=Limits(cpu_seconds=1)
        )
        assert (verdict.passed, verdict.tests, verdict.late) == (3, 5, True)

    @pytest.mark.parametrize(
        "program",
        [
            "print(1); raise SystemExit(1)",
            "print(1); 1 / 0",
            "print(1, 1)",
            "print(1)\nprint(1)",
            "print(2)",
            "pass",
            "(",
        ],
    )
    def test_wrong(self, program: str):
        assert passed(program, stdio(("", "1"))) == (0, 1)

    @pytest.mark.parametrize(
        ("printed", "expected", "same"),
        [
            ("1 2\n3\n", "1 2\n3", True),
            ("1  2 \n\n3\n\n", "1 2\n3\n", True),
            ("1 2 3", "1 2\n3", False),
            ("1\n2", "2\n1", False),
            ("", "", True),
            ("\n", "", True),
            ("", "1", False),
            ("YES", "yes", False),
            ("0.5", "0.50", True),
            ("0.3333333", "0.33333333333", True),
            ("0.3333", "0.33333333333", False),
            ("1", "1.0", True),
            ("1.0", "1", False),  # an integer is asked for
            ("1000000000.4", "1000000000.5", True),
            ("1e-3", "0.001", True),
            ("nan", "0.5", False),
            ("inf", "1.5", False),
            ("0x1", "1.0", False),
            ("1e9999", "1.5", False),
            ("1_0.5", "10.5", False),
            ("9" * 10**5, "1.5", False),
        ],
    )
    def test_same_output(self, printed: str, expected: str, same: bool):
        assert same_output(printed, expected) is same

    @given(st.text(alphabet="01. \neE-x"), st.text(alphabet="01. \neE-x"))
    def test_comparison_is_total_and_reflexive(self, printed: str, expected: str):
        same_output(printed, expected)
        assert same_output(expected, expected)

    def test_other_tests_and_expected_outputs_are_not_in_the_programs_memory(self):
        secret, search = Earlier.SECRET, Earlier.SEARCH
        truth = stdio(("", "[] True"), (secret, "nothing"), ("", secret))
        assert passed(search, truth) == (1, 3)
        assert passed(search, truth) == (1, 3)  # on servers that have seen them
        assert passed("import sys; kept = sys.stdin.read()\n" + search, stdio((secret, "[] True"))) == (0, 1)


class TestCall:
    @pytest.mark.parametrize(
        ("program", "arguments", "value"),
        [
            ("def f(a, b): return a + b", [1, 2], 3),
            ("class Solution:\n    def f(self, a): return a", [[1, 2]], [1, 2]),
            ("class Solution:\n    def f(self, nums: List[int]) -> Optional[int]: return max(nums)", [[1, 2]], 2),
            ("f = lambda a: (a, a)", [1], [1, 1]),
            ("def f(a): return {1: a}", [2], {"1": 2}),
            ("def f(a): return {3, 1, 2}", [0], [1, 2, 3]),
            ("def f(a): return range(a)", [2], [0, 1]),
            ("def f(a): return None", [0], None),
            ("def f(a): return a / 3", [1], 0.33333333),
            ("def f(a): return 'ä'", [1], "ä"),
            ("def f(a): return 2 ** 200", [1], 2**200),
            ("def f(a):\n    print('debug'); return a", [1], 1),
            ("import sys\ndef f(a):\n    sys.stdout.buffer.write(b'x'); sys.stdout.flush(); return a", [1], 1),
            ("def f(a): return a", [5], [5]),  # APPS wraps the value
            ("def f(a): return [a]", [5], [5]),
            ("if __name__ == '__main__': input()\ndef f(a): return a", [1], 1),
            ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\ndef f(a): return A(a).x", [1], 1),
            ("import json\njson.dumps = lambda *a, **k: 'true'\ndef f(a): return a", [1], 1),
            ("def f(a): return helper(a)\ndef helper(a): return Counter(a)", ["aab"], {"a": 2, "b": 1}),
        ],
    )
    def test_right(self, program: str, arguments: list[Any], value: Any):
        assert passed(program, call((arguments, value))) == (1, 1)

    @pytest.mark.parametrize(
        ("program", "value"),
        [
            ("def f(a): return 2", 1),
            ("def g(a): return 1", 1),
            ("def f(): return 1", 1),
            ("def f(a): return True", 1),
            ("def f(a): return '1'", 1),
            ("def f(a): return object()", 1),
            ("def f(a): raise ValueError", 1),
            ("def f(a): return [[1]]", 1),
            ("def f(a): pass", 0),
            ("def f(a): return float('nan')", 1.5),
            ("def f(a):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x", 1),
            ("def f(a): print(1)", 1),
            ("def f(a): return 10 ** 5000", 1),
            ("f = 1", 1),
            ("class Solution:\n    def g(self, a): return 1", 1),
            ("import json\njson.dumps = lambda *a, **k: '{\"value\":2}'\ndef f(a): return 1", 2),
        ],
    )
    def test_wrong(self, program: str, value: Any):
        assert passed(program, call(([0], value))) == (0, 1)

    def test_state_does_not_carry_over(self):
        program = "seen = []\ndef f(a):\n    seen.append(a); return len(seen)"
        assert passed(program, call(([1], 1), ([2], 1), ([3], 1))) == (3, 3)

    def test_an_object_that_equals_all_gains_nothing(self):
        program = "class Any(int):\n    def __eq__(self, other): return True\ndef f(a): return Any(7)"
        assert passed(program, call(([0], 1))) == (0, 1)

    def test_the_expected_values_are_not_in_the_process(self):
        """Everything that the program's process can find in its own memory, for a marker that only the truth has."""
        program = (
            "import gc, sys, json\n"
            "def f(a):\n"
            "    seen, frame = [], sys._getframe()\n"
            "    while frame: seen.append(repr(frame.f_locals)); frame = frame.f_back\n"
            "    text = ' '.join(seen) + repr([o for o in gc.get_objects() if isinstance(o, (dict, list))])\n"
            "    return ['secret-' + 'output' in text, 'given-' + 'input' in text]"
        )
        truth = call((["given-input"], "secret-output"), (["given-input"], [False, True]))
        assert passed(program, truth) == (1, 2)

    @pytest.mark.parametrize(
        ("value", "expected", "same"),
        [
            (1, 1, True),
            (1, 1.0, True),
            (1.0, 1, True),
            (True, 1, False),
            (1, True, False),
            (None, False, False),
            ("1", 1, False),
            (0.1 + 0.2, 0.3, True),
            (10**400, 1.5, False),
            ([1, [2.0000000001]], [1, [2.0]], True),
            ([1, 2], [2, 1], False),
            ({"a": 1.0}, {"a": 1}, True),
            ({"a": 1}, {"b": 1}, False),
            (float("nan"), float("nan"), False),
            (float("inf"), float("inf"), True),
        ],
    )
    def test_same_value(self, value: Any, expected: Any, same: bool):
        assert same_value(value, expected) is same


class TestAsserts:
    def test_each_is_a_test(self):
        truth = asserts(
            "assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 3", "import math\nassert f(0) == math.cos(0)"
        )
        assert passed("def f(a): return a + 1", truth) == (3, 4)

    @pytest.mark.parametrize(
        "program",
        [
            "import sys; sys.exit(0)",
            "import os; os._exit(0)",
            "raise SystemExit",
            "def f(a): import os; os._exit(0)",
            "def f(a): raise SystemExit(0)",
            "def f(a): print('true'); print('\\ntrue')",
            "import os\nos.write(1, b'\\ntrue\\n')\nos._exit(0)",
            "import os\n[os.write(n, b'\\n' + b'0' * 32 + b'true\\n') for n in (1, 2)]\nos._exit(0)",
            "import os\nfor n in range(3, 20):\n try: os.write(n, b'\\ntrue\\n')\n except OSError: pass\nos._exit(0)",
            "import builtins; builtins.AssertionError = type('X', (), {})\ndef f(a): return 0",
            "import sys; sys.excepthook = lambda *a: None\ndef f(a): return 0",
            "import atexit, os; atexit.register(os._exit, 0)\ndef f(a): return 0",
            "import threading, os; threading.Timer(0.05, os._exit, (0,)).start()\ndef f(a): return 0",
            "f = None",
            "",
            "import builtins; builtins.exec = lambda *a, **k: None",
            "import builtins; builtins.compile = lambda *a, **k: (lambda: 0).__code__",
            "import __main__; __main__.exec = lambda *a, **k: None",
        ],
    )
    def test_cheap_tricks_do_not_pass(self, program: str):
        assert passed(program, asserts("assert f(1) == 2")) == (0, 1)

    def test_the_secret_is_not_lying_about(self):
        """In no frame of the program's callers, nor in stdin, which is a file and has been read."""
        program = (
            "import json, os, re, sys\n"
            "seen, frame = [], sys._getframe()\n"
            "while frame: seen += [repr(frame.f_locals), repr(frame.f_globals)]; frame = frame.f_back\n"
            "seen.append(repr([vars(sys.modules[name]) for name in ('__main__', 'sys')]))\n"
            "try: os.lseek(0, 0, 0); seen.append(repr(os.read(0, 10**6)))\n"
            "except OSError: pass\n"
            "hidden = re.findall('[0-9a-f]{32}', ' '.join(seen))\n"
            "def f(a): return len(seen[0]) > 0, hidden"
        )
        assert passed(program, call(([0], [True, []]))) == (1, 1)

    def test_the_shim_keeps_its_own_names(self):
        tests = module("def test_f():\n    from solution import f\n    assert f(1) == 2")
        program = "import itertools; itertools.product = lambda *a: []\ndef f(a): return 0"
        assert passed(program, tests) == (0, 1)
        assert passed("def f(a): return 2", tests) == (1, 1)

    def test_nor_do_they_disturb_the_next_test(self):
        program = (
            "import os\ndef f(a):\n    if a == 1: os._exit(0)\n    if a == 2: os.kill(os.getpid(), 9)\n    return a"
        )
        assert passed(program, asserts("assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3")) == (1, 3)


class TestPytest:
    SOLUTION = "def f(a):\n    if a < 0: raise ValueError('negative: %d' % a)\n    return a / 10"

    def test_each_function_is_a_test(self):
        source = (
            "import pytest\nfrom solution import f\n"
            "def helper(): return 1\n"
            "def test_a(): assert f(10) == 1\n"
            "def test_b(): assert f(10) == 2\n"
            "def test_c():\n    with pytest.raises(ValueError, match='neg'): f(-1)\n"
            "class TestD:\n    def test_e(self): assert f(1) == pytest.approx(0.1)\n    def other(self): pass\n"
        )
        assert passed(self.SOLUTION, module(source)) == (3, 4)
        assert passed("pass", module(source)) == (0, 4)
        assert passed("import os; os._exit(0)", module(source)) == (0, 4)

    def test_import_solution_as_a_module(self):
        assert passed(self.SOLUTION, module("import solution\ndef test_a(): assert solution.f(10) == 1")) == (1, 1)

    # Each of these by itself, under the real pytest and under ours. A test that pytest passes and the shim does not
    # support must fail, never pass by mistake.
    BODIES: ClassVar = {
        "plain": "def test_it(): assert f(10) == 1",
        "wrong": "def test_it(): assert f(10) == 2",
        "raises": "def test_it():\n    with pytest.raises(ValueError): f(-1)",
        "raises_none": "def test_it():\n    with pytest.raises(ValueError): f(1)",
        "raises_other": "def test_it():\n    with pytest.raises(KeyError): f(-1)",
        "raises_tuple": "def test_it():\n    with pytest.raises((KeyError, ValueError)): f(-1)",
        "raises_match": "def test_it():\n    with pytest.raises(ValueError, match='^neg'): f(-1)",
        "raises_no_match": "def test_it():\n    with pytest.raises(ValueError, match='^pos'): f(-1)",
        "raises_info": "def test_it():\n with pytest.raises(ValueError) as e: f(-1)\n assert '-1' in str(e.value)",
        "raises_call": "def test_it(): pytest.raises(ValueError, f, -1)",
        "raises_call_none": "def test_it(): pytest.raises(ValueError, f, 1)",
        "approx": "def test_it(): assert f(3) == pytest.approx(0.3)",
        "approx_far": "def test_it(): assert f(3) == pytest.approx(0.301)",
        "approx_left": "def test_it(): assert pytest.approx(0.3) == f(3)",
        "approx_abs": "def test_it(): assert f(3) == pytest.approx(0.301, abs=0.01)",
        "approx_abs_only": "def test_it(): assert 1e9 == pytest.approx(1e9 + 1, abs=1e-3)",
        "approx_rel": "def test_it(): assert f(3) == pytest.approx(0.301, rel=0.01)",
        "approx_list": "def test_it(): assert [f(1), f(2)] == pytest.approx([0.1, 0.2])",
        "approx_list_short": "def test_it(): assert [f(1)] == pytest.approx([0.1, 0.2])",
        "approx_dict": "def test_it(): assert {'a': f(1)} == pytest.approx({'a': 0.1})",
        "approx_dict_key": "def test_it(): assert {'b': f(1)} == pytest.approx({'a': 0.1})",
        "approx_not": "def test_it(): assert f(3) != pytest.approx(0.4)",
        "approx_zero": "def test_it(): assert 1e-13 == pytest.approx(0)",
        "approx_inf": "def test_it(): assert float('inf') == pytest.approx(float('inf'))",
        "approx_nan": "def test_it(): assert float('nan') == pytest.approx(float('nan'))",
        "approx_nan_ok": "def test_it(): assert float('nan') == pytest.approx(float('nan'), nan_ok=True)",
        "parametrize": "@pytest.mark.parametrize('a,b', [(10, 1), (20, 2)])\ndef test_it(a, b): assert f(a) == b",
        "rows_wrong": "@pytest.mark.parametrize('a, b', [(10, 1), (20, 3)])\ndef test_it(a, b): assert f(a) == b",
        "parametrize_single": "@pytest.mark.parametrize('a', [10, 10])\ndef test_it(a): assert f(a) == 1",
        "parametrize_tuple": "@pytest.mark.parametrize('a', [(10,), (10,)])\ndef test_it(a): assert f(a[0]) == 1",
        "parametrize_list": "@pytest.mark.parametrize(['a', 'b'], [[10, 1]])\ndef test_it(a, b): assert f(a) == b",
        "parametrize_param": (
            "@pytest.mark.parametrize('a,b', [pytest.param(10, 1, id='x')])\ndef test_it(a, b): assert f(a) == b"
        ),
        "parametrize_twice": (
            "@pytest.mark.parametrize('a', [10])\n@pytest.mark.parametrize('b', [1, 1])\n"
            "def test_it(a, b): assert f(a) == b"
        ),
        "fixture": "@pytest.fixture\ndef ten(): return 10\ndef test_it(ten): assert f(ten) == 1",
        "fixture_yield": "@pytest.fixture()\ndef ten():\n    yield 10\ndef test_it(ten): assert f(ten) == 1",
        "fixture_of_fixture": (
            "@pytest.fixture\ndef five(): return 5\n@pytest.fixture(scope='module')\ndef ten(five2=5): return 10\n"
            "def test_it(ten, five): assert f(ten) == 1 and five == 5"
        ),
        "fail": "def test_it(): pytest.fail('no')",
        "mark": "@pytest.mark.filterwarnings('ignore')\ndef test_it(): assert f(10) == 1",
        "skip": "@pytest.mark.skip(reason='x')\ndef test_it(): assert False",
        "skipped_inside": "def test_it(): pytest.skip('x')",
        "class_setup": (
            "class TestIt:\n    def setup_method(self): self.ten = 10\n    def test_it(self): assert f(self.ten) == 1"
        ),
        "class_parametrize": (
            "class TestIt:\n    @pytest.mark.parametrize('a', [10])\n    def test_it(self, a): assert f(a) == 1"
        ),
        "tmp_path": "def test_it(tmp_path): assert f(10) == 1",
        "capsys": "def test_it(capsys): assert f(10) == 1",
    }
    UNSUPPORTED = ("tmp_path", "capsys")

    def test_the_shim_against_pytest(self, tmp_path: Path):
        (tmp_path / "solution.py").write_text(self.SOLUTION)
        for name, body in self.BODIES.items():
            (tmp_path / f"test_{name}.py").write_text(f"import pytest\nfrom solution import f\n{body}\n")
        command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
        ran = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False)
        lines = [line for line in ran.stdout.splitlines() if line.startswith(("PASSED", "FAILED", "ERROR"))]
        for name, body in self.BODIES.items():
            verdicts = [line.split()[0] for line in lines if f"test_{name}.py::" in line]
            expected = bool(verdicts) and set(verdicts) == {"PASSED"} and name not in self.UNSUPPORTED
            result = passed(self.SOLUTION, module(f"import pytest\nfrom solution import f\n{body}\n"))
            assert result == (int(expected), 1), (name, verdicts)
        assert sum(line.startswith("PASSED") for line in lines) > 20

    @given(st.floats(), st.floats(), st.none() | st.floats(0, 1), st.none() | st.floats(0, 1))
    def test_approx_is_pytests(self, actual: float, expected: float, rel: float | None, abs: float | None):
        mine = actual == pytest_shim.approx(expected, rel=rel, abs=abs)
        assert mine == (actual == pytest.approx(expected, rel=rel, abs=abs))


class TestBudget:
    def test_the_first_tests_count(self):
        truth = stdio(*((str(n), str(n if n < 3 else -1)) for n in range(30)))
        assert passed("print(input())", truth) == (3, 10)
        assert passed("print(input())", truth, max_tests=3) == (3, 3)
        assert passed("print(input())", truth, max_tests=100) == (3, 30)

    def test_time_of_all_tests(self):
        truth = stdio(*(("", "1") for _ in range(10)))
        started = time.monotonic()
        verdict = judge(fenced("import time; time.sleep(0.5); print(1)"), json.dumps(truth), response_seconds=1.2)
        assert verdict.passed <= 2  # of ten that all pass, on a busy machine fewer
        assert (verdict.tests, verdict.late) == (10, True)
        assert time.monotonic() - started < 30

    def test_a_program_that_hangs_is_given_up(self):
        truth = stdio(("1", "1"), *((str(n), str(n)) for n in range(2, 12)))
        program = "n = int(input())\nwhile n in (2, 3, 5): pass\nprint(n)"
        started = time.monotonic()
        verdict = judge(fenced(program), json.dumps(truth), limits=Limits(wall_seconds=1.5))
        assert (verdict.passed, verdict.tests, verdict.late) == (2, 10, True)  # 1 and 4, and 6 to 10 were not run
        assert time.monotonic() - started < 60

    @pytest.mark.parametrize("options", [{"max_tests": 0}, {"max_tests": 1.5}, {"response_seconds": 0}])
    def test_options_out_of_range_are_refused(self, options: dict[str, Any]):
        with pytest.raises(ValueError, match=next(iter(options))):
            judge("", json.dumps(stdio(("", "1"))), **options)


class TestGroundTruth:
    @pytest.mark.parametrize(
        ("truth", "said"),
        [
            ("", "not JSON"),
            ("[]", "kind"),
            ("{}", "kind"),
            (None, "not JSON"),
            ({"kind": "java"}, "'java'"),
            ({"kind": ["stdio"]}, "kind"),
            (stdio(), "inputs must be a list"),
            ({"kind": "stdio", "inputs": ["1"], "outputs": []}, "outputs must be a list"),
            ({"kind": "stdio", "inputs": [1], "outputs": ["1"]}, "strings"),
            ({"kind": "stdio", "inputs": ["1"]}, "outputs"),
            ({"kind": "call", "inputs": [[1]], "outputs": [1]}, "function"),
            (call(([1], 1), function="a.b"), "a.b"),
            ({"kind": "call", "function": "f", "inputs": [1], "outputs": [1]}, "arguments"),
            ({"kind": "asserts", "asserts": "assert True"}, "list"),
            (asserts(), "asserts must be a list"),
            (asserts("f(1) == 2"), "no assert"),
            (asserts("assert f(1"), "not Python"),
            (module("def f(): pass"), "no test"),
            (module("def test_"), "not Python"),
            ({"kind": "pytest"}, "tests"),
        ],
    )
    def test_a_damaged_one_is_not_a_zero(self, truth: Any, said: str):
        text = json.dumps(truth) if isinstance(truth, dict) else truth
        with pytest.raises(ValueError, match=r"reward_model\.ground_truth") as failure:
            judge(fenced("pass"), text)
        assert said in str(failure.value)
        assert "\n" not in str(failure.value)


@given(st.text(max_size=40))
def test_any_response_gets_a_verdict(text: str):
    truth = json.dumps(asserts("assert f(1) == 2"))
    assert judge(text, truth).score == 0
    assert judge(fenced(text), truth, limits=Limits(cpu_seconds=1)).score == 0


def test_surrogates_and_null_bytes():
    for text in ("\ud800", "print('\ud800')", "\0", "print('\0')"):
        judge(fenced(text), json.dumps(stdio(("\ud800", "\ud800"))))


def test_the_prelude_has_what_primes_verifier_gives():
    assert "from typing import *" in PRELUDE
    assert (
        passed("print(Counter(input())['a'], gcd(4, 6), List, inf, pi > 3, ascii_letters[0])", stdio(("", "x")))[1] == 1
    )
