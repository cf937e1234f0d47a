"""One gloo backend for the CPU.

verl asks torch for ``cpu:gloo,<device>:<backend>``; with device "cpu" that names cpu twice, which torch refuses.
Leans on ``verl.utils.distributed.initialize_global_process_group_ray(timeout_second, backend)``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from verl_cov.hooks.seams import Seam

seam = Seam()


def install() -> None:
    seam.when_imported("verl.utils.distributed", _use_one_backend)


def _use_one_backend(module: ModuleType) -> None:
    seam.wrap(module, "initialize_global_process_group_ray", _initialize)


def _initialize(original: Callable, timeout_second: float | None = None, backend: str | None = None) -> Any:
    return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")
