"""The verl platform "cpu".

Leans on ``verl.plugin.platform`` (``PlatformBase``, ``PlatformRegistry``) of verl 0.9. One process counts as one
logical accelerator: Ray allots "GPU" units that nobody checks against hardware (``ray_kwargs.ray_init.num_gpus``), gloo
does the collectives, and the device memory that verl reads is this process's resident memory.
"""

from __future__ import annotations

import os
import resource
import types
from contextlib import contextmanager

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

from verl_cov.hooks.seams import Seam


def _resident() -> int:
    return psutil.Process().memory_info().rss


def _peak_resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux reports KiB
    return max(peak, _resident())  # the kernel counts both in batches: the peak can be a little behind


def _mem_get_info(device: object = None) -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _device_module() -> types.ModuleType:
    """``torch.cpu`` and the functions of ``torch.<device>`` that verl calls and ``torch.cpu`` lacks."""
    module = types.ModuleType("verl_cov.hooks.cpu.torch_device", "torch.cpu with what verl asks of torch.<device>")
    for name in ("Event", "Stream", "StreamContext", "current_stream", "stream", "synchronize", "is_available"):
        setattr(module, name, getattr(torch.cpu, name))
    module.__dict__.update(
        amp=torch.amp,
        current_device=lambda: torch.device("cpu"),
        device_count=lambda: 1,
        empty_cache=lambda: None,
        get_device_name=lambda device=None: "cpu",
        get_rng_state=lambda device=None: torch.get_rng_state(),
        ipc_collect=lambda: None,
        is_initialized=lambda: True,
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        max_memory_allocated=lambda device=None: _peak_resident(),
        max_memory_reserved=lambda device=None: _peak_resident(),
        mem_get_info=_mem_get_info,
        memory_allocated=lambda device=None: _resident(),
        memory_reserved=lambda device=None: _resident(),
        reset_peak_memory_stats=lambda device=None: None,
        set_device=lambda device: None,
        set_per_process_memory_fraction=lambda fraction, device=None: None,
        set_rng_state=lambda state, device=None: torch.set_rng_state(state),
    )
    return module


class CPUPlatform(PlatformBase):
    """The CPU as verl's accelerator."""

    _module = _device_module()

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        return self._module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        # Never chosen by auto-detection: a head node without a GPU must not turn a GPU cluster into CPU workers.
        return False

    def current_device(self) -> torch.device:
        # verl uses it as a device (`tensor.to(get_device_id())`): an index would mean an accelerator.
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"  # what Ray sets for the resource named "GPU"

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False  # weights travel through shared memory

    def rollout_env_vars(self) -> dict[str, str]:
        # GiB of KV cache a vLLM server; unset, vLLM takes half of the machine's memory.
        return {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")}

    def cudart(self) -> None:
        return None


seam = Seam()


def install() -> None:
    PlatformRegistry.register(platform="cpu")(CPUPlatform)
    seam.on_uninstall(lambda: PlatformRegistry._platforms.pop("cpu", None))
