"""Copy received weights out of shared memory before it is closed.

``BucketedWeightReceiver`` hands vLLM tensors that view a shared-memory buffer and closes it when done. On an
accelerator ``.to(device)`` copies; on a CPU it does not, and closing raises ``BufferError: cannot close exported
pointers exist``, which shows only as a hang of the sender. Leans on ``receive_weights(on_bucket_received(weights,
is_last))`` of ``verl.workers.rollout.vllm_rollout.bucketed_weight_transfer``.
"""

from __future__ import annotations

import functools
from typing import Any

from verl_cov.hooks.imports import when_imported


def install() -> None:
    when_imported("verl.workers.rollout.vllm_rollout.bucketed_weight_transfer", _copy_on_receive)


def _copy_on_receive(module: Any) -> None:
    receiver = module.BucketedWeightReceiver
    original = receiver.receive_weights

    @functools.wraps(original)
    def receive_weights(self, on_bucket_received):
        def on_copied(weights, is_last):
            return on_bucket_received([(name, tensor.clone()) for name, tensor in weights], is_last)

        return original(self, on_copied)

    receiver.receive_weights = receive_weights
