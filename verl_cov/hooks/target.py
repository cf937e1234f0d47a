"""Moves a run's knob and its annealed coefficients: one value a rollout, for all of its updates, equal on every rank.

:mod:`.rollout_batch` calls :func:`moved` round the updates on a rollout, with the responses that it has gathered.
Leans on the loss function of a worker that trains an actor, ``partial(ppo_loss, config=ActorConfig)``: while the
updates run, it has a copy of that configuration with the rollout's values in it, which is the one place where the
losses, the selection and verl's entropy bonus read them.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch.distributed as dist

from verl_cov.core import rollout
from verl_cov.core.rollout import Responses
from verl_cov.core.target import controller
from verl_cov.core.target.controller import TargetState
from verl_cov.core.target.settings import BAND, NODE, Knob, TargetSettings
from verl_cov.hooks import knobs
from verl_cov.hooks.loss_modes import KNOBS_THAT_HOLD
from verl_cov.hooks.worker_state import WorkerState, state_of

if TYPE_CHECKING:
    from verl.workers.config import ActorConfig
    from verl.workers.engine_workers import TrainingWorker

    from verl_cov.hooks.config import CovPolicyLossConfig

logger = logging.getLogger(__name__)


@contextmanager
def moved(worker: TrainingWorker, cov: CovPolicyLossConfig, responses: Responses | None) -> Iterator[dict[str, float]]:
    """Within this block the worker trains with this rollout's values; yields its metrics, without their prefix.

    Args:
        responses: of the rollout batch of all ranks; None if they could not be gathered on some rank.

    Raises:
        RuntimeError: the first rollout has no entropy to go by, or not one that the target can be reached from.
    """
    state = state_of(worker)
    values = {name: schedule.at(state.rollouts) for name, schedule in cov.schedules.items()}
    metrics = dict(values)
    state.rollouts += 1
    if cov.cov_target is not None:
        name, knob, of_target = _moved_knob(worker, cov, state, responses)
        values[name] = knob
        metrics |= of_target
    loss = worker.loss_fn
    if values:
        config = with_values(loss.keywords["config"], values)
        worker.loss_fn = functools.partial(loss.func, *loss.args, **{**loss.keywords, "config": config})
    try:
        yield metrics
    finally:
        worker.loss_fn = loss


def with_values(config: ActorConfig, values: Mapping[str, float]) -> ActorConfig:
    """Returns a copy of an actor's configuration with these numbers: of the policy loss, of a control by weight
    (``repo.zeta``), or of the actor itself."""
    changed, policy_loss = copy.copy(config), copy.copy(config.policy_loss)
    for name, value in values.items():
        control, _, number = name.rpartition(".")
        if control:
            weights = policy_loss.cov_weights
            object.__setattr__(policy_loss, "cov_weights", {**weights, control: {**weights[control], number: value}})
        else:
            object.__setattr__(policy_loss if hasattr(policy_loss, name) else changed, name, value)
    object.__setattr__(changed, "policy_loss", policy_loss)
    return changed


def state_dict(state: WorkerState) -> dict[str, object]:
    """Returns what a resumed run needs, ready for JSON."""
    return {"rollouts": state.rollouts, "target": None if state.target is None else state.target.state_dict()}


def load_state(state: WorkerState, cov: CovPolicyLossConfig, saved: str | None) -> None:
    """Restores what :func:`state_dict` returned, out of the text of a checkpoint's file.

    A checkpoint of a run without target and schedules begins both anew.

    Raises:
        RuntimeError: the file is damaged. A run must not go on with another number than the one that was stopped.
    """
    try:
        values = {} if saved is None else json.loads(saved)
        state.rollouts = int(values.get("rollouts", 0))
        found = values.get("target")
        state.target = None if found is None else TargetState.from_state_dict(found)
    except (ValueError, TypeError, AttributeError) as error:
        raise RuntimeError(
            f"verl-cov: verl_cov.json of this checkpoint is damaged, and holds where target and schedules stand "
            f"({error}): resume from another checkpoint, or delete the file to begin them anew"
        ) from None
    if cov.cov_target is not None and state.target is None:
        _say("this checkpoint has no target's state: the target begins at this rollout")


def _moved_knob(
    worker: TrainingWorker, cov: CovPolicyLossConfig, state: WorkerState, responses: Responses | None
) -> tuple[str, float, dict[str, float]]:
    """Returns the knob's name, its value and the metrics; every rank computes them from the same numbers."""
    settings, knob = cov.cov_target, knobs.find(cov, worker.loss_fn.keywords["config"].entropy_coeff)
    state.target, note = controller.resumed(settings, knob, state.target or TargetState())
    if note:
        _say(f"on resumption {note}")
    measured = noise = None
    if responses is not None:
        values = rollout.entropies(responses)
        measured = values.get("entropy" if settings.measure == "exact" else "entropy_sampled")
        noise = values.get("entropy_error")
    if state.target.first is None:
        _refuse_first(worker, settings, knob, measured)
    elif measured is None:
        _say("a rollout has no entropy, and the knob stays as it was in its updates")
    step = controller.update(settings, knob, state.target, measured, noise)
    state.target = step.state
    for warning in step.warnings:
        _say(warning)
    return knob.name, step.knob, step.metrics()


def _refuse_first(worker: TrainingWorker, settings: TargetSettings, knob: Knob, first: float | None) -> None:
    """Raises RuntimeError if the first rollout shows that the target cannot be held."""
    if first is None:
        raise RuntimeError(
            f"verl-cov: the first rollout has no {settings.measure} entropy, so the target cannot be held: set "
            f"{NODE}.measure=sampled to go by -log pi of the sampled tokens"
        )
    largest = settings.largest if settings.fraction is None else settings.fraction * first
    if largest is None:
        return
    field = settings.largest_field if settings.fraction is None else f"{NODE}.fraction"
    vocabulary = getattr(getattr(worker.model_config, "hf_config", None), "vocab_size", None)
    if vocabulary and largest > math.log(vocabulary):
        raise RuntimeError(f"verl-cov: {above_vocabulary(field, largest, vocabulary)}")
    if knob.name in KNOBS_THAT_HOLD and largest > first * (1 + BAND):
        raise RuntimeError(
            f"verl-cov: {field} asks for {largest:.3g} nats, above the first rollout's {first:.3g}: {knob.name} "
            "takes gradients away, which can hold an entropy and not raise it. Lower the target, or take another knob"
        )


def above_vocabulary(field: str, target: float, vocabulary: int) -> str:
    """Says that no policy has such an entropy."""
    return (
        f"{field} asks for {target:.3g} nats per token, above the logarithm of the vocabulary, "
        f"ln {vocabulary} = {math.log(vocabulary):.3g}, which no policy reaches: lower it"
    )


def _say(text: str) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        logger.warning("verl-cov: %s", text)
