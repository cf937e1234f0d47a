"""State that must outlive a call: one object on each of verl's workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.advice import Advice
from verl_cov.core.dead_zone import FLOOR
from verl_cov.core.entropy_change import EntropyChange
from verl_cov.core.target.controller import TargetState

if TYPE_CHECKING:
    from verl.workers.actor.dp_actor import DataParallelPPOActor
    from verl.workers.engine_workers import TrainingWorker

_ATTRIBUTE = "_verl_cov"


@dataclass
class WorkerState:
    """The state of one worker that trains an actor.

    Args:
        rollout_step, mini_batch: the last optimizer step: which rollout's, and which mini-batch of it; None before the
            first.
        updates: optimizer steps so far, where the worker is told no rollout step (the legacy actor).
        log_probs_are_new: True after the actor has computed log-probs, until it is updated.
        dead_zone: of KL-Cov's absolute penalty, in nats, as measured in this rollout's first update.
        advice: what the user has been told.
        entropy_change: predictions against measurements.
        rollouts: since numbers began to follow schedules; target: the controller's state. These two and
            ``entropy_change`` go into checkpoints.
        inferred_entropies: prompts' uids and [slots] entropies of the last inference, until they are trained on.
        rollout_entropy: mean entropy of the rollout that is trained on, in nats; None if unknown.
        group: data-parallel group of the legacy actor, in a list of one; None until it is made.
    """

    rollout_step: int | None = None
    mini_batch: int = 0
    updates: int = -1
    log_probs_are_new: bool = False
    dead_zone: float = FLOOR
    advice: Advice = field(default_factory=lambda: Advice(dist.get_rank() if dist.is_initialized() else 0))
    entropy_change: EntropyChange = field(default_factory=EntropyChange)
    rollouts: int = 0
    target: TargetState | None = None
    inferred_entropies: tuple[list[str] | None, Tensor] | None = None
    rollout_entropy: float | None = None
    group: list[ProcessGroup | None] | None = None


def state_of(worker: TrainingWorker | DataParallelPPOActor) -> WorkerState:
    """Returns the state of ``worker``; the first call creates it."""
    if not hasattr(worker, _ATTRIBUTE):
        setattr(worker, _ATTRIBUTE, WorkerState())
    return getattr(worker, _ATTRIBUTE)
