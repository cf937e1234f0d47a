"""The maintainers' command: the same files from the same trees, and what it writes does what it should."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.patch.conftest import CHANGED, CREATED, MODIFIED, ORIGINAL, ROOT, A, B, dist_info, lay, snapshot
from verl_cov.patch import PatchError, commands, installation, make, sets

FOLDERS, NAMES = ("", "a/", "a/b/", "new dir/"), ("x", "é", "y z")
NAME = st.sampled_from([f"verl/{folder}{name}.py" for folder in FOLDERS for name in NAMES])
LINE = st.sampled_from([b"a", b"b", b"    c", b"", b"d\r", b"\x0c", b"\xff"])
CONTENT = st.builds(lambda some, last: b"\n".join([*some, last]), st.lists(LINE, max_size=20), LINE)


@given(st.dictionaries(NAME, CONTENT, max_size=4), st.dictionaries(NAME, CONTENT, min_size=1, max_size=4))
@settings(max_examples=40)
def test_make_apply_revert_is_the_identity(before, edits):
    base = {"verl/__init__.py": b"", "verl/version/version": b"1.0\n"}
    assume(any(before.get(name) != content for name, content in edits.items()))
    with tempfile.TemporaryDirectory() as folder:
        original = lay(Path(folder) / "original", {**base, **before})
        modified = lay(Path(folder) / "modified", {**base, **before, **edits})
        site = Path(folder) / "site"
        shutil.copytree(original, site)
        start = snapshot(site)
        with mock.patch.object(sets, "PLACES", (Path(folder) / "patches",)):
            make.write("1.0", original, modified, Path(folder) / "patches" / "1.0", "an edit")
            for _ in range(2):
                commands.apply(site)
                found = snapshot(site)
                for name, (_mode, content) in snapshot(modified).items():
                    assert content is None or found[name][1] == content
                commands.revert(site)
                assert snapshot(site) == start


@pytest.fixture
def trees(tmp_path) -> tuple[Path, Path]:
    return lay(tmp_path / "original", ORIGINAL), lay(tmp_path / "modified", MODIFIED)


def made(*words: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "verl_cov.patch.make", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_the_command_writes_a_patch_and_a_manifest(trees, tmp_path):
    done = made("0.9.1", *trees, "--summary", "what it does", "-o", tmp_path / "patches")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "patches" / "0.9.1"
    assert "4 files" in done.stdout
    assert f"To be written: {folder / 'README.md'}" in done.stdout
    found = json.loads((folder / "manifest.json").read_text())
    assert (found["verl"], found["summary"]) == ("0.9.1", "what it does")
    assert list(found["files"]) == sorted(CHANGED + CREATED)
    for name, hashes in found["files"].items():
        assert hashes["before"] == installation.sha256(ORIGINAL.get(name))
        assert hashes["after"] == installation.sha256(MODIFIED[name])
    hunks = [line for line in (folder / sets.PATCH).read_bytes().split(b"\n") if line.startswith(b"@@")]
    assert hunks[0].startswith(b"@@ -6,6 +6,7 @@")  # three lines of context
    # Without --summary the old one is kept.
    (folder / "README.md").write_text("there")
    done = made("0.9.1", *trees, "-o", tmp_path / "patches")
    assert "To be written" not in done.stdout
    assert json.loads((folder / "manifest.json").read_text()) == found


def test_the_same_trees_give_the_same_files_whatever_the_settings_of_git(trees, tmp_path, monkeypatch):
    first = make.write("0.9.1", *trees, tmp_path / "patches" / "0.9.1", "x")
    content = snapshot(first.folder)
    settings = (
        "[diff]\n noprefix = true\n mnemonicPrefix = true\n context = 9\n external = false\n algorithm = patience\n"
    )
    settings += f'[diff "odd"]\n xfuncname = "^line 1$"\n[core]\n attributesFile = {tmp_path / "attributes"}\n'
    (tmp_path / "attributes").write_text("*.py diff=odd\n")
    (tmp_path / ".gitconfig").write_text(settings + "[core]\n abbrev = 5\n autocrlf = true\n[color]\n ui = always\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=1")
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", repository], check=True)
    (repository / ".gitattributes").write_text("* binary\n")
    monkeypatch.setattr(tempfile, "tempdir", str(repository))
    monkeypatch.chdir(repository)
    for tree in trees:
        (tree / A).chmod(0o755 if tree is trees[0] else 0o600)
        lay(tree, {"verl/__pycache__/a.pyc": str(tree).encode(), "verl/.verl_cov_patch/state.json": str(tree).encode()})
    make.write("0.9.1", *trees, tmp_path / "patches" / "0.9.1", "x")
    assert snapshot(first.folder) == content


def test_what_is_no_patch_set_is_refused(trees, tmp_path):
    original, modified = trees
    output = tmp_path / "patches" / "0.9.1"
    with pytest.raises(PatchError, match="have the same verl"):
        make.write("0.9.1", original, original, output, "x")
    (modified / B).unlink()
    with pytest.raises(PatchError, match=rf"{B} is not in .*it removes none"):
        make.write("0.9.1", original, modified, output, "x")
    lay(modified, {B: MODIFIED[B], 'verl/a"b.py': b"x\n"})
    with pytest.raises(PatchError, match="a path that a patch cannot name"):
        make.write("0.9.1", original, modified, output, "x")
    assert not output.exists()


def test_the_command_says_in_a_line_what_is_wrong(trees, tmp_path):
    for words, said in (
        (["0.9.0", *trees, "--summary", "x"], "is verl 0.9.1, not 0.9.0"),
        (["0.9.1", tmp_path, trees[1], "--summary", "x"], "there is no verl at"),
        (["0.9.1", *trees], "--summary: what does the patch do?"),
    ):
        done = made(*words, "-o", tmp_path / "patches")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
    assert not (tmp_path / "patches").exists()


def test_the_real_verl_is_patched_and_comes_back(tmp_path, monkeypatch):
    """The installed one, copied: its size, its CRLF files, its folders."""
    real = installation.find()
    for name in ("original", "modified", "site"):
        shutil.copytree(real.package, tmp_path / name / "verl", ignore=shutil.ignore_patterns("__pycache__"))
    dist_info(tmp_path / "site", real.release)
    verl = tmp_path / "modified" / "verl"
    for path in (
        verl / "trainer" / "main_ppo.py",
        verl / "protocol.py",
        verl / "models" / "transformers" / "npu_patch.py",
    ):
        text = path.read_bytes().split(b"\n")
        text[len(text) // 2 : len(text) // 2 + 1] = [b"# one", b"# two"]
        path.write_bytes(b"\n".join([b"# first", *text]))
    lay(tmp_path / "modified", {"verl/workers/hook.py": b"hook = None\n"})
    monkeypatch.setattr(sets, "PLACES", (tmp_path / "patches",))
    folder = tmp_path / "patches" / real.release
    found = make.write(real.release, tmp_path / "original", tmp_path / "modified", folder, "x")
    assert len(found.files) == 4
    before = snapshot(tmp_path / "site")
    commands.apply(tmp_path / "site")
    shutil.rmtree(tmp_path / "site" / "verl" / ".verl_cov_patch")
    patched = snapshot(tmp_path / "site" / "verl")
    assert patched == snapshot(verl)
    commands.revert(tmp_path / "site")
    assert snapshot(tmp_path / "site") == before
