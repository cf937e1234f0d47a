"""Post-import hooks: run once, at the right moment, without importing anything themselves."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys

import pytest

from verl_cov.hooks import imports
from verl_cov.hooks.imports import when_imported, while_importing


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hooked_package").mkdir()
    (tmp_path / "hooked_package" / "__init__.py").write_text("")
    (tmp_path / "hooked_package" / "target.py").write_text("def value():\n    return 1\n\nseen = value()\n")
    (tmp_path / "hooked_package" / "user.py").write_text("from hooked_package.target import value\n")
    yield "hooked_package.target"
    for name in [name for name in sys.modules if name.startswith("hooked_package")]:
        del sys.modules[name]


def test_callback_runs_once_after_the_body_and_before_the_importer_goes_on(module):
    calls = []

    def replace(loaded):
        calls.append(loaded.seen)
        loaded.value = lambda: 2

    when_imported(module, replace)
    assert module not in sys.modules
    user = importlib.import_module("hooked_package.user")
    importlib.import_module(module)
    assert calls == [1]
    assert user.value() == 2
    assert "return 1" in inspect.getsource(sys.modules[module])


def test_callback_runs_at_once_if_the_module_is_there(module):
    importlib.import_module(module)
    calls = []
    when_imported(module, calls.append)
    assert calls == [sys.modules[module]]


def test_context_is_open_while_the_body_runs_only(module):
    events = []

    @contextlib.contextmanager
    def context():
        events.append("in")
        yield
        events.append("out")

    while_importing(module, context)
    when_imported(module, lambda loaded: events.append("after"))
    importlib.import_module(module)
    assert events == ["in", "out", "after"]


def test_what_a_callback_raises_is_kept_and_the_import_goes_on(module, monkeypatch):
    def fail(loaded):
        raise ValueError("on purpose")

    monkeypatch.setattr(imports, "failures", [])
    calls = []
    when_imported(module, fail)
    when_imported(module, calls.append)
    assert importlib.import_module(module) is calls[0]
    assert imports.failures == [f"{module}: ValueError: on purpose"]


def test_missing_modules_stay_missing(module):
    when_imported("hooked_package.absent", print)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hooked_package.absent")
