"""`verl-cov patch` as a user types it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tests.patch.conftest import ORIGINAL, ROOT, A, Place
from verl_cov.cli import app
from verl_cov.patch import files, installation


def run(*words: object):
    return CliRunner().invoke(app, ["patch", *map(str, words)])


def at(place: Place, command: str):
    return run(command, "--verl-path", place.site)


def one_line(done, code: int, said: str) -> None:
    """On standard error, with that exit code."""
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith("verl-cov: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_from_check_to_revert(place):
    done = at(place, "check")
    assert (done.exit_code, done.stdout.count("\n")) == (0, 1)
    assert done.stdout.startswith(f"verl 0.9.1, {place.package}: not applied; apply would change {A}, ")
    place.assert_as_before()
    done = at(place, "apply")
    assert done.exit_code == 0
    assert "Every node needs it" in done.stdout
    assert "Ray workers that run keep the old code" in done.stdout
    place.assert_patched()
    done = at(place, "check")
    assert (done.exit_code, done.stdout) == (0, f"verl 0.9.1, {place.package}: applied\n")
    done = at(place, "apply")
    assert (done.exit_code, done.stdout) == (0, f"verl 0.9.1, {place.package}: already applied\n")
    done = at(place, "revert")
    assert done.exit_code == 0
    assert "Ray workers that run keep the old code" in done.stdout
    place.assert_as_before()
    done = at(place, "revert")
    assert (done.exit_code, done.stdout) == (0, f"verl 0.9.1, {place.package}: nothing to revert\n")


def test_a_fork_is_refused(place):
    place.file(A).write_bytes(b"fork")
    done = at(place, "check")
    assert (done.exit_code, done.stdout.count("\n")) == (1, 1)
    assert f"other; neither verl 0.9.1's nor patched: {A} " in done.stdout
    one_line(at(place, "apply"), 2, f"nor patched: {A}")
    one_line(at(place, "revert"), 2, f"nor as patched: {A}")


def test_another_release_is_refused(place):
    (place.site / "verl-0.9.1.dist-info" / "METADATA").write_text("Version: 0.4.0\n")
    done = at(place, "check")
    assert (done.exit_code, done.stdout) == (
        1,
        f"verl 0.4.0, {place.package}: no patch; the releases that have one: 0.9.1\n",
    )
    one_line(at(place, "apply"), 2, "the releases that have one: 0.9.1")


def test_a_path_that_is_no_verl(place, tmp_path):
    for command, code in (("check", 1), ("apply", 2), ("revert", 2), ("list", 2)):
        one_line(run(command, "--verl-path", tmp_path / "none"), code, f"there is no verl at {tmp_path}/none")


def test_a_damaged_set(place):
    (place.patches / "0.9.1" / "manifest.json").write_text("{")
    for command, code in (("check", 1), ("apply", 2), ("revert", 2)):
        one_line(at(place, command), code, "the patch set is damaged")
    place.assert_as_before()
    done = run("list")
    assert done.exit_code == 1
    assert "the patch set is damaged" in " ".join(done.stdout.split())


def test_half_applied(place):
    place.file(A).write_bytes(
        place.file(A).read_bytes().replace(b"line 7\n", b"line 7\nhook\n").replace(b"line 30\n", b"")
    )
    done = at(place, "check")
    assert (done.exit_code, done.stdout) == (
        1,
        f"verl 0.9.1, {place.package}: half applied; `verl-cov patch revert` first\n",
    )
    one_line(at(place, "apply"), 2, "half applied; `verl-cov patch revert` first")
    assert at(place, "revert").exit_code == 0
    assert place.file(A).read_bytes() == ORIGINAL[A]


def test_locked(place, monkeypatch):
    monkeypatch.setattr(files, "WAIT", 0.1)
    with files.locked(place.package):
        one_line(at(place, "apply"), 2, "is locked by process")
        assert at(place, "check").exit_code == 0


def test_list_marks_the_one_that_is_here(place):
    shutil.copytree(place.patches / "0.9.1", place.patches / "0.9.0")
    path = place.patches / "0.9.0" / "manifest.json"
    path.write_text(path.read_text().replace('"0.9.1"', '"0.9.0"').replace("A hook", "An [old] hook"))
    done = at(place, "list")
    assert done.exit_code == 0
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "0.9.0 4 An [old] hook around the update of a mini-batch" in rows
    assert "* 0.9.1 4 A hook around the update of a mini-batch" in rows
    assert f"* verl 0.9.1, {place.package}: not applied; apply would change" in done.stdout


@pytest.mark.parametrize("reason", ["none", "other"])
def test_list_without_a_verl_that_has_one(place, monkeypatch, reason):
    if reason == "none":
        monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
        done, said = run("list"), f"there is no verl in {sys.executable}"
    else:
        (place.site / "verl-0.9.1.dist-info" / "METADATA").write_text("Version: 0.4.0\n")
        done, said = at(place, "list"), "the releases that have one: 0.9.1"
    assert done.exit_code == 0
    assert said in done.stdout
    assert "0.9.1" in done.stdout
    assert "*" not in done.stdout


def test_help_names_the_commands():
    command = [sys.executable, "-c", "from verl_cov.cli import main; main()", "patch", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for word in ("list", "check", "apply", "revert"):
        assert word in done.stdout
    assert "make" not in done.stdout
