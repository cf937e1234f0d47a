"""PRIME on verl's synchronous V1 trainer: ``trainer.v1.trainer_mode=verl_cov.prime`` (all of it: ``+verl_cov=prime``).

:mod:`.trainer` registers under that name when verl's trainers are imported, which every process that trains does.
"""

from __future__ import annotations

import importlib
from typing import Any

from verl_cov.hooks.imports import when_imported

MODE = "verl_cov.prime"


def install() -> None:
    when_imported("verl.trainer.ppo.v1", _register)


def _register(module: Any) -> None:
    importlib.import_module("verl_cov.hooks.prime.trainer")
