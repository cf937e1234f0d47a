"""Runs one test against a program, inside the sandbox: the source that `code_verifier` hands to `sandbox.run`.

On stdin comes {prelude, program, nonce, kind, ...}; on stdout goes the nonce and the verdict, as the last thing. What
the program itself prints goes nowhere. No verdict (it raised, left, hung, was killed) is a failed test.

- call: {function, arguments} -> {value}; what the function returned, as JSON. Comparing it is not this process's job.
- assert: {test}: the statement -> true
- pytest: {tests, shim, name}: the test module's source, `pytest_shim`'s, and which test to run -> true

Only the standard library, and nothing of ours can be imported: this is a text that is run, not a module.
"""

from __future__ import annotations

import io
import json
import os
import sys
import types
from typing import Any


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


def _module(name: str, source: str, **names: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module
    exec(compile(source, f"{name}.py", "exec", dont_inherit=True), module.__dict__)
    return module


def _call(solution: types.ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    name = job["function"]
    function = getattr(solution, name, None)
    if function is None:
        function = getattr(solution.Solution(), name)
    return {"value": function(*job["arguments"])}


def _assert(solution: types.ModuleType, job: dict[str, Any]) -> bool:
    exec(compile(job["test"], "test.py", "exec", dont_inherit=True), solution.__dict__)
    return True


def _pytest(solution: types.ModuleType, job: dict[str, Any]) -> bool:
    shim = _module("pytest", job["shim"])
    tests = _module("test_solution", job["tests"])
    shim.run(tests, job["name"])
    return True


def _as_json(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (range, map, filter, zip, type({}.keys()), type({}.values()))):
        return list(value)
    raise TypeError(f"not a plain value: {type(value)}")


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    kind, nonce = {"call": _call, "assert": _assert, "pytest": _pytest}[job["kind"]], job.pop("nonce")
    verdicts = os.dup(1)
    sys.stdin = io.StringIO()
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Nowhere()), encoding="utf-8")
    prelude: dict[str, Any] = {}
    exec(job["prelude"], prelude)
    prelude.pop("__builtins__")
    solution = _module("solution", job["program"], **prelude)
    verdict = json.dumps(kind(solution, job), default=_as_json)
    data = f"\n{nonce}{verdict}\n".encode()
    while data:
        data = data[os.write(verdicts, data) :]


main()
