"""As much of pytest as generated unit tests use, for the sandbox, which has only the standard library.

`raises`, `approx`, `fail`, `mark.parametrize`, `param`, and `fixture` (in the module, plain or with yield); other marks
do nothing. A test that uses anything else (`tmp_path`, `capsys`, `monkeypatch`, plugins) fails, and so does a test that
is skipped: `verifier` counts passed tests, and a test that did not run has not passed.

`run(module, name)` runs the test `name` ("test_f" or "TestClass::test_f") with each set of its parameters, and raises
if it fails. It is no test runner for people, and does not imitate pytest's messages.
"""

from __future__ import annotations

import re

# By name: the program may have replaced what the modules hold.
from cmath import isinf, isnan
from inspect import isgenerator, signature
from itertools import product
from typing import Any


class Failed(Exception):
    pass


def fail(reason: str = "", pytrace: bool = True) -> Any:
    raise Failed(reason)


def skip(reason: str = "", **options: Any) -> Any:
    raise Failed(f"skipped: {reason}")


class raises:
    """`with raises(ValueError, match="regex") as info:`, or `raises(ValueError, function, *arguments)`."""

    expected: Any
    pattern: str | None
    value: Any

    def __new__(cls, expected: Any, *call: Any, **options: Any) -> Any:
        self = super().__new__(cls)
        self.expected, self.pattern, self.value = expected, options.pop("match", None), None
        if not call:
            return self
        with self:
            call[0](*call[1:], **options)
        return self

    def __enter__(self) -> raises:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> bool:
        if kind is None:
            raise Failed(f"did not raise {self.expected}")
        if not issubclass(kind, self.expected):
            return False
        self.type, self.value, self.tb = kind, value, trace
        return self.pattern is None or self.match(self.pattern)

    def match(self, pattern: str) -> bool:
        if not re.search(pattern, str(self.value)):
            raise Failed(f"{pattern!r} does not match {str(self.value)!r}")
        return True


class approx:
    """Numbers, and lists, tuples and dicts of them: within max(rel * |expected|, abs); 1e-6 and 1e-12 by default."""

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None, nan_ok: bool = False):
        self.expected, self.rel, self.abs, self.nan_ok = expected, rel, abs, nan_ok

    def __eq__(self, actual: Any) -> bool:
        return self._close(actual, self.expected)

    def __repr__(self) -> str:
        return f"approx({self.expected!r})"

    __hash__ = None  # type: ignore[assignment]

    def _close(self, actual: Any, expected: Any) -> bool:
        if isinstance(expected, dict):
            return (
                isinstance(actual, dict)
                and actual.keys() == expected.keys()
                and all(self._close(actual[key], value) for key, value in expected.items())
            )
        if isinstance(expected, (list, tuple)):
            return (
                isinstance(actual, (list, tuple))
                and len(actual) == len(expected)
                and all(map(self._close, actual, expected))
            )
        if not isinstance(expected, (int, float, complex)) or not isinstance(actual, (int, float, complex)):
            return bool(actual == expected)
        if isnan(expected) or isnan(actual):
            return self.nan_ok and isnan(expected) and isnan(actual)
        relative = 1e-6 if self.rel is None else self.rel
        if self.abs is not None and self.rel is None:  # an absolute tolerance alone is the only one, as in pytest
            relative = 0.0
        if isinf(expected) or isinf(actual):
            return actual == expected
        tolerance = max(relative * abs(expected), 1e-12 if self.abs is None else self.abs)
        return abs(actual - expected) <= tolerance


class _Mark:
    def parametrize(self, names: Any, values: Any, **options: Any) -> Any:
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        # An element of several names is a sequence of values, of one name the value itself.
        rows = [row.values if isinstance(row, param) else row if len(names) > 1 else (row,) for row in values]

        def decorate(function: Any) -> Any:
            function.parameters = [
                [dict(zip(names, row, strict=True)) for row in rows],
                *getattr(function, "parameters", []),
            ]
            return function

        return decorate

    def __getattr__(self, name: str) -> Any:
        def mark(*arguments: Any, **options: Any) -> Any:
            if name in ("skip", "skipif", "xfail"):
                return lambda function: lambda: skip(name)
            bare = len(arguments) == 1 and not options and callable(arguments[0])
            return arguments[0] if bare else lambda function: function

        return mark


mark = _Mark()


class param:
    def __init__(self, *values: Any, **options: Any):
        self.values = values


def fixture(*arguments: Any, **options: Any) -> Any:
    """`@fixture`, `@fixture(scope=...)`: the scope is one test. `params` are not supported."""

    def decorate(function: Any) -> Any:
        if "params" in options:
            raise Failed("fixtures with params are not supported")
        function.fixture_name = options.get("name") or function.__name__
        return function

    return decorate(arguments[0]) if arguments else decorate


def run(module: Any, name: str) -> None:
    owner, _, function_name = name.rpartition("::")
    function = getattr(getattr(module, owner) if owner else module, function_name)
    rows = product(*getattr(function, "parameters", []))
    for row in rows:
        values = {name: value for part in row for name, value in part.items()}
        instance: Any = getattr(module, owner)() if owner else None
        if hasattr(instance, "setup_method"):
            instance.setup_method()
        test = getattr(instance, function_name) if owner else function
        candidates = [getattr(scope, attribute) for scope in (module, instance) for attribute in dir(scope)]
        fixtures = {made.fixture_name: made for made in candidates if hasattr(made, "fixture_name")}
        unfinished: list[Any] = []
        test(**_arguments(test, values, fixtures, unfinished))
        for generator in reversed(unfinished):
            next(generator, None)
        if hasattr(instance, "teardown_method"):
            instance.teardown_method()


def _arguments(
    function: Any, values: dict[str, Any], fixtures: dict[str, Any], unfinished: list[Any]
) -> dict[str, Any]:
    """The arguments of `function`, by name: parameters first, then fixtures, each made once a test."""
    for name, wanted in signature(function).parameters.items():
        if name in values or wanted.default is not wanted.empty:
            continue
        if name not in fixtures:
            raise Failed(f"no fixture {name!r}")
        made = fixtures[name](**_arguments(fixtures[name], values, fixtures, unfinished))
        if isgenerator(made):
            unfinished.append(made)
            made = next(made)
        values[name] = made
    return {name: values[name] for name in signature(function).parameters if name in values}
