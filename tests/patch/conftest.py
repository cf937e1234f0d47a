"""A small verl as pip installs it, and a patch set for it made with the maintainers' command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from verl_cov.patch import make, sets

ROOT = Path(__file__).parents[2]

A, B, NEW, EMPTY = "verl/trainer/a.py", "verl/workers/b.py", "verl/update/mini_batch.py", "verl/update/__init__.py"
CHANGED, CREATED = [A, B], [EMPTY, NEW]

ORIGINAL = {
    "verl/__init__.py": b"raise ImportError('verl was imported')\n",
    "verl/version/version": b"0.9.1\n",
    "verl/trainer/__init__.py": b"",
    A: b"".join(b"line %d\n" % n for n in range(40)),
    "verl/workers/__init__.py": b"",
    B: b"one\r\ntwo\r\n\x0cthree\xe2\x80\xa8\r\nfour",  # CRLF, a form feed, a line separator, no newline at the end
    "verl/other.py": b"other\n",
}
MODIFIED = {
    **ORIGINAL,
    A: ORIGINAL[A].replace(b"line 7\n", b"line 7\nhook\n").replace(b"line 30\n", b""),
    B: ORIGINAL[B].replace(b"two\r\n", b"2\r\n").replace(b"four", b"four\n"),
    EMPTY: b"",
    NEW: b"hook = None",
}


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def dist_info(site: Path, release: str) -> None:
    metadata = f"Metadata-Version: 2.1\nName: verl\nVersion: {release}\n\nx\n".encode()
    lay(site / f"verl-{release}.dist-info", {"METADATA": metadata, "RECORD": b"verl/__init__.py,,\n"})


def snapshot(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Every file and folder, with its mode bits and bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, None if path.is_dir() else path.read_bytes())
        for path in sorted(folder.rglob("*"))
    }


@dataclass
class Place:
    site: Path
    patches: Path
    before: dict[str, tuple[int, bytes | None]]

    @property
    def package(self) -> Path:
        return self.site / "verl"

    def file(self, name: str) -> Path:
        return self.site / name

    def assert_as_before(self) -> None:
        assert snapshot(self.site) == self.before

    def assert_patched(self) -> None:
        found = {name: content for name, (_, content) in snapshot(self.site).items() if content is not None}
        for name, content in MODIFIED.items():
            assert found[name] == content, name

    def python(self, code: str) -> subprocess.Popen[str]:
        """Another process that has this place's patch sets; `commands`, `files`, `os` and `Path` are imported."""
        start = (
            "import os, signal, sys\nfrom pathlib import Path\nfrom verl_cov.patch import commands, files, sets\n"
            f"sets.PLACES = (Path({str(self.patches)!r}),)\nsite = Path({str(self.site)!r})\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", start + code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patch")
    make.write(
        "0.9.1",
        lay(folder / "original", ORIGINAL),
        lay(folder / "modified", MODIFIED),
        folder / "patches" / "0.9.1",
        "A hook around the update of a mini-batch",
    )
    lay(folder / "site", ORIGINAL)
    (folder / "site" / A).chmod(0o640)
    dist_info(folder / "site", "0.9.1")
    return folder


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("site", "patches"):
        shutil.copytree(template / name, tmp_path / name)
    monkeypatch.setattr(sets, "PLACES", (tmp_path / "absent", tmp_path / "patches"))
    return Place(tmp_path / "site", tmp_path / "patches", snapshot(tmp_path / "site"))
