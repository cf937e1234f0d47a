"""Keeps the weights of two trainings on one machine apart.

verl sends weights to vLLM through a socket in /tmp whose name holds Ray's job id. Each trainer that starts a Ray of its
own has the job id 1, so two of them share a name: one training's weights go to the other's vLLM, or both wait for ever.
Leans on the argument ``zmq_handle`` of ``BucketedWeightSender`` and ``BucketedWeightReceiver`` of
``verl.workers.rollout.vllm_rollout.bucketed_weight_transfer``, and on ``RAY_RAYLET_PID``, which Ray gives all of its
workers on a node, and they their children.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from verl_cov.hooks.seams import Seam

seam = Seam()


def install() -> None:
    seam.when_imported("verl.workers.rollout.vllm_rollout.bucketed_weight_transfer", _wrap)


def _wrap(module: ModuleType) -> None:
    for end in (module.BucketedWeightSender, module.BucketedWeightReceiver):
        seam.wrap(end, "__init__", _init)


def _init(original: Callable, end: Any, zmq_handle: str, *args: Any, **kwargs: Any) -> None:
    raylet = os.environ.get("RAY_RAYLET_PID")
    if raylet and zmq_handle.endswith(".sock"):
        zmq_handle = f"{zmq_handle.removesuffix('.sock')}-ray-{raylet}.sock"
    original(end, zmq_handle, *args, **kwargs)
