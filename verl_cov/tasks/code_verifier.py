"""Programs: which share of its tests does the program in the response pass?

The program is the last closed ```python block of the response, else the last closed block; without one nothing is run.
`ground_truth` is JSON, one of:

    {"kind": "stdio", "inputs": [str, ...], "outputs": [str, ...]}
    {"kind": "call", "function": "f", "inputs": [[arg, ...], ...], "outputs": [value, ...]}
    {"kind": "asserts", "asserts": ["assert f(1) == 2", ...]}
    {"kind": "pytest", "tests": "from solution import f\\n\\ndef test_f(): ..."}

Each test runs the program anew, in a `sandbox` process of its own: a crash, a hang or a change of state loses that test
and no other. A test is passed if

- stdio: the program exits with 0 and prints the expected output: the same lines, blank ones aside, of the same words.
  A word that is a decimal there (`0.50`, `1e-3`) is matched by a number within 1e-6, relative or absolute; an integer
  or anything else only by the same characters.
- call: the function (or the method of a `class Solution`) returns the expected value: by JSON, so a tuple is a list and
  the keys of dicts are strings; floats within 1e-6. The APPS data wraps a value in a list of one: both forms match.
- asserts, pytest: the statement, or the test function with all its parameters, ends without an exception. `pytest_shim`
  says what of pytest there is.

The score is soft, passed tests / tests, as in PRIME (Cui et al. 2025, section 2). Only the first `max_tests` count (10,
as PRIME's verifier does). `response_seconds` bounds all tests of a response together, and after `MAX_LATE` tests that
hit their own limit no more are run; tests left over are failed. Programs see the names that PRIME's verifier gives them
(`PRELUDE`): policies are trained without imports.

Reward hacking. For stdio and call the expected outputs never enter the sandbox: the program cannot know them. For
asserts and pytest they must, in the program's own process. Leaving early (`sys.exit(0)`, `os._exit(0)`), printing a
verdict and replacing builtins do not pass: the verdict carries a secret of this one run, and `code_driver` binds what
it uses before the program runs. But a program can pass by objects that are equal to everything, by replacing what a
test uses, or by searching its own process's memory for the secret. A policy that learns this shows as a training score
that held-out `stdio` tests do not share: watch for it, or convert tests to `call`.
"""

from __future__ import annotations

import ast
import json
import math
import re
import secrets
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from verl_cov.tasks import sandbox

MAX_TESTS = 10
MAX_LATE = 3  # tests of a response that hit their own time limit: after them the rest is not run
RESPONSE_SECONDS = 30.0  # wall time of all tests of a response
TOLERANCE = 1e-6

_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "typing"),
)
# builtins last: it gives back what the others shadow (pow, and open of io).
PRELUDE = "\n".join(
    [f"from {name} import *" for name in [*_MODULES, "builtins"]]
    + [f"import {', '.join(_MODULES)}", "sys.setrecursionlimit(600_000)"]
)


@dataclass(frozen=True)
class Verdict:
    """passed, tests: how many, of those that count. program: there was one. late: a limit of time ended a test."""

    passed: int
    tests: int
    program: bool
    late: bool = False

    @property
    def score(self) -> float:
        return self.passed / self.tests


def judge(
    response: str,
    ground_truth: str,
    max_tests: int = MAX_TESTS,
    response_seconds: float = RESPONSE_SECONDS,
    limits: sandbox.Limits | None = None,
) -> Verdict:
    """Run the tests of `ground_truth` on the program in `response`. `limits` are those of one test.

    Any response gets a verdict. Raises ValueError for a damaged ground truth or an option out of range, and
    SandboxUnavailable where programs cannot be confined. Thread-safe.
    """
    if not isinstance(max_tests, int) or max_tests < 1:
        raise ValueError(f"max_tests must be a whole number of at least 1, got {max_tests!r}")
    if not response_seconds > 0:
        raise ValueError(f"response_seconds must be positive, got {response_seconds!r}")
    tests = _tests(ground_truth)[:max_tests]
    program = extract_program(response)
    if program is None:
        return Verdict(0, len(tests), program=False)
    limits = limits or sandbox.Limits()
    passed, late, spent = 0, 0, 0.0
    for test in tests:
        left = response_seconds - spent
        if late == MAX_LATE:
            break
        if left <= 0:
            late += 1
            break
        one = replace(limits, wall_seconds=min(limits.wall_seconds, left))
        result, right = test(program, one)
        passed += right
        late += result.status == "timeout"
        spent += result.wall_seconds
    return Verdict(passed, len(tests), program=True, late=late > 0)


# --- the program ------------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"[ \t]*(`{3,})[ \t]*([^`\n]*)")


def extract_program(response: str) -> str | None:
    """The last closed fenced block that says it is Python, else the last closed block, else None."""
    python, other = None, None
    fence, language = "", ""
    lines: list[str] = []
    for line in response.splitlines():
        match = _FENCE.match(line)
        if not fence:
            if match:
                fence, language, lines = match[1], match[2].strip().lower(), []
        elif match and match[1].startswith(fence) and not match[2].strip():
            block = textwrap.dedent("\n".join(lines)) + "\n"
            if re.match(r"(?:python|py)\d?(?:\.\d+)?\b", language):
                python = block
            else:
                other = block
            fence = ""
        else:
            lines.append(line)
    return other if python is None else python


# --- the tests --------------------------------------------------------------------------------------------------------

_Test = Callable[[str, sandbox.Limits], tuple[sandbox.Result, bool]]


@lru_cache(maxsize=64)  # the responses to one prompt arrive together
def _tests(ground_truth: str) -> list[_Test]:
    try:
        truth = json.loads(ground_truth)
        kind = truth["kind"]
    except (TypeError, ValueError, KeyError):
        raise _damaged('it must be JSON with a "kind"', ground_truth) from None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise _damaged(f'"kind" must be one of {", ".join(_KINDS)}, got {kind!r}', ground_truth)
    try:
        tests = list(_KINDS[kind](truth))
    except (KeyError, TypeError, SyntaxError, ValueError) as problem:
        raise _damaged(f"kind {kind!r}: {type(problem).__name__} {problem}", ground_truth) from None
    if not tests:
        raise _damaged(f"kind {kind!r} without a test", ground_truth)
    return tests


def _damaged(what: str, ground_truth: Any) -> ValueError:
    return ValueError(f"reward_model.ground_truth: {what}: repair the data set; it is {str(ground_truth)[:200]!r}")


def _stdio(truth: dict[str, Any]) -> Iterator[_Test]:
    for given, expected in zip(truth["inputs"], truth["outputs"], strict=True):
        if not isinstance(given, str) or not isinstance(expected, str):
            raise TypeError("inputs and outputs must be strings")

        def test(program: str, limits: sandbox.Limits, given: str = given, expected: str = expected):
            # In an exec of its own: the program may begin with `from __future__`.
            source = f"{PRELUDE}\nexec(compile({program!r}, 'program.py', 'exec', dont_inherit=True))\n"
            result = sandbox.run(source, given, limits)
            return result, result.status == "ok" and same_output(result.stdout, expected)

        yield test


def _call(truth: dict[str, Any]) -> Iterator[_Test]:
    function = truth["function"]
    if not isinstance(function, str) or not function.isidentifier():
        raise TypeError(f"function must be a name, got {function!r}")
    for arguments, expected in zip(truth["inputs"], truth["outputs"], strict=True):
        if not isinstance(arguments, list):
            raise TypeError("each of the inputs must be the list of the arguments")
        job = {"kind": "call", "function": function, "arguments": arguments}

        def test(program: str, limits: sandbox.Limits, job: dict[str, Any] = job, expected: Any = expected):
            result, answer = _drive(program, job, limits)
            value = answer.get("value") if isinstance(answer, dict) else None
            wrapped = isinstance(expected, list) and len(expected) == 1 and same_value(value, expected[0])
            right = isinstance(answer, dict) and "value" in answer and (wrapped or same_value(value, expected))
            return result, right

        yield test


def _asserts(truth: dict[str, Any]) -> Iterator[_Test]:
    if not isinstance(truth["asserts"], list):
        raise TypeError("asserts must be a list of statements")
    for statement in truth["asserts"]:
        # What asserts nothing would pass always.
        if not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(statement))):
            raise ValueError(f"{statement!r} has no assert")
        yield _verdict({"kind": "assert", "test": statement})


def _pytest(truth: dict[str, Any]) -> Iterator[_Test]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)  # the latter will fail: nothing awaits them
    for node in ast.parse(truth["tests"]).body:
        names = []
        if isinstance(node, functions):
            names = [node.name]
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            names = [f"{node.name}::{method.name}" for method in node.body if isinstance(method, functions)]
        for name in names:
            if name.rpartition("::")[2].startswith("test"):
                shim = _text("pytest_shim.py")
                yield _verdict({"kind": "pytest", "tests": truth["tests"], "shim": shim, "name": name})


_KINDS: dict[str, Callable[[dict[str, Any]], Iterator[_Test]]] = {
    "stdio": _stdio,
    "call": _call,
    "asserts": _asserts,
    "pytest": _pytest,
}


def _verdict(job: dict[str, Any]) -> _Test:
    def test(program: str, limits: sandbox.Limits) -> tuple[sandbox.Result, bool]:
        result, answer = _drive(program, job, limits)
        return result, answer is True

    return test


@cache
def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _drive(program: str, job: dict[str, Any], limits: sandbox.Limits) -> tuple[sandbox.Result, Any]:
    """Run `code_driver` on the program. Returns its verdict too, None if there is none."""
    nonce = secrets.token_hex(16)
    stdin = json.dumps({**job, "prelude": PRELUDE, "program": program, "nonce": nonce})
    result = sandbox.run(_text("code_driver.py"), stdin, limits)
    _, found, rest = result.stdout.rpartition(f"\n{nonce}")
    if result.status != "ok" or not found:
        return result, None
    try:
        return result, json.loads(rest)
    except (ValueError, RecursionError):
        return result, None


# --- comparison -------------------------------------------------------------------------------------------------------


def same_output(printed: str, expected: str) -> bool:
    """Whether a program's output is the expected one; see the module for what is the same."""
    one, other = ([line.split() for line in text.splitlines() if line.strip()] for text in (printed, expected))
    return len(one) == len(other) and all(
        len(words) == len(wanted) and all(map(_same_word, words, wanted))
        for words, wanted in zip(one, other, strict=True)
    )


_DECIMAL = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d{1,4})?")
_NUMERAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?")


def _same_word(word: str, expected: str) -> bool:
    if word == expected:
        return True
    return bool(_DECIMAL.fullmatch(expected) and _NUMERAL.fullmatch(word)) and _close(float(word), float(expected))


def same_value(value: Any, expected: Any) -> bool:
    """Whether two values of JSON are the same, floats within the tolerance. True is not 1."""
    if isinstance(expected, bool) or isinstance(value, bool):
        return value is expected
    if isinstance(expected, float) or isinstance(value, float):
        return isinstance(value, (int, float)) and isinstance(expected, (int, float)) and _close(value, expected)
    if isinstance(expected, list):
        return isinstance(value, list) and len(value) == len(expected) and all(map(same_value, value, expected))
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(same_value(value[key], expected[key]) for key in expected)
        )
    return type(value) is type(expected) and value == expected


def _close(value: float, expected: float) -> bool:
    try:
        return value == expected or math.isclose(value, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:  # an integer beyond the floats
        return False
