"""Registers PRIME's trainer when verl's trainers are imported, which every process that trains does."""

from __future__ import annotations

import importlib
from typing import Any

from verl_cov.hooks.seams import Seam

seam = Seam()


def install() -> None:
    seam.when_imported("verl.trainer.ppo.v1", _register)


def _register(module: Any) -> None:
    importlib.import_module("verl_cov.hooks.prime.trainer")  # its class registers itself
