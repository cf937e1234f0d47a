"""Runs one test against a program, inside the sandbox: the source that `ground_truth` hands to `sandbox.run`.

It reads {prelude, program, nonce, kind, ...} from stdin and, as its last act, writes the nonce and the verdict to
stdout. What the program itself prints is dropped. No verdict (the program raised, exited, hung, was killed) is a failed
test.

- call: {function, arguments} -> {value}, what the function returned, as JSON. The parent compares it.
- assert: {test}, the statement -> true
- pytest: {tests, shim, name}, the test module's source, `pytest_shim`'s source, and which test to run -> true

What the verdict depends on is compiled, or bound to local names, before the program runs: a program that replaces
`builtins.exec` or `json.dumps` gains nothing. The nonce is kept in one closure, in no frame and no longer in stdin.

Needs only the standard library, and can import nothing else of this package: it is run as a text, not as a module.
"""

from __future__ import annotations

import io
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

_Job = dict[str, Any]  # JSON
_Test = Callable[[types.ModuleType], str]  # solution -> verdict


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


def _code(source: str, name: str) -> types.CodeType:
    return compile(source, name, "exec", dont_inherit=True)


def _call(job: _Job) -> _Test:
    name, arguments, encode, get = job["function"], job["arguments"], json.JSONEncoder(default=_as_json).encode, getattr

    def test(solution: types.ModuleType) -> str:
        function = get(solution, name, None)
        if function is None:
            function = get(solution.Solution(), name)
        return encode({"value": function(*arguments)})

    return test


def _assert(job: _Job) -> _Test:
    statement, run = _code(job["test"], "test.py"), exec

    def test(solution: types.ModuleType) -> str:
        run(statement, solution.__dict__)
        return "true"

    return test


def _pytest(job: _Job) -> _Test:
    shim, tests, modules, run = types.ModuleType("pytest"), types.ModuleType("test_solution"), sys.modules, exec
    # A copy of the builtins: its functions look them up when they run.
    shim.__dict__["__builtins__"] = dict(vars(__import__("builtins")))
    run(_code(job["shim"], "pytest.py"), shim.__dict__)
    code, name, start = _code(job["tests"], "test_solution.py"), job["name"], shim.run

    def test(solution: types.ModuleType) -> str:
        modules.update(pytest=shim, test_solution=tests)
        run(code, tests.__dict__)
        start(tests, name)
        return "true"

    return test


def _as_json(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (range, map, filter, zip, type({}.keys()), type({}.values()))):
        return list(value)
    raise TypeError(f"not a plain value: {type(value)}")


def _reporter(nonce: str) -> Callable[[str], None]:
    verdicts, write = os.dup(1), os.write

    def report(verdict: str) -> None:
        data = f"\n{nonce}{verdict}\n".encode()
        while data:
            data = data[write(verdicts, data) :]

    return report


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # stdin is a file, and could be read again
    report = _reporter(job.pop("nonce"))
    test = {"call": _call, "assert": _assert, "pytest": _pytest}[job["kind"]](job)
    sys.stdin = io.StringIO()
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Nowhere()), encoding="utf-8")
    solution = types.ModuleType("solution")
    exec(job["prelude"], solution.__dict__)
    sys.modules["solution"] = solution
    exec(_code(job["program"], "solution.py"), solution.__dict__)
    report(test(solution))


main()
