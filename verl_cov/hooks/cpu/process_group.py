"""One gloo backend for the CPU.

verl asks torch for ``cpu:gloo,<device>:<backend>``; with device "cpu" that names cpu twice, which torch refuses.
Leans on ``verl.utils.distributed.initialize_global_process_group_ray(timeout_second, backend)``.
"""

from __future__ import annotations

import functools
from typing import Any

from verl_cov.hooks.imports import when_imported


def install() -> None:
    when_imported("verl.utils.distributed", _use_one_backend)


def _use_one_backend(module: Any) -> None:
    original = module.initialize_global_process_group_ray

    @functools.wraps(original)
    def initialize(timeout_second=None, backend=None):
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    module.initialize_global_process_group_ray = initialize
