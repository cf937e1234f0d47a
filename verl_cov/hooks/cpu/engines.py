"""Registers verl's FSDP2 engines for the device "cpu".

Leans on ``verl.workers.engine.base.EngineRegistry`` and the engine classes of ``verl.workers.engine.fsdp``. FSDP1 is
left out on purpose: torch refuses ``sync_module_states`` with CPU parameters, so only ``actor.strategy=fsdp2`` runs.
"""

from __future__ import annotations

import functools
from types import ModuleType

from verl_cov.hooks.seams import Seam

seam = Seam()


def install() -> None:
    seam.when_imported("verl.workers.engine.fsdp", _register_for_cpu)


def _register_for_cpu(fsdp: ModuleType) -> None:
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

    engines = {"language_model": FSDPEngineWithLMHead, "value_model": FSDPEngineWithValueHead}
    for model_type, engine in engines.items():
        EngineRegistry.register(model_type=model_type, backend="fsdp2", device="cpu")(engine)
        seam.on_uninstall(functools.partial(EngineRegistry._engines[model_type]["fsdp2"].pop, "cpu", None))
