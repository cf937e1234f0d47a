"""The mini-batch hook in verl's legacy actor (0.6 and 0.7): nothing, until verl is patched.

Leans on ``verl.workers.actor.dp_actor.DataParallelPPOActor.update_policy(data)``, which cuts a rank's rows into
mini-batches and these into micro-batches in one long method: there is no place to wrap, so ``patches/`` puts
``verl.utils.mini_batch_hook`` into it, which calls :func:`hook_of` with the actor and a mini-batch (a ``DataProto``,
dense) and enters the hook round the policy loss with the micro-batch's tensors. An actor without the patch is refused
when it is made, which is before the first rollout. The legacy Megatron actor has no patch.

The loss is scaled as that verl does it, by rows and with each micro-batch's own token mean: the tokens selected do not
depend on the layout there, the loss does.
"""

from __future__ import annotations

import functools
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.host import batch
from verl_cov.host.batch import FIELD, Tokens
from verl_cov.host.imports import when_imported
from verl_cov.host.mini_batch import MINI_BATCHES_PER_STEP, MiniBatchHook

PATCH = "run `verl-cov patch apply` on every node"


def install() -> None:
    when_imported("verl.utils.mini_batch_hook", lambda module: module.register_mini_batch_hook(hook_of))
    when_imported("verl.workers.actor.dp_actor", lambda module: _check_when_made(module, "DataParallelPPOActor"))
    when_imported("verl.workers.actor.megatron_actor", lambda module: _check_when_made(module, "MegatronPPOActor"))


def hook_of(worker: Any, data: Any) -> MiniBatchHook | None:
    """The hook for a mini-batch of a legacy actor, or None: another kind of worker, or nothing of ours is asked for."""
    if not hasattr(worker, "actor_optimizer"):
        return None
    cov = _asked_for(worker)
    return None if cov is None else MiniBatchHook(LegacySeam(worker, data.batch), cov)


def _check_when_made(module: Any, name: str) -> None:
    actor, patched = getattr(module, name), hasattr(module, "MiniBatchStep")
    original = actor.__init__

    @functools.wraps(original)
    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        # The reference policy is such an actor too, without an optimizer.
        if getattr(self, "actor_optimizer", None) is not None and (cov := _asked_for(self)) is not None:
            refuse(cov, patched, name)

    actor.__init__ = __init__


def refuse(cov: Any, patched: bool, actor: str) -> None:
    """Raise ValueError for what ``actor``, a legacy one, cannot do, and say why.

    Args:
        cov: the validated configuration. patched: its module has ``MiniBatchStep``.
    """
    field = "actor_rollout_ref.actor.policy_loss"
    if not patched and (cov.cov_metrics != "off" or (cov.controls and cov.cov_scope == "mini_batch")):
        fix = PATCH if actor == "DataParallelPPOActor" else f"there is no patch for it: use strategy=fsdp and {PATCH}"
        less = "leave +verl_cov=metrics out"
        if cov.controls:
            less = (
                f"select within micro-batches and log nothing ({field}.cov_scope=micro_batch {field}.cov_metrics=off)"
            )
        raise ValueError(
            f"verl-cov: verl's legacy actor ({actor}) shows the policy loss one micro-batch at a time and is not "
            f"patched: {fix}, or {less}"
        )
    if cov.controls and cov.cov_scope == "mini_batch" and cov.log_prob == "current":
        raise ValueError(
            f"verl-cov: {field}.cov_log_prob=current needs verl's engines, and this is the legacy actor: use old"
        )
    if cov.cov_dump_every:
        raise ValueError(
            f"verl-cov: {field}.cov_dump_every={cov.cov_dump_every} needs verl's engines, and this is the legacy "
            "actor: set it to 0"
        )


class LegacySeam:
    """A ``DataParallelPPOActor`` and one of its mini-batches (a TensorDict, dense)."""

    tokenizer = None

    def __init__(self, worker: Any, data: Any) -> None:
        self.worker, self.data = worker, data
        self.group = _data_parallel_group(worker)

    def step(self) -> int:
        """Optimizer steps so far, as the optimizer's checkpoint has them: the actor is told no number of a rollout."""
        seen = self.worker._verl_cov_updates = getattr(self.worker, "_verl_cov_updates", -1) + 1
        states = self.worker.actor_optimizer.state.values()
        counted = next((int(state["step"]) for state in states if "step" in state), seen)
        return counted * MINI_BATCHES_PER_STEP

    def log_probs(self, tokens: Tokens) -> Tensor:
        raise NotImplementedError  # refuse() is before it

    def has_policy_loss(self, micro_batch: Any) -> bool:
        return True

    def mask_of(self, micro_batch: Any) -> Tensor:
        return micro_batch[FIELD].bool()


def _asked_for(actor: Any) -> Any:
    from verl_cov.config import cov_config

    policy_loss = actor.config.get("policy_loss")
    return None if policy_loss is None else cov_config(policy_loss)


def _data_parallel_group(actor: Any) -> ProcessGroup | None:
    """The ranks that hold other rows than this one; None if there are none.

    With Ulysses the ranks of a sequence-parallel group hold the same rows; verl lays the two out as this mesh
    (``fsdp_workers.py``, ``ulysses_device_mesh``), and does not hand it to the actor.
    """
    if not hasattr(actor, "_verl_cov_group"):
        ranks, sequence = dist.get_world_size(), getattr(actor, "ulysses_sequence_parallel_size", 1)
        if ranks == sequence:
            actor._verl_cov_group = None
        elif sequence == 1:
            actor._verl_cov_group = dist.group.WORLD
        else:
            from torch.distributed.device_mesh import init_device_mesh

            mesh = init_device_mesh(batch.device().type, (ranks // sequence, sequence), mesh_dim_names=("dp", "sp"))
            actor._verl_cov_group = mesh.get_group("dp")
    return actor._verl_cov_group
