"""Runs vLLM's model in the process of its engine, where vLLM has a process for each.

verl asks vLLM for its multiprocess executor: one more process that imports torch and vLLM while a run starts, and a
message there and back for each token, for which the engine waits without sleeping. A model on one CPU process needs
neither. vLLM's executor for one process is not chosen on a CPU because it does not set the number of OpenMP threads;
:class:`OneProcessExecutor` does, as vLLM counts them: one fewer than cores. ``VERL_COV_FAST_ROLLOUTS=0`` turns it off.

Leans on ``Executor.get_class(vllm_config)``, asked for by the server that verl starts, and on
``parallel_config.distributed_executor_backend`` and ``world_size_across_dp``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from verl_cov.hooks.cpu import fast_rollouts
from verl_cov.hooks.seams import Seam

if TYPE_CHECKING:
    from vllm.v1.executor.abstract import Executor

seam = Seam()


def install() -> None:
    if fast_rollouts.wanted():
        seam.when_imported("vllm.v1.executor.abstract", _choose)


def _choose(module: ModuleType) -> None:
    seam.wrap(module.Executor, "get_class", _executor)


def _executor(original: Callable[[Any], type[Executor]], vllm_config: Any) -> type[Executor]:
    parallel = vllm_config.parallel_config
    if parallel.distributed_executor_backend != "mp" or parallel.world_size_across_dp != 1:
        return original(vllm_config)
    from verl_cov.hooks.cpu.one_process_executor import OneProcessExecutor

    return OneProcessExecutor
