"""What `apply` leaves in `verl/.verl_cov_patch`: the originals, and state.json, which says what they are of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from verl_cov import __version__
from verl_cov.patch import PatchError, files
from verl_cov.patch.sets import Hashes, is_inside

FOLDER = ".verl_cov_patch"
APPLYING, APPLIED = "applying", "applied"


@dataclass(frozen=True)
class Record:
    """state.json. state: `applying` until the last file is in place; verl: the release that it was."""

    state: str
    verl: str
    files: Mapping[str, Hashes]
    time: str = ""


def read(package: Path) -> Record | None:
    """None if there is none. Raises PatchError if it is damaged."""
    path = package / FOLDER / "state.json"
    try:
        found = json.loads(path.read_bytes())
        record = Record(
            found["state"],
            found["verl"],
            {name: Hashes(one["before"], one["after"]) for name, one in found["files"].items() if is_inside(name)},
            found["time"],
        )
        if record.state not in (APPLYING, APPLIED) or len(record.files) != len(found["files"]):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise PatchError(
            f"{path} is damaged: install verl again (pip install --force-reinstall --no-deps), then rm -r {path.parent}"
        ) from None
    return record


def original(package: Path, name: str) -> Path:
    """Where the original of `verl/...` is kept."""
    return package / FOLDER / "originals" / Path(name).relative_to("verl")


def write(package: Path, verl: str, hashes: Mapping[str, Hashes], originals: Mapping[str, bytes]) -> None:
    """Keep the originals, then say in state.json that files are about to change; nothing of it if that fails."""
    folder = package / FOLDER
    files.remove_tree(folder)  # of an installation that has been replaced since
    try:
        for name, content in originals.items():
            path = original(package, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            like = package / Path(name).relative_to("verl")
            files.write(path, content, like)
            shutil.copystat(like, path)
        folder.mkdir(exist_ok=True)
        for inside in [*(path for path in folder.rglob("*") if path.is_dir()), folder, package]:
            files.sync(inside)
        _say(package, APPLYING, verl, hashes)
    except BaseException:
        files.remove_tree(folder)
        raise


def finish(package: Path, verl: str, hashes: Mapping[str, Hashes]) -> None:
    """All files are in place."""
    _say(package, APPLIED, verl, hashes)


def remove(package: Path) -> None:
    """Forget it."""
    files.remove_tree(package / FOLDER)
    files.sync(package)


def _say(package: Path, state: str, verl: str, hashes: Mapping[str, Hashes]) -> None:
    found = {
        "state": state,
        "verl": verl,
        "verl_cov": __version__,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "files": {name: {"before": one.before, "after": one.after} for name, one in hashes.items()},
    }
    content = (json.dumps(found, indent=2) + "\n").encode()
    files.replace(package / FOLDER / "state.json", content, like=package / "__init__.py")
