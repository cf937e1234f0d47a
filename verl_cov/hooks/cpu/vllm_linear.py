"""Keeps vLLM's CPU linear layers updatable.

After loading, vLLM's CPU backend packs each linear weight for oneDNN and replaces the parameter by an empty one, so
verl's in-place weight update fails (``'Parameter' object has no attribute 'weight_loader'``). With oneDNN reported as
missing, vLLM takes its own fallback, ``torch.nn.functional.linear`` on the live parameter. Leans on the module flag
``vllm._custom_ops._supports_onednn`` read by ``vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm``.
"""

from __future__ import annotations

from types import ModuleType

from verl_cov.hooks.seams import Seam

seam = Seam()


def install() -> None:
    seam.when_imported("vllm._custom_ops", _keep_weights)


def _keep_weights(module: ModuleType) -> None:
    seam.replace(module, "_supports_onednn", False)
