"""Refuses impossible settings of ``policy_loss`` and its engine, and tells the user what will have no effect.

Leans on ``POLICY_LOSS_REGISTRY`` of ``verl.trainer.ppo.core_algos``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from verl_cov.hooks import base_losses, weight_refusals
from verl_cov.hooks.asks import config_from_trainer, names_verl_cov
from verl_cov.hooks.loss_modes import ACTOR, CE_GPPO, CLIP_COV, KL_COV, LOSS_MODES, POLICY_LOSS
from verl_cov.hooks.train_batch import refuse_engine
from verl_cov.hooks.trainers import (
    bypasses_old_log_probs,
    update_calls_on_one_policy,
    updates_per_rollout,
)
from verl_cov.suggestions import did_you_mean

if TYPE_CHECKING:
    from verl_cov.hooks.config import CovPolicyLossConfig

# The files of conf/verl_cov/ that set the loss or its clip; those that weigh advantages go with each other and these.
SET_THE_LOSS = {"clip_cov": CLIP_COV, "kl_cov": KL_COV, "ce_gppo": CE_GPPO, "clip_higher": "vanilla"}


def refuse_names(config: DictConfig) -> None:
    """Raises ValueError for a control or a field that is misspelt, before anything builds a configuration of it."""
    policy_loss = OmegaConf.select(config, POLICY_LOSS, default=None) or {}
    mode = str(policy_loss.get("loss_mode"))
    our_class, our_mode = names_verl_cov(policy_loss.get("_target_")), names_verl_cov(mode)
    if not (our_class or our_mode):
        return
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    if "_target_" not in policy_loss:
        raise ValueError(
            f"{POLICY_LOSS}._target_ is missing, without which loss_mode={mode} has no numbers: take out what removes "
            f"it, ~{POLICY_LOSS}._target_, or set +{POLICY_LOSS}._target_=verl_cov.hooks.config.CovPolicyLossConfig"
        )
    _refuse_two_losses(config)
    if not our_class and (stray := next((name for name in policy_loss if name.startswith("cov_")), None)):
        add = mode.removeprefix("verl_cov.")
        raise ValueError(f"{POLICY_LOSS}.{stray} is verl-cov's: add +verl_cov={add} to use it")
    known_fields = _known_fields(policy_loss)
    for name in policy_loss:
        if not name.startswith("_") and name not in known_fields:
            raise ValueError(f"{POLICY_LOSS}.{name} is unknown{did_you_mean(name, known_fields)}")
    ours = (*LOSS_MODES, CE_GPPO)
    if mode not in ours and (our_mode or not base_losses.may_be_registered(config, mode)):
        known = ours if our_mode else tuple(POLICY_LOSS_REGISTRY)
        raise ValueError(f"{POLICY_LOSS}.loss_mode={mode} is unknown{did_you_mean(mode.lower(), known)}")


def refuse(config: DictConfig) -> None:
    """Raises ValueError for a control that is misspelt, out of range, or impossible with this run's sizes or engine."""
    refuse_names(config)
    cov = config_from_trainer(config)
    if cov is not None and cov.controls:
        base_losses.refuse(config, cov)
        _refuse_empty_selection(config, cov)
    if cov is not None and cov.acts:
        weight_refusals.refuse(config, cov)
        strategy = OmegaConf.select(config, "actor_rollout_ref.actor.strategy", default=None)
        engine = OmegaConf.select(config, f"actor_rollout_ref.actor.{strategy}", default=None)
        if engine is not None:
            refuse_engine(engine, cov)


def notices(config: DictConfig) -> Iterator[str]:
    """Yields what will have no effect, or no meaning, in this run."""
    cov = config_from_trainer(config)
    if cov is None:
        return
    yield from base_losses.notices(config, cov)
    yield from weight_refusals.notices(cov)
    overridden = list(_overridden(config, cov))
    yield from overridden
    if not overridden and not cov.controls and cov.loss_mode in ("clip_cov", "kl_cov"):
        yield (
            f"WARNING: loss_mode={cov.loss_mode} is verl's own, which selects within micro-batches; verl-cov only "
            f"measures. For the selection over the whole mini-batch: loss_mode=verl_cov.{cov.loss_mode}"
        )
    if reason := without_effect(config):
        yield f"WARNING: {cov.control.title} will do NOTHING: {reason}"
    calls, field = update_calls_on_one_policy(config)
    if cov.cov_metrics == "full" and calls > 1:
        yield (
            f"WARNING: this trainer updates {calls} times on log-probs of the same policy ({field}), so "
            "actor/cov/entropy_change and what is compared with it (theorem1_*, theorem2_*, entropy_falls) mean "
            "nothing; the other metrics hold"
        )


def without_effect(config: DictConfig) -> str | None:
    """Returns why the gradient of the run's control cannot reach the optimizer, and the fix; None if it can."""
    cov = config_from_trainer(config)
    if cov is None or not cov.controls:
        return None
    distils = OmegaConf.select(config, "distillation.enabled", default=False)
    if distils and not OmegaConf.select(config, "distillation.distillation_loss.use_task_rewards", default=True):
        return (
            "distillation.distillation_loss.use_task_rewards=False throws the policy loss away. Set it to True, or use "
            "+verl_cov=metrics"
        )
    if not cov.control.penalises:
        return None
    if cov.ppo_kl_coef == 0 and not cov.moves:
        return f"{POLICY_LOSS}.ppo_kl_coef=0 is a penalty of nothing. Raise it, or use +verl_cov=metrics"
    on_one_policy = update_calls_on_one_policy(config)[0] == 1 and not bypasses_old_log_probs(config)
    if updates_per_rollout(config) <= 1 and on_one_policy:
        return (
            "one update per rollout (actor_rollout_ref.actor.ppo_mini_batch_size is not below data.train_batch_size, "
            "and ppo_epochs is 1): the policy still is the rollout policy, where the penalty has no gradient. Lower "
            "ppo_mini_batch_size, or use clip_cov"
        )
    return None


def _refuse_two_losses(config: DictConfig) -> None:
    """Raises ValueError if two controls were composed that each set the loss: each file in ``conf/verl_cov/`` leaves
    its name in the node ``verl_cov``, because Hydra tells nobody of a file whose values a later one replaced."""
    composed = _composed(config)
    if len(composed) > 1:
        wrap = f", or wrap it: {POLICY_LOSS}.cov_base_loss={CE_GPPO}" if "ce_gppo" in composed else ""
        raise ValueError(
            f"two controls are composed, {' and '.join(composed)}, and a run has one that sets the loss: the "
            f"last one's loss_mode would stand on settings of both. Leave one of them out of +verl_cov, or out "
            f"of the recipe{wrap}"
        )


def _composed(config: DictConfig) -> list[str]:
    return [name for name in OmegaConf.select(config, "verl_cov", default=None) or () if name in SET_THE_LOSS]


def _overridden(config: DictConfig, cov: CovPolicyLossConfig) -> Iterator[str]:
    """Yields what a composed control was to do and a later value has undone."""
    for name in _composed(config):
        loss = SET_THE_LOSS[name]
        if loss not in (cov.loss_mode, cov.cov_base_loss):
            yield (
                f"WARNING: loss_mode={cov.loss_mode} overrides +verl_cov={name}, whose loss_mode={loss} is OFF: leave "
                f"{POLICY_LOSS}.loss_mode out, or {name}"
            )
        low, high = (OmegaConf.select(config, f"{ACTOR}.clip_ratio_{end}", default=None) for end in ("low", "high"))
        if name == "clip_higher" and None not in (low, high) and high <= low:
            yield (
                f"WARNING: {ACTOR}.clip_ratio_high={high:g} is not above clip_ratio_low={low:g}, so "
                f"+verl_cov={name} clips no higher: raise it"
            )


def _known_fields(policy_loss: DictConfig) -> list[str]:
    """Returns the fields of the class that the node names, which may be the user's own, and ours."""
    from hydra.utils import get_class

    from verl_cov.hooks.config import known_fields

    try:
        own = [field.name for field in dataclasses.fields(get_class(str(policy_loss.get("_target_"))))]
    except (ImportError, ValueError, TypeError):
        own = []  # a class that this process cannot import, or that is no dataclass
    return list(dict.fromkeys([*known_fields(), *own]))


def _refuse_empty_selection(config: DictConfig, cov: CovPolicyLossConfig) -> None:
    sizes = ("data.max_response_length", "actor_rollout_ref.rollout.n", "actor_rollout_ref.actor.ppo_mini_batch_size")
    most = math.prod(OmegaConf.select(config, size, default=None) or math.inf for size in sizes)
    if most < math.inf and Fraction(repr(cov.ratio)) * most < 1:
        field = cov.ratio_field
        raise ValueError(
            f"{POLICY_LOSS}.{field}={cov.ratio:g} is less than one token: a mini-batch has {most} tokens at most "
            f"({' x '.join(sizes)}). Raise {field} to {_round_up(1 / most):g} or more, or the mini-batch"
        )


def _round_up(value: float) -> float:
    """Rounds up to one significant digit."""
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / unit) * unit
