"""A seam's changes can be installed and undone; undoing all of them leaves verl as it is without the plugin."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest

from verl_cov.hooks.seams import Seam, shadowed


def call(original, *args):
    return ("wrapped", original(*args))


def test_wrap_keeps_the_attributes_of_a_function_and_uninstall_restores_it():
    def double(x):
        """Doubles."""
        return 2 * x

    double.dispatch = "one to all"
    owner, seam = SimpleNamespace(double=double), Seam()
    seam.wrap(owner, "double", call)
    assert owner.double(3) == ("wrapped", 6)
    assert (owner.double.dispatch, owner.double.__doc__, owner.double.__name__) == ("one to all", "Doubles.", "double")
    seam.uninstall()
    assert owner.double is double


def test_a_coroutine_function_stays_one():
    async def double(x):
        return 2 * x

    async def await_it(original, x):
        return ("wrapped", await original(x))

    owner, seam = SimpleNamespace(double=double), Seam()
    seam.wrap(owner, "double", await_it)
    assert inspect.iscoroutinefunction(owner.double)
    assert asyncio.run(owner.double(3)) == ("wrapped", 6)


def test_a_shadowed_attribute_shows_again_also_after_an_error_and_within_another_block():
    class Owner:
        name = "of the class"

    owner = Owner()
    with suppress(ZeroDivisionError), shadowed(owner, "name", "outer"), shadowed(owner, "name", "inner"):
        assert owner.name == "inner"
        1 / 0  # noqa: B018
    assert (owner.name, vars(owner)) == ("of the class", {})
    with shadowed(owner, "name", "outer"):
        with shadowed(owner, "name", "inner"):
            pass
        assert owner.name == "outer"


def test_uninstall_undoes_the_newest_change_first():
    order: list[str] = []
    owner, seam = SimpleNamespace(value=1), Seam()
    seam.replace(owner, "value", 2)
    seam.replace(owner, "value", 3)
    for name in ("first", "second"):
        seam.on_uninstall(functools.partial(order.append, name))
    seam.uninstall()
    assert owner.value == 1
    assert order == ["second", "first"]
    seam.uninstall()
    assert order == ["second", "first"]


def test_uninstall_leaves_a_later_change_by_somebody_else_alone():
    owner, seam = SimpleNamespace(value=1), Seam()
    seam.replace(owner, "value", 2)
    owner.value = "theirs"
    seam.uninstall()
    assert owner.value == "theirs"


def test_uninstall_forgets_hooks_that_have_not_run(tmp_path, monkeypatch):
    (tmp_path / "imported_after_uninstall.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[str] = []
    seam = Seam()
    seam.when_imported("imported_after_uninstall", lambda module: seen.append(module.__name__))
    seam.while_importing("imported_after_uninstall", lambda: pytest.fail("the context was entered"))
    seam.uninstall()
    import imported_after_uninstall  # noqa: F401

    assert seen == []


# What of verl has code of ours in it, and the names in the registries that the plugin adds to.
SNAPSHOT = """
import importlib, inspect, json, sys
import verl
for name in ("utils.config", "utils.distributed", "trainer.main_ppo", "trainer.ppo.ray_trainer", "trainer.ppo.v1",
             "workers.engine_workers", "experimental.agent_loop", "workers.engine.fsdp"):
    importlib.import_module("verl." + name)
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.plugin.platform import PlatformRegistry
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.workers.engine.base import EngineRegistry

def ours():
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "verl":
            continue
        owners = [module, *(c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == name)]
        for owner in owners:
            for key, value in list(vars(owner).items()):
                file = value.__code__.co_filename if inspect.isfunction(value) else ""
                # A copy that another module imported by name is not a definition of verl's.
                copy = owner is module and value.__module__ not in (name, None) if file else False
                if "verl_cov" in file and (not copy or value.__module__.startswith("verl_cov")):
                    yield f"{getattr(owner, '__qualname__', owner.__name__)}.{key}"

def snapshot():
    return {
        "ours": sorted(ours()),
        "policy losses": sorted(POLICY_LOSS_REGISTRY),
        "trainers": sorted(TRAINER_REGISTRY),
        "agent loops": sorted(_agent_loop_registry),
        "platforms": sorted(PlatformRegistry.registered_names()),
        "engines": {k: {b: sorted(map(str, d)) for b, d in v.items()} for k, v in EngineRegistry._engines.items()},
    }

result = [snapshot()]
if "verl_cov.plugin" in sys.modules:
    import verl_cov.plugin
    verl_cov.plugin.uninstall()
    result.append(snapshot())
print("SNAPSHOTS" + json.dumps(result))
"""


def snapshots(**environment: str) -> list[dict]:
    variables = {key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"} | environment
    run = subprocess.run(
        [sys.executable, "-c", SNAPSHOT], env=variables, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.rpartition("SNAPSHOTS")[2])


def test_uninstalling_the_plugin_leaves_verl_as_it_is_without_the_plugin():
    (without,) = snapshots(VERL_USE_EXTERNAL_PLUGINS="none")
    installed, uninstalled = snapshots(VERL_PLATFORM="cpu")
    assert len(installed["ours"]) >= 10
    for registry in ("policy losses", "trainers", "agent loops", "platforms", "engines"):
        assert installed[registry] != without[registry], registry
    assert uninstalled == without
    assert without["ours"] == []
