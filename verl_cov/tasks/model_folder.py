"""A model's folder that is made on this machine: once for its settings, whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def make(
    directory: str | os.PathLike[str], report: str, fingerprint: str, fill: Callable[[Path], dict[str, Any]]
) -> Path:
    """Make a model in `directory`, unless the one with this fingerprint is there already. Returns the directory.

    fill: writes the model into a folder and returns what to say of it in the file `report`, beside the fingerprint.

    The folder appears whole or not at all. A model with another fingerprint is replaced. Raises FileExistsError for a
    folder that holds something else.
    """
    directory = Path(directory).absolute()
    said = directory / report
    if said.is_file() and json.loads(said.read_text()).get("fingerprint") == fingerprint:
        return directory
    if directory.exists() and not said.is_file() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} holds something else and is not replaced: name another folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: within one file system a rename is atomic.
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        made = Path(scratch) / "model"
        content = fill(made)
        (made / report).write_text(json.dumps({"fingerprint": fingerprint, **content}, indent=2) + "\n")
        if directory.exists():
            os.replace(directory, Path(scratch) / "replaced")
        os.replace(made, directory)
    return directory
