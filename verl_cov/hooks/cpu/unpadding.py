"""Unpads the legacy trainer's batches without flash-attn, which verl 0.9.0 requires and which has no build for CPUs.

verl 0.9.1 falls back to torch by itself. Leans on ``verl.utils.attention_utils._get_attention_functions``, which says
what unpads, and on ``unpad_input``, ``pad_input`` and ``index_first_axis`` of ``verl.utils.npu_flash_attn_utils``:
verl's own for NPUs, in plain torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType

from verl_cov.hooks import versions
from verl_cov.hooks.seams import Seam

seam = Seam()


def install() -> None:
    if not versions.installed_release().unpads_on_cpu and importlib.util.find_spec("flash_attn") is None:
        seam.when_imported("verl.utils.attention_utils", _in_torch)


def _in_torch(module: ModuleType) -> None:
    def _get_attention_functions() -> tuple[Callable, Callable, Callable, Callable]:
        from verl.utils import npu_flash_attn_utils as torchs

        return torchs.index_first_axis, torchs.pad_input, torchs.rearrange, torchs.unpad_input

    seam.replace(module, "_get_attention_functions", _get_attention_functions)
