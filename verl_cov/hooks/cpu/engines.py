"""verl's FSDP2 engines for device "cpu".

Leans on ``verl.workers.engine.base.EngineRegistry`` and the engine classes of ``verl.workers.engine.fsdp``. FSDP1 is
left out on purpose: torch refuses ``sync_module_states`` with CPU parameters, so ``actor.strategy=fsdp2`` is the one
that runs.
"""

from __future__ import annotations

from typing import Any

from verl_cov.hooks.seams import Seam

seam = Seam()


def install() -> None:
    seam.when_imported("verl.workers.engine.fsdp", _register_for_cpu)


def _register_for_cpu(module: Any) -> None:
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

    EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")(FSDPEngineWithLMHead)
    EngineRegistry.register(model_type="value_model", backend="fsdp2", device="cpu")(FSDPEngineWithValueHead)
