"""``verl-cov doctor``: what it says, its exit code and the fix, where all is well and where something is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest
import verl
import verl.utils
from omegaconf import OmegaConf
from typer.testing import CliRunner
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

from verl_cov.cli import app
from verl_cov.doctor import checks, run
from verl_cov.hooks import versions
from verl_cov.hooks.status import status

ROOT = Path(__file__).parents[1]
RELEASE = versions.installed_release()
NEEDS_NO_PATCH = pytest.mark.skipif(RELEASE.legacy, reason="this verl's default actor needs the patch")


@pytest.fixture(autouse=True)
def _loaded(monkeypatch):
    """As a user of this release has it set."""
    monkeypatch.delenv("VERL_USE_EXTERNAL_PLUGINS", raising=False)
    monkeypatch.delenv("VERL_USE_EXTERNAL_MODULES", raising=False)
    if RELEASE.plugins == "VERL_USE_EXTERNAL_MODULES":
        monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "verl_cov.plugin")


def parse(stdout: str, code: int) -> tuple[dict[tuple[str, str], str], set[str]]:
    """(section, name) -> "level: text" (lines of one name joined), and the names that fail."""
    report = json.loads(stdout)
    lines: dict[tuple[str, str], str] = {}
    for section in report.keys() - {"verl_cov", "ok"}:
        for check in report[section]:
            key = (section, check["name"])
            lines[key] = lines.get(key, "") + f"{check['level']}: {check['text']}\n"
    failed = {name for (_, name), text in lines.items() if "FAIL: " in text}
    assert (code, report["ok"]) == (int(bool(failed)), not failed)
    return lines, failed


def doctor(*words: object) -> tuple[dict[tuple[str, str], str], set[str]]:
    done = CliRunner().invoke(app, ["doctor", "--json", *map(str, words)])
    return parse(done.stdout, done.exit_code)


def process(*words: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from verl_cov.cli import main; main()", "doctor", *words]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=variables)


def lacking() -> set[str]:
    """What is wrong with the environment of these tests: older releases are tested without vLLM, and unpatched."""
    engines = [version for name in checks.ROLLOUT_ENGINES if (version := versions.installed(name))]
    patched = (Path(verl.__file__).parent / "utils" / "mini_batch_hook.py").exists()
    return ({"vllm"} if not engines else set()) | ({"patch"} if not RELEASE.engine and not patched else set())


# --- all is well ------------------------------------------------------------------------------------------------------


def test_a_real_process_says_all_of_it():
    done = process("--json")
    lines, failed = parse(done.stdout, done.returncode)
    assert failed == lacking()
    for name in ("verl-cov", "torch", "ray", "transformers", "hydra-core", "omegaconf"):
        assert lines["versions", name] == f"ok: {version(name)}\n"
    assert lines["verl", "verl"].startswith(f"ok: {verl.__version__} in {Path(verl.__file__).parent}\n")
    assert lines["verl", "losses"] == "ok: verl_cov.clip_cov, verl_cov.kl_cov\n"
    hook = "train_batch" if RELEASE.engine else "legacy_actor"
    assert {"policy_losses", hook} <= set(lines["verl", "hooks"].removeprefix("ok: ").strip().split(", "))
    assert RELEASE.plugins.split()[0] in lines["verl", "loaded through"]
    assert lines["machine", "CPU"].startswith(f"ok: {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores")
    assert not any(section == "run" for section, _ in lines)


def test_the_table_ends_with_what_it_comes_to(monkeypatch):
    done = CliRunner().invoke(app, ["doctor"])
    last = done.stdout.splitlines()[-1]
    said = f"{len(lacking())} FAILED" if lacking() else "1 to look at" if RELEASE.legacy else "all is well"
    assert last.startswith(said)
    assert "`verl-cov doctor" in last  # what to do next
    monkeypatch.setattr(status, "registration_error", "ImportError: [no] module")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1].startswith(f"{len(lacking()) + 1} FAILED")
    (line,) = (line for line in done.stdout.splitlines() if "ImportError: [no] module" in line)
    assert line.startswith("FAIL  plugin")


# --- a run ------------------------------------------------------------------------------------------------------------


@NEEDS_NO_PATCH
def test_a_run_that_asks_for_verl_cov_is_told_apart_from_one_that_does_not():
    ours, theirs = doctor("+verl_cov=kl_cov")[0], doctor("trainer.total_epochs=3")[0]
    assert "ok: asks for verl-cov" in ours["run", "configuration"]
    assert "is active: loss_mode=verl_cov.kl_cov on ratio (kl_cov_ratio=0.002" in ours["run", "configuration"]
    assert theirs["run", "configuration"].startswith("note: does not ask for verl-cov")


@NEEDS_NO_PATCH
def test_a_file_is_judged_as_the_overrides_that_made_it(tmp_path):
    overrides = ["+verl_cov=clip_cov", "actor_rollout_ref.actor.policy_loss.clip_cov_ratio=0.001"]
    OmegaConf.save(run.load_config(overrides, None), tmp_path / "config.yaml")
    of_file, of_overrides = doctor("--config", tmp_path / "config.yaml")[0], doctor(*overrides)[0]
    assert "clip_cov_ratio=0.001" in of_file["run", "configuration"]
    assert of_file["run", "configuration"] == of_overrides["run", "configuration"]


@NEEDS_NO_PATCH
def test_what_the_start_up_check_warns_of_is_in_the_report_and_fails_nothing():
    lines, failed = doctor("+verl_cov=kl_cov", "data.train_batch_size=256")
    assert "warn: WARNING: KL-Cov will do NOTHING: one update per rollout" in lines["run", "configuration"]
    assert failed == lacking()


@NEEDS_NO_PATCH
def test_what_this_machine_cannot_run_is_said_and_a_misspelt_flag_fails():
    lines, _ = doctor("+verl_cov=kl_cov")
    if RELEASE.v1:  # before, nothing of ours looks at the machine
        assert "warn: WARNING: on this machine it would not start: trainer.device=cuda" in lines["run", "configuration"]
        last = CliRunner().invoke(app, ["doctor", "+verl_cov=kl_cov"]).stdout.splitlines()[-1]
        assert lacking() or "to look at: it would not start here; " in last
    lines, failed = doctor("+verlcov=kl_cov")
    assert failed == {"configuration"} | lacking()
    assert "did you mean +verl_cov=kl_cov?" in lines["run", "configuration"]


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("actor_rollout_ref.actor.policy_loss.kl_cov_ratio=2", "kl_cov_ratio=2 must be a fraction"),
        ("actor_rollout_ref.actor.policy_los.kl_cov_ratio=0.1", "did you mean"),
        ("actor_rollout_ref.actor.policy_loss.cov_seed=[", "is not in Hydra's grammar"),
    ],
)
def test_a_run_that_would_be_refused_is_a_failure_that_names_the_field(override, text):
    lines, failed = doctor("+verl_cov=kl_cov", override)
    assert failed == {"configuration"} | lacking()
    assert text in lines["run", "configuration"]


@pytest.mark.parametrize(("content", "text"), [("a: [", "cannot be read as YAML"), ("a: 1", "no actor_rollout_ref")])
def test_a_file_that_is_no_configuration_of_verls_is_named(tmp_path, content, text):
    path = tmp_path / "other.yaml"
    path.write_text(content)
    lines, _ = doctor("--config", path)
    assert f"FAIL: the run would not start: {path}" in lines["run", "configuration"]
    assert text in lines["run", "configuration"]


# --- broken on purpose ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "modules", "plugins", "level", "text"),
    [
        ("0.9.1", None, None, "ok", "the entry point verl.plugins: verl_cov.plugin"),
        ("0.9.1", None, "Other, verl_cov", "ok", "the entry point"),
        ("0.9.1", None, "none", "FAIL", "VERL_USE_EXTERNAL_PLUGINS=none blocks the entry point: unset it"),
        ("0.9.1", "json,verl_cov.plugin", "none", "ok", "VERL_USE_EXTERNAL_MODULES=json,verl_cov.plugin"),
        ("0.8.0", None, None, "FAIL", "export VERL_USE_EXTERNAL_MODULES=verl_cov.plugin on every node"),
        ("0.8.0", "json, verl_cov.plugin", None, "FAIL", "export VERL_USE_EXTERNAL_MODULES=json,verl_cov.plugin "),
        ("0.8.0", "verl_cov.plugin", None, "ok", "VERL_USE_EXTERNAL_MODULES=verl_cov.plugin"),
    ],
)
def test_how_verl_is_told_of_the_plugin(monkeypatch, release, modules, plugins, level, text):
    for name, value in (("MODULES", modules), ("PLUGINS", plugins)):
        monkeypatch.delenv(f"VERL_USE_EXTERNAL_{name}", raising=False)
        if value is not None:
            monkeypatch.setenv(f"VERL_USE_EXTERNAL_{name}", value)
    check = checks.check_route(versions.release_of(release))
    assert check.level == level
    assert text in check.text


def test_a_plugin_that_verl_did_not_load_fails_and_no_run_is_judged(monkeypatch):
    monkeypatch.delitem(sys.modules, "verl_cov.plugin")
    lines, failed = doctor("+verl_cov=kl_cov")
    assert failed == {"plugin", "configuration"} | lacking()
    assert "FAIL: not checked" in lines["run", "configuration"]
    assert "verl_cov.plugin" not in sys.modules


def test_a_loss_that_is_not_registered_fails(monkeypatch):
    monkeypatch.delitem(POLICY_LOSS_REGISTRY, "verl_cov.kl_cov")
    lines, failed = doctor()
    assert failed == {"losses"} | lacking()
    assert "verl_cov.kl_cov not in verl's registry" in lines["verl", "losses"]


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("release", versions.RELEASES, ids=lambda release: release.version)
def test_the_patch_is_asked_for_where_an_actor_needs_it(monkeypatch, tmp_path, release, applied):
    if applied:
        (tmp_path / "mini_batch_hook.py").touch()
    monkeypatch.setattr(verl.utils, "__path__", [str(tmp_path)])
    check = checks._check_patch(release)
    needed = release.legacy and not applied
    assert check.level == ("ok" if not needed else "warn" if release.engine else "FAIL")
    assert ("`verl-cov patch apply`, on every node" in check.text) == needed


@pytest.mark.parametrize("number", ["0.8.5", "0.99.0", "0.8.0" if RELEASE.v1 else "0.9.1"])
def test_a_verl_that_is_not_supported_is_refused_with_the_one_to_install(monkeypatch, number):
    """The last number is that of a supported release with other parts than this one."""
    monkeypatch.setattr(verl, "__version__", number)
    lines, failed = doctor()
    assert failed == {"verl"} | lacking() - {"patch"}
    assert "pip install verl==" in lines["verl", "verl"]
    assert {name for section, name in lines if section == "verl"} == {"verl"}


def test_a_verl_that_cannot_be_imported_is_said_once(tmp_path):
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").write_text("import a_package_that_verl_wants\n")
    done = process("+verl_cov=kl_cov", "--json", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.stdout.count("a_package_that_verl_wants") == 1
    assert "Traceback" not in done.stderr
    assert parse(done.stdout, done.returncode)[1] == {"verl", "configuration"} | lacking() - {"patch"}


@pytest.mark.parametrize(
    ("hidden", "words", "failed"), [((), [], set()), ((), ["+verl_cov=kl_cov"], {"verl"}), (("scipy",), [], {"verl"})]
)
def test_without_verl_there_is_no_problem_for_the_law_and_one_for_a_training(tmp_path, hidden, words, failed):
    """sitecustomize.py puts a site-packages without verl in the place of the real one."""
    installed = Path(sysconfig.get_paths()["purelib"])
    (tmp_path / "packages").mkdir()
    for path in installed.iterdir():
        if path.suffix != ".pth" and path.name.partition("-")[0] not in ("verl", "vllm", "torch", "ray", *hidden):
            (tmp_path / "packages" / path.name).symlink_to(path)
    swap = f"import sys\nsys.path[sys.path.index({str(installed)!r})] = {str(tmp_path / 'packages')!r}\n"
    (tmp_path / "sitecustomize.py").write_text(swap)
    done = process("--json", *words, PYTHONPATH=f"{tmp_path}:{ROOT}")
    lines, found = parse(done.stdout, done.returncode)
    assert found == failed
    level = "FAIL" if failed else "note"
    assert lines["verl", "verl"].startswith(f"{level}: not installed (a training needs it; ")
    assert f"pip install 'verl[verl-core]=={versions.NEWEST.version}'" in lines["verl", "verl"]
    assert ("versions", "torch") not in lines  # verl's line says it for all that comes with verl
    assert lines["versions", "extra law"].startswith("note: not installed" if hidden else "ok")


# --- what is pasted ---------------------------------------------------------------------------------------------------


@NEEDS_NO_PATCH
def test_a_whole_command_may_be_pasted():
    pasted = doctor("HYDRA_FULL_ERROR=1", "python3", "-u", "-m", "verl.trainer.main_ppo", "+verl_cov=kl_cov")[0]
    assert pasted["run", "configuration"] == doctor("+verl_cov=kl_cov")[0]["run", "configuration"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["python", "+verl_cov=kl_cov"], "python is no override (KEY=VALUE): give what comes after `python -m verl."),
        (["python", "-m", "verl.trainer.main_ppo", "--config-name=ppo_megatron_trainer"], "and give --config run.yaml"),
        (["python", "-m", "verl.experimental.fully_async_policy.fully_async_main"], "and give --config run.yaml"),
        (["--jsn"], "there is no option --jsn"),
        (["+verl_cov=kl_cov", "-x"], "there is no option -x"),
    ],
)
def test_words_that_cannot_be_judged_are_one_line_with_the_fix(words, says):
    done = CliRunner().invoke(app, ["doctor", *words])
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("+verl_cov=[klcov]", "+verl_cov=klcov is unknown: did you mean kl_cov?"),
        ("+verl_cov=clipcov", "did you mean clip_cov?"),
        ("verl_cov=kl_cov", "needs a plus: +verl_cov=NAME"),
    ],
)
def test_a_control_that_is_misspelt_gets_the_nearest_name(word, says):
    lines, failed = doctor(word)
    assert failed == {"configuration"} | lacking()
    assert says in lines["run", "configuration"]
