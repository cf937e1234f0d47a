r"""The tests of a programming problem: `reward_model.ground_truth` of a row, as JSON, and how each test is run.

    {"kind": "stdio", "inputs": [str, ...], "outputs": [str, ...]}                  the program reads stdin and prints
    {"kind": "call", "function": str, "inputs": [[arg, ...], ...], "outputs": [value, ...]}
        (a value may be wrapped in a list of its own, [value], as in the APPS data)
    {"kind": "asserts", "asserts": ["assert f(1) == 2", ...]}                       each statement is a test
    {"kind": "pytest", "tests": "from solution import f\ndef test_f(): ..."}        each test function is a test

Each test runs the program anew in a `sandbox` process of its own: a crash, a hang or a change of state costs that test
and no other. A test is passed if

- stdio: the program exits with code 0 and prints the expected output (`comparison.same_output`).
- call: the function, or the method of a `class Solution`, returns the expected value (`comparison.same_value`). Values
  travel as JSON, so a tuple equals a list and the keys of dicts are strings.
- asserts, pytest: the statement, or the test function with each set of its parameters, ends without an exception.
  `pytest_shim` says how much of pytest there is.

Programs see the names that PRIME's verifier gives them (`PRELUDE`): policies are trained without imports.
"""

from __future__ import annotations

import ast
import json
import secrets
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from verl_cov.tasks.code import sandbox
from verl_cov.tasks.code.comparison import same_output, same_value

FIELD = "reward_model.ground_truth"

JsonObject = dict[str, Any]

# For each kind, the fields that hold the tests, and their types.
_FIELDS: dict[str, dict[str, type]] = {
    "stdio": {"inputs": list, "outputs": list},
    "call": {"function": str, "inputs": list, "outputs": list},
    "asserts": {"asserts": list},
    "pytest": {"tests": str},
}

_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "typing"),
)
# builtins come last: they restore what the other modules shadow (pow, and open of io).
PRELUDE = "\n".join(
    [f"from {name} import *" for name in [*_MODULES, "builtins"]]
    + [f"import {', '.join(_MODULES)}", "sys.setrecursionlimit(600_000)"]
)

RunTest = Callable[[str, sandbox.Limits], tuple[sandbox.Result, bool]]  # (program, limits) -> (how it ended, passed)


def check_tests(ground_truth: str) -> JsonObject:
    """The tests as a dict, checked for their format only: no statement is parsed.

    Raises ValueError, one line that names the field.
    """
    try:
        tests = json.loads(ground_truth)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{FIELD} is not JSON ({error}): {str(ground_truth)[:60]!r}") from None
    kind = tests.get("kind") if isinstance(tests, dict) else None
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise ValueError(f"{FIELD}.kind is {kind!r}; it must be one of {', '.join(_FIELDS)}")
    for field, field_type in _FIELDS[kind].items():
        value = tests.get(field)
        if not isinstance(value, field_type) or not value:
            raise ValueError(f"{FIELD}.{field} must be a {field_type.__name__} that is not empty (kind {kind})")
    if kind in ("stdio", "call") and len(tests["inputs"]) != len(tests["outputs"]):
        raise ValueError(f"{FIELD} has {len(tests['inputs'])} inputs and {len(tests['outputs'])} outputs")
    for field in {"stdio": ("inputs", "outputs"), "asserts": ("asserts",)}.get(kind, ()):
        if not all(isinstance(value, str) for value in tests[field]):
            raise ValueError(f"{FIELD}.{field} must hold strings only (kind {kind})")
    if kind == "call" and not all(isinstance(arguments, list) for arguments in tests["inputs"]):
        raise ValueError(f"{FIELD}.inputs must hold one list of arguments for each test (kind call)")
    return tests


@lru_cache(maxsize=64)  # the responses to one prompt arrive together
def load_tests(ground_truth: str) -> list[RunTest]:
    """The tests, ready to run. Raises ValueError, one line, for a ground truth that is damaged or has no test."""
    try:
        truth = check_tests(ground_truth)
        tests = list(_LOADERS[truth["kind"]](truth))
        if not tests:
            raise ValueError(f"{FIELD} has no test (kind {truth['kind']})")
    except ValueError as error:
        raise ValueError(f"{error}. Repair the data set; the field is {str(ground_truth)[:200]!r}") from None
    return tests


def _load_stdio(truth: JsonObject) -> Iterator[RunTest]:
    for stdin, expected in zip(truth["inputs"], truth["outputs"], strict=True):

        def run(program: str, limits: sandbox.Limits, stdin: str = stdin, expected: str = expected):
            # In an exec of its own: the program may begin with `from __future__`.
            source = f"{PRELUDE}\nexec(compile({program!r}, 'program.py', 'exec', dont_inherit=True))\n"
            result = sandbox.run(source, stdin, limits)
            return result, result.status == "ok" and same_output(result.stdout, expected)

        yield run


def _load_calls(truth: JsonObject) -> Iterator[RunTest]:
    function = truth["function"]
    if not function.isidentifier():
        raise ValueError(f"{FIELD}.function must be a name, got {function!r}")
    for arguments, expected in zip(truth["inputs"], truth["outputs"], strict=True):
        job = {"kind": "call", "function": function, "arguments": arguments}

        def run(program: str, limits: sandbox.Limits, job: JsonObject = job, expected: object = expected):
            result, verdict = _drive(program, job, limits)
            if not (isinstance(verdict, dict) and "value" in verdict):
                return result, False
            value = verdict["value"]
            wrapped = isinstance(expected, list) and len(expected) == 1 and same_value(value, expected[0])
            return result, wrapped or same_value(value, expected)

        yield run


def _load_asserts(truth: JsonObject) -> Iterator[RunTest]:
    for statement in truth["asserts"]:
        # A statement that asserts nothing would always pass.
        if not any(isinstance(node, ast.Assert) for node in ast.walk(_parse(statement, "asserts"))):
            raise ValueError(f"{FIELD}.asserts: {statement!r} has no assert")
        yield _passes_if_true({"kind": "assert", "test": statement})


def _load_pytest(truth: JsonObject) -> Iterator[RunTest]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)  # the latter will fail: nothing awaits them
    for node in _parse(truth["tests"], "tests").body:
        names = []
        if isinstance(node, functions):
            names = [node.name]
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            names = [f"{node.name}::{method.name}" for method in node.body if isinstance(method, functions)]
        for name in names:
            if name.rpartition("::")[2].startswith("test"):
                shim = _source("pytest_shim.py")
                yield _passes_if_true({"kind": "pytest", "tests": truth["tests"], "shim": shim, "name": name})


_LOADERS: dict[str, Callable[[JsonObject], Iterator[RunTest]]] = {
    "stdio": _load_stdio,
    "call": _load_calls,
    "asserts": _load_asserts,
    "pytest": _load_pytest,
}


def _parse(source: str, field: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{FIELD}.{field} is not Python ({error}): {source[:60]!r}") from None


def _passes_if_true(job: JsonObject) -> RunTest:
    def run(program: str, limits: sandbox.Limits) -> tuple[sandbox.Result, bool]:
        result, verdict = _drive(program, job, limits)
        return result, verdict is True

    return run


def _drive(program: str, job: JsonObject, limits: sandbox.Limits) -> tuple[sandbox.Result, object]:
    """Run `driver` on the program. Returns its verdict too, None if it gave none."""
    nonce = secrets.token_hex(16)
    stdin = json.dumps({**job, "prelude": PRELUDE, "program": program, "nonce": nonce})
    result = sandbox.run(_source("driver.py"), stdin, limits)
    _, separator, verdict = result.stdout.rpartition(f"\n{nonce}")
    if result.status != "ok" or not separator:
        return result, None
    try:
        return result, json.loads(verdict)
    except (ValueError, RecursionError):
        return result, None


@cache
def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
