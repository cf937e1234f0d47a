"""The verl that is looked at: found without importing it, and compared with a patch set file by file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from enum import Enum
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from verl_cov.patch import PatchError
from verl_cov.patch.sets import Hashes


class State(Enum):
    """Of an installation against a patch set."""

    NOT_APPLIED = "not applied"
    APPLIED = "applied"
    HALF_APPLIED = "half applied"
    OTHER = "other"
    NO_PATCH = "no patch"


@dataclass(frozen=True)
class Installation:
    """package: the folder `verl`; checkout: what git or an editable installation owns, and this leaves alone."""

    package: Path
    release: str
    checkout: Path | None = None

    def file(self, name: str) -> Path:
        """Where `verl/...` is."""
        return self.package / Path(name).relative_to("verl")

    def git(self, patch: Path, *options: str) -> str:
        """The command that applies a patch to a checkout."""
        assert self.checkout is not None
        words = ["git", "-C", str(self.checkout), "apply", *options]
        below = self.package.parent.relative_to(self.checkout)
        if below.parts:  # git takes the paths from its top, and leaves out without a word what is not there
            words.append(f"--directory={below.as_posix()}")
        return shlex.join([*words, str(patch)])


def find(path: Path | None = None) -> Installation:
    """The verl of this Python; or at path: the package, the folder it is in, or a checkout. Raises PatchError."""
    if path is None:
        package = _importable()
    else:
        candidates = [path.absolute() / "verl", path.absolute()]
        found = next((one for one in candidates if one.name == "verl" and (one / "__init__.py").is_file()), None)
        if found is None:
            raise PatchError(
                f"there is no verl at {path}: --verl-path is the package's folder verl, site-packages, or a checkout"
            )
        package = found
    package = package.resolve()
    release = _release(package)
    if release is None:
        raise PatchError(
            f"{package} does not say which verl it is: neither verl-*.dist-info/METADATA beside it nor version/version"
        )
    return Installation(package, release, _checkout(package))


def sha256(content: bytes | None) -> str | None:
    """None of no file, as in a manifest."""
    return None if content is None else hashlib.sha256(content).hexdigest()


def read(path: Path) -> bytes | None:
    """A file's bytes, None if it is not there. Raises OSError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def compare(installation: Installation, files: Mapping[str, Hashes]) -> tuple[State, Mapping[str, State]]:
    """The state of it all, and of each file: NOT_APPLIED, APPLIED or OTHER."""
    each = {name: _compare(installation.file(name), hashes) for name, hashes in files.items()}
    states = set(each.values())
    if State.OTHER in states:
        return State.OTHER, each
    return (states.pop() if len(states) == 1 else State.HALF_APPLIED), each


def _compare(path: Path, hashes: Hashes) -> State:
    try:
        found = sha256(read(path))
    except (IsADirectoryError, NotADirectoryError):
        return State.OTHER
    return {hashes.before: State.NOT_APPLIED, hashes.after: State.APPLIED}.get(found, State.OTHER)


def _importable() -> Path:
    try:
        spec = importlib.util.find_spec("verl")  # of a top-level name: finds, does not import
    except ValueError:  # sys.modules has one without a spec
        spec = None
    if spec is None or spec.origin is None:
        raise PatchError(f"there is no verl in {sys.executable}: install it there, or --verl-path DIR")
    return Path(spec.origin).parent


def _release(package: Path) -> str | None:
    beside = [folder for folder in _dist_infos(package) if (folder / "METADATA").is_file()]
    if len(beside) == 1:  # an interrupted pip leaves two, and neither can be believed
        with (beside[0] / "METADATA").open("rb") as file:
            version = BytesHeaderParser().parse(file)["Version"]
        if version:
            return str(version).strip()
    stated = read(package / "version" / "version")
    return stated.decode(errors="replace").strip() or None if stated else None


def _dist_infos(package: Path) -> list[Path]:
    return sorted(package.parent.glob("verl-*.dist-info"))


def _checkout(package: Path) -> Path | None:
    for url in filter(None, map(_editable_url, metadata.distributions(name="verl"))):
        source = Path(url2pathname(urlsplit(url).path)).resolve()
        if source in package.parents:
            return _repository(package) or source
    if any((folder / "RECORD").is_file() for folder in _dist_infos(package)):
        return None  # pip put it there, be it inside somebody's repository (.venv, vendor/)
    return _repository(package)


def _editable_url(distribution: metadata.Distribution) -> str | None:
    try:
        found = json.loads(distribution.read_text("direct_url.json") or "null")
        return str(found["url"]) if found["dir_info"]["editable"] else None
    except (ValueError, KeyError, TypeError):
        return None


def _repository(package: Path) -> Path | None:
    for folder in package.parents:
        if folder.name in ("site-packages", "dist-packages"):
            return None
        if (folder / ".git").exists():
            return folder
    return None
