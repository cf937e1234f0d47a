"""A reference policy on a CPU: verl keeps it in pinned host memory, which torch refuses without an accelerator.

Leans on ``verl.workers.engine.fsdp.transformer_impl.CPUOffloadPolicy``: the name by which the FSDP2 engine asks for the
offloading of what only runs forward.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from verl_cov.hooks.seams import Seam

seam = Seam()


def install() -> None:
    seam.when_imported("verl.workers.engine.fsdp.transformer_impl", _do_not_pin)


def _do_not_pin(module: ModuleType) -> None:
    policy = module.CPUOffloadPolicy

    def unpinned(pin_memory: bool = True) -> Any:
        return policy(pin_memory=False)

    seam.replace(module, "CPUOffloadPolicy", unpinned)
