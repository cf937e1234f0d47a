"""vLLM's executor for one process, with its number of OpenMP threads. Imports vLLM."""

from __future__ import annotations

import os

import torch
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class OneProcessExecutor(UniProcExecutor):
    """Loads and runs the model in the engine's process, with a thread for each core but one, as vLLM counts them."""

    def _init_executor(self) -> None:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
        super()._init_executor()
