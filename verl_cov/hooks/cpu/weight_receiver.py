"""Copies received weights out of shared memory before it is closed.

``BucketedWeightReceiver`` hands vLLM tensors that view a shared-memory buffer and closes it when done. On an
accelerator ``.to(device)`` copies; on a CPU it does not, and closing raises ``BufferError: cannot close exported
pointers exist``, which shows only as a hang of the sender. Leans on ``receive_weights(on_bucket_received(weights,
is_last))`` of ``verl.workers.rollout.vllm_rollout.bucketed_weight_transfer``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from verl_cov.hooks.seams import Seam

if TYPE_CHECKING:
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver

seam = Seam()


def install() -> None:
    seam.when_imported("verl.workers.rollout.vllm_rollout.bucketed_weight_transfer", _copy_on_receive)


def _copy_on_receive(module: ModuleType) -> None:
    seam.wrap(module.BucketedWeightReceiver, "receive_weights", _receive_weights)


def _receive_weights(original: Callable, receiver: BucketedWeightReceiver, on_bucket_received: Callable) -> Any:
    def on_copied(weights: Any, is_last: bool) -> Any:
        return on_bucket_received([(name, tensor.clone()) for name, tensor in weights], is_last)

    return original(receiver, on_copied)
