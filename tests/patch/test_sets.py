"""Patch sets are found, and a damaged one is never used."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.patch.conftest import CHANGED, CREATED, ROOT, A, B, Place
from verl_cov.patch import PatchError, sets


def manifest(place: Place, **changes: object) -> None:
    path = place.patches / "0.9.1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_set_has_what_the_manifest_says_new_files_first(place):
    found = sets.find("0.9.1")
    assert found is not None
    assert (found.verl, found.summary) == ("0.9.1", "A hook around the update of a mini-batch")
    assert list(found.files) == [*CREATED, *CHANGED]
    assert found.patch.is_file()


def test_a_wheels_folder_comes_before_a_checkouts(place, tmp_path):
    assert sets.folder() == tmp_path / "patches"
    (tmp_path / "absent").mkdir()
    assert sets.folder() == tmp_path / "absent"
    assert sets.find("0.9.1") is None


def test_no_folder_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(sets, "PLACES", (tmp_path / "absent",))
    with pytest.raises(PatchError, match=r"no patch sets at .*absent: install verl-cov again"):
        sets.find("0.9.1")


def test_releases_are_in_order_and_other_folders_are_none(place):
    for name in ("0.10.0", "0.9.0", "notes", ".git"):
        (place.patches / name).mkdir()
    (place.patches / "0.8.0").write_text("a file")
    assert sets.releases() == ["0.9.0", "0.9.1", "0.10.0"]


@pytest.mark.parametrize(
    ("release", "there"),
    [
        ("0.9.1", True),
        ("0.9.1+ours", True),
        ("0.9.1.0", True),
        ("0.9.1.post1", False),
        ("0.9.1rc1", False),
        ("0.9.2", False),
        ("main", False),
    ],
)
def test_a_release_has_its_own_set_only(place, release, there):
    assert (sets.find(release) is not None) == there


def test_another_releases_damage_is_not_in_the_way(place):
    (place.patches / "0.9.0").mkdir()
    assert sets.find("0.9.1") is not None
    with pytest.raises(PatchError, match=r"damaged .*0\.9\.0/manifest\.json: No such file"):
        sets.find("0.9.0")


X, Y = "0" * 64, "1" * 64


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verl": "0.9.0"}, "'0.9.0' in the folder 0.9.1"),
        ({"summary": " "}, "summary"),
        ({"summary": None}, "summary"),
        ({"more": 1}, "nothing else"),
        ({"files": {}}, "one file at least"),
        ({"files": []}, "one file at least"),
        ({"files": {A: {"before": X}}}, "before and after"),
        ({"files": {A: X}}, "before and after"),
        ({"files": {A: {"before": X, "after": None}}}, "SHA-256"),
        ({"files": {A: {"before": X, "after": X}}}, "SHA-256"),
        ({"files": {A: {"before": X, "after": Y[1:]}}}, "SHA-256"),
        ({"files": {A: {"before": X, "after": Y + "\n"}}}, "SHA-256"),
        ({"files": {A: {"before": "A" * 64, "after": Y}}}, "SHA-256"),
        *(
            ({"files": {name: {"before": X, "after": Y}}}, "not a path inside verl/")
            for name in (
                *("/etc/passwd", "../x.py", "verl/../x.py", "verl", "verl/", "x.py"),
                *("verl//x.py", "verl/./x.py", "verl\\x.py", "verl/x\0.py"),
            )
        ),
        ({"files": {A: {"before": X, "after": Y}}}, "is not in manifest.json"),
        (
            {"files": {name: {"before": X, "after": Y} for name in (A, B, *CREATED, "verl/z.py")}},
            r"verl/z\.py is not in it|disagrees",
        ),
        ({"files": {name: {"before": X, "after": Y} for name in (*CHANGED, *CREATED)}}, "disagrees .* is new"),
        ({"files": {name: {"before": None, "after": Y} for name in (*CHANGED, *CREATED)}}, "disagrees .* is new"),
    ],
)
def test_a_damaged_manifest_is_refused(place, changes, said):
    manifest(place, **changes)
    with pytest.raises(PatchError, match=f"the patch set is damaged .*({said}).*: install verl-cov again"):
        sets.find("0.9.1")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"verl": "0.9.1"}'])
def test_what_is_no_manifest_is_refused(place, content):
    (place.patches / "0.9.1" / "manifest.json").write_bytes(content)
    with pytest.raises(PatchError, match="the patch set is damaged"):
        sets.find("0.9.1")


def test_a_patch_that_is_missing_or_cut_off_is_refused(place):
    path = place.patches / "0.9.1" / sets.PATCH
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(PatchError, match=r"damaged .*mini_batch_hook\.patch: line \d+"):
        sets.find("0.9.1")
    path.unlink()
    with pytest.raises(PatchError, match=r"damaged .*mini_batch_hook\.patch: No such file"):
        sets.find("0.9.1")


def documented(folder: Path) -> list[str]:
    return re.findall(r"^\| \[?`?(\d[^\]|` ]*)", (folder / "README.md").read_text(), flags=re.MULTILINE)


def check_repository(folder: Path) -> None:
    """What the sets of this repository have to be like."""
    found = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert sorted(documented(folder)) == found
    for release in found:
        sets.read(folder / release)
        assert sorted(path.name for path in (folder / release).iterdir()) == [
            "README.md",
            *sorted((sets.MANIFEST, sets.PATCH)),
        ]
        assert (folder / release / "README.md").read_text().strip()


def test_the_repositorys_sets_are_sound_and_each_has_its_line_and_its_readme(place):
    check_repository(ROOT / "patches")
    folder = place.patches
    table = "| release | what | why |\n|---|---|---|\n"
    (folder / "0.9.1" / "README.md").write_text("what and why")
    (folder / "README.md").write_text(table + "| 0.9.1 | a hook | to have it |\n")
    check_repository(folder)
    (folder / "README.md").write_text(table)
    with pytest.raises(AssertionError):
        check_repository(folder)
    (folder / "README.md").write_text(table + "| [0.9.1](0.9.1/README.md) | a hook | to have it |\n")
    check_repository(folder)
    (folder / "0.9.1" / "README.md").unlink()
    with pytest.raises(AssertionError):
        check_repository(folder)
    shutil.rmtree(folder / "0.9.1")
    with pytest.raises(AssertionError):
        check_repository(folder)
