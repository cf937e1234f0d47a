"""The patch sets, one a release of verl: `patches/RELEASE/`, in a wheel `verl_cov/patches/RELEASE/`; see its README."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from packaging.version import InvalidVersion, Version

import verl_cov
from verl_cov.patch import PatchError, diff

PATCH, MANIFEST = "mini_batch_hook.patch", "manifest.json"

# A wheel's, then a checkout's.
PLACES = (Path(verl_cov.__file__).parent / "patches", Path(verl_cov.__file__).parents[1] / "patches")

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of a file. before is None for a file that the patch creates."""

    before: str | None
    after: str


@dataclass(frozen=True)
class PatchSet:
    """verl: the release; files: path (`verl/...`) -> hashes, those that it creates first."""

    verl: str
    summary: str
    files: Mapping[str, Hashes]
    folder: Path

    @property
    def patch(self) -> Path:
        return self.folder / PATCH

    @cached_property
    def diffs(self) -> Mapping[str, diff.FileDiff]:
        """Raises PatchError if the patch is damaged or is not of the manifest's files."""
        try:
            found = diff.parse(self.patch.read_bytes())
        except (OSError, PatchError) as error:
            raise _damaged(self.patch, _text(error)) from None
        for path in sorted({*found, *self.files}):
            if path not in found or path not in self.files:
                raise _damaged(self.patch, f"{path} is not in " + ("it" if path not in found else MANIFEST))
            if found[path].creates != (self.files[path].before is None):
                raise _damaged(self.patch, f"{MANIFEST} disagrees with it on whether {path} is new")
        return found


def folder() -> Path:
    """Where the patch sets are."""
    for place in PLACES:
        if place.is_dir():
            return place
    raise PatchError(f"there are no patch sets at {PLACES[0]}: install verl-cov again")


def releases() -> list[str]:
    """Those with a patch set, oldest first; whether it is sound, `read` says."""
    found = [path.name for path in folder().iterdir() if path.is_dir() and _version(path.name)]
    return sorted(found, key=Version)


def find(release: str) -> PatchSet | None:
    """The set for a release of verl; a build of one's own (0.9.1+ours) has its release's. None: there is none."""
    wanted = _version(release)
    for one in releases():
        if wanted and Version(one) in (wanted, Version(wanted.public)):
            return read(folder() / one)
    return None


def read(folder: Path) -> PatchSet:
    """Raises PatchError if anything of it is missing or damaged."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, _text(error)) from None
    if not isinstance(manifest, dict) or set(manifest) != {"verl", "summary", "files"}:
        raise _damaged(path, "it has to have verl, summary and files, and nothing else")
    verl, summary, files = manifest["verl"], manifest["summary"], manifest["files"]
    if verl != folder.name:
        raise _damaged(path, f"verl is {verl!r} in the folder {folder.name}")
    if not isinstance(summary, str) or not summary.strip():
        raise _damaged(path, "summary has to be a line of text")
    if not isinstance(files, dict) or not files:
        raise _damaged(path, "files has to name one file at least")
    hashes = {name: _hashes(path, name, value) for name, value in files.items()}
    # A module that is new is there before one that imports it: verl may be starting elsewhere.
    ordered = dict(sorted(hashes.items(), key=lambda item: (item[1].before is not None, item[0])))
    found = PatchSet(verl, summary, ordered, folder)
    _ = found.diffs
    return found


def is_inside(name: str) -> bool:
    """Whether a path is a plain one inside the package verl."""
    parts = PurePosixPath(name).parts
    plain = "/".join(parts) == name and "\\" not in name and "\0" not in name
    return plain and len(parts) > 1 and parts[0] == "verl" and ".." not in parts


def _hashes(path: Path, name: str, value: object) -> Hashes:
    if not is_inside(name):
        raise _damaged(path, f"{name!r} is not a path inside verl/")
    if not isinstance(value, dict) or set(value) != {"before", "after"}:
        raise _damaged(path, f"{name} has to have before and after")
    before, after = value["before"], value["after"]
    if not _is_hash(after) or not (before is None or _is_hash(before)) or before == after:
        raise _damaged(path, f"{name}: before (or null, if it is new) and after have to be two SHA-256 sums")
    return Hashes(before, after)


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _text(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _damaged(path: Path, why: str) -> PatchError:
    return PatchError(f"the patch set is damaged ({path}: {why}): install verl-cov again")
