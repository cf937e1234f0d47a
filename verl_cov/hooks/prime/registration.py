"""Registers PRIME's trainer in verl when verl's trainers are imported, which every process that trains does.

Leans on ``verl.trainer.ppo.v1.trainer_base``: ``register_trainer`` and ``TRAINER_REGISTRY``.
"""

from __future__ import annotations

from types import ModuleType

from verl_cov.core.prime.prime_config import TRAINER_MODE
from verl_cov.hooks.seams import Seam

seam = Seam()


def install() -> None:
    seam.when_imported("verl.trainer.ppo.v1", _register)


def _register(v1: ModuleType) -> None:
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, register_trainer

    from verl_cov.hooks.prime.trainer import PrimeTrainer

    register_trainer(TRAINER_MODE)(PrimeTrainer)
    seam.on_uninstall(lambda: TRAINER_REGISTRY.pop(TRAINER_MODE, None))
