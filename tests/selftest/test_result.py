"""What a self-test needs, writes and says: core level without verl, no private data in the file, exit codes."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import sys
import types
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import compat, compat_page
from verl_cov.cli import app
from verl_cov.selftest import LEVELS, hook, machine, ranks, result

ROOT = Path(__file__).parents[2]
# Nothing of verl's and nothing of the command line's can be imported: what a bare machine with torch has.
BARE = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
sys.argv = ["selftest", *sys.argv[1:]]
runpy.run_module("verl_cov.selftest", run_name="__main__")
"""
ABSENT = {"verl", "ray", "vllm", "hydra", "omegaconf", "tensordict", "transformers", "tokenizers", "accelerate"}
ABSENT |= {"typer", "click", "rich", "psutil", "yaml", "packaging", "scipy", "pandas", "datasets"}


def bare(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE.format(absent=ABSENT), *arguments]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    file = tmp_path_factory.mktemp("result") / "result.json"
    return bare("--device", "cpu", "-o", str(file)), file


def test_the_core_level_needs_torch_numpy_and_jaxtyping_alone(ran):
    done, file = ran
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed  core: selection, bfloat16, 100,000 tokens" in done.stdout  # without rich, plain lines
    assert "not possible  hook: verl's engine starts (FSDP2)  verl is not installed here" in done.stdout
    assert {check["outcome"] for check in result.read(file)["checks"]} == {"passed", "not possible"}
    assert [timing["name"] for timing in result.read(file)["timings"]]


def test_the_file_names_no_host_no_user_and_no_path(ran):
    text = ran[1].read_text()
    for private in (socket.gethostname(), getpass.getuser(), str(Path.home()), str(ROOT), sys.prefix):
        assert len(private) < 4 or private in ("root", "/root") or private not in text


def test_a_cause_names_no_host_no_user_and_no_path(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-box-17")
    monkeypatch.setattr(getpass, "getuser", lambda: "jane.doe")
    text = "FileNotFoundError: '/home/jane.doe/models/m.json' on gpu-box-17\n (~/secret/x.py), jane.doe: 3/4 of 0.5/s"
    found = machine.scrubbed(text)
    assert found == "FileNotFoundError: 'm.json' on HOST (x.py), USER: 3/4 of 0.5/s"
    here = ranks.Rank(device=None)  # type: ignore[arg-type]

    def breaks() -> None:
        raise OSError("cannot open /data/jane.doe/corpus/part-0 on gpu-box-17")

    here.check("core", "one", breaks)
    assert here.checks[-1].cause == "OSError: cannot open part-0 on HOST"
    assert here.failed


def test_a_failure_is_exit_code_1_and_bad_input_2(monkeypatch, tmp_path):
    from verl_cov.selftest import core

    monkeypatch.setitem(core.SIZES, "cpu", (1000,))
    monkeypatch.setattr(core.oracle, "quota", lambda ratio, tokens: 3)
    runner, file = CliRunner(), tmp_path / "result.json"
    failed = runner.invoke(app, ["selftest", "--device", "cpu", "--levels", "core", "-o", str(file)])
    assert failed.exit_code == 1
    assert "FAILED on the CPU" in failed.output
    causes = [check["cause"] for check in json.loads(file.read_text())["checks"] if check["outcome"] == "failed"]
    assert any("KL-Cov with 0.002 selects other tokens than the numpy oracle: " in cause for cause in causes)
    for options, words in (
        (["--device", "tpu"], "--device tpu: it must be auto, cpu or cuda"),
        (["--levels", "core,hooks"], "--levels hooks: there are core,hook,train"),
        (["-o", str(tmp_path / "no" / "x.json")], "give a file in a folder that exists"),
    ):
        refused = runner.invoke(app, ["selftest", *options])
        assert refused.exit_code == 2
        assert words in " ".join(refused.output.split())


def test_the_help_names_every_level():
    module = subprocess.run(
        [sys.executable, "-m", "verl_cov.selftest", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    command = CliRunner().invoke(app, ["selftest", "--help"], env={"COLUMNS": "200"})
    for shown in (module.stdout, command.output):
        assert all(f"{level}, {what}" in " ".join(shown.replace("│", " ").split()) for level, what in LEVELS.items()), (
            shown
        )


def test_full_adds_the_level_train_and_naming_it_is_enough(monkeypatch):
    from verl_cov.selftest import whole

    ran = []
    monkeypatch.setattr(whole.core, "run", lambda here: ran.append("core"))
    monkeypatch.setattr(whole.speed, "measure_core", lambda here: None)
    monkeypatch.setattr(whole.train, "run", lambda here: ran.append("train"))
    for full, levels in ((False, ("train",)), (True, ("core",)), (False, ("core",))):
        assert whole.selftest("cpu", full=full, levels=levels) == 0
    assert ran == ["train", "core", "train", "core"]


def test_no_update_is_no_update_in_which_the_hook_fired():
    made = hook.Engine(worker=None, plain=None, layouts=())
    assert hook._fired(made) is not None
    made.updates = made.fired = 2
    assert hook._fired(made) is None


def test_a_verl_without_metadata_is_in_the_versions(monkeypatch):
    monkeypatch.setitem(sys.modules, "verl", types.SimpleNamespace(__version__="0.9.1+fork"))
    assert machine.versions()["verl"] == "0.9.1+fork"


# --- the page ---------------------------------------------------------------------------------------------------------


def sent(folder: Path, name: str, **changes: object) -> None:
    good = {
        "format": 1,
        "verl_cov": "0.1.0",
        "date": "2026-11-28",
        "seconds": 90.0,
        "versions": {"verl": "0.9.1", "torch": "2.11.0"},
        "hardware": {"device": "cuda", "accelerator": "Some | GPU", "ranks": 2},
        "checks": [dict(level="core", name="x", outcome="passed", cause="")] * 3
        + [dict(level="hook", name="KL-Cov, one micro-batch", outcome="failed", cause="the hook did not fire")],
        "timings": [],
    }
    (folder / name).write_text(json.dumps({**good, **changes}))


def test_the_page_has_a_row_for_each_result_and_a_line_for_what_is_damaged(tmp_path):
    sent(tmp_path, "b.json")
    sent(tmp_path, "a.json", hardware={"device": "cpu", "cpu": "a CPU", "ranks": 1}, date="2026-11-27")
    sent(tmp_path, "old.json", format=0)
    sent(tmp_path, "edited.json", checks=[{"level": "core"}])
    (tmp_path / "cut.json").write_text('{"format": 1, "che')
    (tmp_path / "list.json").write_text("[1]")
    text = compat_page.selftests(tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| a CPU | 1 | 0.9.1 | 2.11.0 | 3 passed | 1 failed |  | 2026-11-27 |",
        r"| Some \| GPU | 2 | 0.9.1 | 2.11.0 | 3 passed | 1 failed |  | 2026-11-28 |",
    ]
    assert "Left out, 4 files: cut.json (" in text
    assert "old.json (format 0, and this verl-cov reads 1)" in text
    assert "was a GPU" not in text
    assert "hook, KL-Cov, one micro-batch: the hook did not fire" in text


@pytest.fixture
def recorded(monkeypatch, tmp_path) -> Path:
    """A copy of docs/compatibility.json, which is written instead."""
    copy = tmp_path / "compatibility.json"
    copy.write_text(compat_page.RESULTS.read_text())
    monkeypatch.setattr(compat_page, "RESULTS", copy)
    monkeypatch.setattr(compat_page, "PAGE", tmp_path / "compatibility.md")
    return copy


def test_the_selftest_alone_keeps_what_the_groups_of_a_release_found(monkeypatch, recorded):
    before, asked = recorded.read_text(), []
    monkeypatch.setattr(compat, "environment", lambda version, fresh: Path(sys.executable))
    monkeypatch.setattr(compat, "run", lambda *_: pytest.fail("a group ran"))
    monkeypatch.setattr(compat, "selftest", lambda python, version, write: not asked.append((version, write)))
    monkeypatch.setattr(sys, "argv", ["compat", "0.8.0", "--groups", "selftest"])
    assert compat.main() == 0
    assert asked == [("0.8.0", True)]
    assert recorded.read_text() == before


def test_a_part_of_the_groups_keeps_the_others_and_each_its_day(recorded):
    before = json.loads(recorded.read_text())["0.9.1"]
    one = asdict(compat.Outcome(passed=7, date="2031-02-03"))
    compat_page.record("0.9.1", before["stack"], {"unit": one})
    after = json.loads(recorded.read_text())["0.9.1"]["outcomes"]
    assert after == {**before["outcomes"], "unit": one}
    assert f"{before['outcomes']['engine']['date']} to 2031-02-03 |" in compat_page.PAGE.read_text()
    # What ran with other packages says nothing about these.
    compat_page.record("0.9.1", {**before["stack"], "torch": "9.9"}, {"unit": one})
    assert json.loads(recorded.read_text())["0.9.1"]["outcomes"] == {"unit": one}


def test_the_page_in_docs_is_what_the_files_give():
    assert compat_page.PAGE.read_text() == compat_page.page(compat_page.read())
    files = sorted(compat_page.SELFTESTS.glob("*.json"))
    assert files
    for file in files:
        result.read(file)
