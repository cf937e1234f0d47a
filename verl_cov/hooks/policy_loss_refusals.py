"""Refuses impossible settings of ``policy_loss`` and its engine, and tells the user what will have no effect.

Leans on ``POLICY_LOSS_REGISTRY`` of ``verl.trainer.ppo.core_algos``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from verl_cov.hooks.asks import config_from_trainer, names_verl_cov
from verl_cov.hooks.loss_modes import KL_COV, LOSS_MODES, POLICY_LOSS
from verl_cov.hooks.train_batch import refuse_engine
from verl_cov.hooks.trainers import (
    bypasses_old_log_probs,
    update_calls_on_one_policy,
    updates_per_rollout,
)
from verl_cov.suggestions import did_you_mean

if TYPE_CHECKING:
    from verl_cov.hooks.config import CovPolicyLossConfig


def refuse(config: DictConfig) -> None:
    """Raises ValueError for a control that is misspelt, out of range, or impossible with this run's sizes or engine."""
    policy_loss = OmegaConf.select(config, POLICY_LOSS, default=None) or {}
    mode = str(policy_loss.get("loss_mode"))
    our_class, our_mode = names_verl_cov(policy_loss.get("_target_")), names_verl_cov(mode)
    if not (our_class or our_mode):
        return
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    from verl_cov.hooks.config import known_fields

    if "_target_" not in policy_loss:
        raise ValueError(
            f"{POLICY_LOSS}._target_ is missing, without which loss_mode={mode} has no numbers: take out what removes "
            f"it, ~{POLICY_LOSS}._target_, or set +{POLICY_LOSS}._target_=verl_cov.hooks.config.CovPolicyLossConfig"
        )
    if not our_class and (stray := next((name for name in policy_loss if name.startswith("cov_")), None)):
        add = mode.removeprefix("verl_cov.")
        raise ValueError(f"{POLICY_LOSS}.{stray} is verl-cov's: add +verl_cov={add} to use it")
    for name in policy_loss:
        if not name.startswith("_") and name not in known_fields():
            raise ValueError(f"{POLICY_LOSS}.{name} is unknown{did_you_mean(name, known_fields())}")
    if mode not in LOSS_MODES and (our_mode or mode not in POLICY_LOSS_REGISTRY):
        known = LOSS_MODES if our_mode else (*LOSS_MODES, *POLICY_LOSS_REGISTRY)
        raise ValueError(f"{POLICY_LOSS}.loss_mode={mode} is unknown{did_you_mean(mode.lower(), known)}")
    cov = config_from_trainer(config)
    if cov is not None and cov.controls:
        _refuse_empty_selection(config, cov)
        strategy = OmegaConf.select(config, "actor_rollout_ref.actor.strategy", default=None)
        engine = OmegaConf.select(config, f"actor_rollout_ref.actor.{strategy}", default=None)
        if engine is not None:
            refuse_engine(engine, cov)


def notices(config: DictConfig) -> Iterator[str]:
    """Yields what will have no effect, or no meaning, in this run."""
    cov = config_from_trainer(config)
    if cov is None:
        return
    if not cov.controls and cov.loss_mode in ("clip_cov", "kl_cov"):
        yield (
            f"WARNING: loss_mode={cov.loss_mode} is verl's own, which selects within micro-batches; verl-cov only "
            f"measures. For the selection over the whole mini-batch: loss_mode=verl_cov.{cov.loss_mode}"
        )
    calls, field = update_calls_on_one_policy(config)
    on_policy = updates_per_rollout(config) == calls == 1 and not bypasses_old_log_probs(config)
    if cov.loss_mode == KL_COV and on_policy:
        yield (
            "WARNING: one update per rollout (data.train_batch_size equals "
            "actor_rollout_ref.actor.ppo_mini_batch_size and ppo_epochs is 1): the policy still equals the rollout "
            "policy, where KL-Cov's penalty has no gradient. KL-Cov will do NOTHING. Lower ppo_mini_batch_size, or use "
            "clip_cov"
        )
    if cov.cov_metrics == "full" and calls > 1:
        yield (
            f"WARNING: this trainer updates {calls} times on log-probs of the same policy ({field}), so "
            "actor/cov/entropy_change and what is compared with it (theorem1_*, theorem2_*, entropy_falls) mean "
            "nothing; the other metrics hold"
        )


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
