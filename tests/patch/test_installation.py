"""Which verl is found, and whose it is, without importing it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.patch.conftest import ROOT, dist_info
from verl_cov.patch import PatchError, installation, sets


def git(folder, *words):
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


@pytest.mark.parametrize("below", ["", "verl"])
def test_the_path_is_the_package_or_what_it_is_in(place, below):
    found = installation.find(place.site / below)
    assert found == installation.Installation(place.package.resolve(), "0.9.1", None)


def test_a_relative_path_and_one_through_a_link(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place.package)
    assert installation.find(installation.Path()).package == place.package
    (tmp_path / "linked").symlink_to(place.package)
    (tmp_path / "verl").symlink_to(place.package)
    assert installation.find(tmp_path).package == place.package
    with pytest.raises(PatchError):
        installation.find(tmp_path / "linked" / "trainer")


def test_what_is_no_verl_is_refused(place, tmp_path):
    (tmp_path / "empty" / "verl").mkdir(parents=True)  # a folder, no package
    for path in (tmp_path / "empty", tmp_path / "empty" / "verl", tmp_path / "none", place.package / "trainer"):
        with pytest.raises(PatchError, match=f"there is no verl at {path}: --verl-path is"):
            installation.find(path)


def test_the_release_is_the_metadatas_else_the_version_files(place):
    version = place.package / "version" / "version"
    version.write_text("9.9.9\n")
    assert installation.find(place.site).release == "0.9.1"
    dist_info(place.site, "0.9.0")  # two: neither is believed
    assert installation.find(place.site).release == "9.9.9"
    for folder in place.site.glob("*.dist-info"):
        shutil.rmtree(folder)
    assert installation.find(place.site).release == "9.9.9"
    version.write_text("\n")
    with pytest.raises(PatchError, match="does not say which verl it is"):
        installation.find(place.site)
    version.unlink()
    with pytest.raises(PatchError, match="does not say which verl it is"):
        installation.find(place.site)


def in_python(*words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """In an interpreter whose verl is the one at path."""
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, *words], env=environment, cwd="/", capture_output=True, text=True, timeout=60
    )


LOOK = """
import sys, pkgutil, importlib, verl_cov.patch, verl_cov.cli
for module in pkgutil.iter_modules(verl_cov.patch.__path__):
    importlib.import_module('verl_cov.patch.' + module.name)
print(verl_cov.patch.commands.status().line())
print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'verl', 'ray', 'numpy', 'vllm'}))
"""


def test_the_verl_of_this_python_is_found_and_not_imported(place):
    """The small verl raises when it is imported."""
    done = in_python("-c", LOOK, path=str(place.site))
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith(f"verl 0.9.1, {place.package}: ")
    assert second == "[]"


def test_no_verl_in_this_python_is_said(monkeypatch):
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PatchError, match=f"there is no verl in {sys.executable}: install it there, or --verl-path DIR"):
        installation.find()


def test_a_folder_called_verl_that_is_no_package_is_none(place, tmp_path, monkeypatch):
    """As beside a checkout that is called verl."""
    monkeypatch.delitem(sys.modules, "verl", raising=False)
    monkeypatch.setattr(sys, "path", [str(place.site)])
    assert installation.find().package == place.package
    (tmp_path / "cwd" / "verl").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "cwd")])
    with pytest.raises(PatchError, match="there is no verl in "):
        installation.find()


def test_a_checkout_is_one_at_its_top_and_below(place, tmp_path):
    for folder in place.site.glob("*.dist-info"):
        shutil.rmtree(folder)
    git(place.site, "init", "-q")
    assert installation.find(place.site).checkout == place.site
    shutil.rmtree(place.site / ".git")
    (place.site / ".git").write_text("gitdir: elsewhere")  # a submodule, a worktree
    assert installation.find(place.site).checkout == place.site
    (place.site / ".git").unlink()
    git(tmp_path, "init", "-q")
    assert installation.find(place.site).checkout == tmp_path


def test_what_pip_put_into_a_repository_is_no_checkout(place, tmp_path):
    git(tmp_path, "init", "-q")
    assert installation.find(place.site).checkout is None
    (place.site / "verl-0.9.1.dist-info" / "RECORD").unlink()
    assert installation.find(place.site).checkout == tmp_path
    venv = tmp_path / ".venv" / "lib" / "site-packages"
    venv.parent.mkdir(parents=True)
    place.site.rename(venv)
    assert installation.find(venv).checkout is None


@pytest.mark.parametrize(("editable", "expected"), [(True, True), (False, False)])
def test_an_editable_installation_without_git_is_a_checkout(place, tmp_path, editable, expected, monkeypatch):
    """pip writes what it installs so into direct_url.json, in a site-packages elsewhere."""
    (place.site / "verl-0.9.1.dist-info" / "RECORD").unlink()
    elsewhere = tmp_path / "site-packages"
    dist_info(elsewhere, "0.9.1")
    url = {"url": place.site.as_uri(), "dir_info": {"editable": editable}}
    (elsewhere / "verl-0.9.1.dist-info" / "direct_url.json").write_text(json.dumps(url))
    monkeypatch.syspath_prepend(str(elsewhere))
    assert installation.find(place.site).checkout == (place.site if expected else None)


@pytest.mark.parametrize(
    "text", ["{", "null", "[]", '{"url": "file:///x"}', '{"url": 3, "dir_info": {"editable": true}}']
)
def test_a_damaged_direct_url_is_none(place, tmp_path, text, monkeypatch):
    dist_info(tmp_path / "other", "0.9.1")
    (tmp_path / "other" / "verl-0.9.1.dist-info" / "direct_url.json").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    assert installation.find(place.site).checkout is None


@pytest.mark.parametrize("top", ["site", "above", "no git"])
def test_the_command_for_a_checkout_does_what_it_says(place, tmp_path, top):
    """git leaves out, without a word, what is not at the paths from its top."""
    for folder in place.site.glob("*.dist-info"):
        shutil.rmtree(folder)
    if top != "no git":
        git(tmp_path if top == "above" else place.site, "init", "-q")
    checkout = installation.find(place.site).checkout or place.site
    found = installation.Installation(place.package, "0.9.1", checkout)
    patch_set = sets.find("0.9.1")
    assert patch_set is not None
    for options, state in ([], installation.State.APPLIED), (["-R"], installation.State.NOT_APPLIED):
        subprocess.run(found.git(patch_set.patch, *options), shell=True, check=True, cwd="/")
        assert installation.compare(found, patch_set.files)[0] is state
