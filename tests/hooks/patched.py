"""A copy of the installed verl with its patch (``patches/``) applied, for ranks to import in its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import verl

from verl_cov import patch

INSTALLED = Path(verl.__file__).parent


def copy(folder: Path) -> Path:
    """Returns ``folder``, which then holds the patched package ``verl``."""
    shutil.copytree(INSTALLED, folder / "verl", ignore=shutil.ignore_patterns("__pycache__"))
    patch.change(patch.status(folder))  # the installed one may be patched already
    return folder
