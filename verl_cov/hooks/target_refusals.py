"""Refuses a target that a run cannot hold: a ValueError names the field and the fix.

Leans on ``actor.entropy_coeff`` and ``actor.calculate_entropy``, which tell verl's trainers to compute the entropy with
a gradient in the update.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_cov.core.target.settings import BAND, NODE, TargetSettings
from verl_cov.hooks import knobs, versions
from verl_cov.hooks.asks import config_from_trainer
from verl_cov.hooks.loss_modes import ACTOR, ENTROPY_BONUS, KNOBS_THAT_HOLD
from verl_cov.hooks.target import above_vocabulary
from verl_cov.hooks.trainers import bypasses_old_log_probs, update_calls_on_one_policy

_LARGEST_VOCABULARY = 2**20  # where the model is not on this machine: four times today's largest


def refuse(config: DictConfig) -> None:
    """Raises ValueError for a target, or a schedule, that is no sound one, or that this run cannot follow."""
    cov = config_from_trainer(config)
    if cov is None or not cov.moves:
        return
    release = versions.installed_release()
    legacy = OmegaConf.select(config, "trainer.use_legacy_worker_impl", default="auto") != "disable"
    if not release.engine or (release.legacy and legacy):
        fix = "trainer.use_legacy_worker_impl=disable" if release.engine else "verl 0.7.1 or later"
        raise ValueError(f"a target or a schedule needs verl's engines, and this run has the legacy actor: {fix}")
    calls, field = update_calls_on_one_policy(config)
    if calls > 1:
        raise ValueError(
            f"{field}={calls}: so many updates share one policy, and a target or a schedule moves once a policy: set "
            "it to 1, or leave +verl_cov=target and schedules out"
        )
    if cov.cov_target is not None:
        _refuse_target(config, cov.cov_target, knobs.name_of(cov))
        knobs.find(cov, entropy_coeff(config))


def entropy_coeff(config: DictConfig) -> float:
    """Returns the coefficient of verl's entropy bonus."""
    return float(OmegaConf.select(config, f"{ACTOR}.{ENTROPY_BONUS}", default=0) or 0)


def notices(config: DictConfig) -> Iterator[str]:
    """Yields what of a target is unusual, and may be a slip."""
    cov = config_from_trainer(config)
    if cov is not None and cov.cov_target is not None and (cov.cov_target.fraction or 0) > 1:
        fraction = cov.cov_target.fraction
        yield f"WARNING: {NODE}.fraction={fraction:g} asks for more entropy than the first rollout has"


def _refuse_target(config: DictConfig, target: TargetSettings, knob: str) -> None:
    if target.measure == "exact" and bypasses_old_log_probs(config):
        raise ValueError(
            f"algorithm.rollout_correction.bypass_mode=True leaves out the pass that gives exact entropies: set it to "
            f"False, or {NODE}.measure=sampled to go by -log pi of the sampled tokens"
        )
    asked = [OmegaConf.select(config, f"{ACTOR}.{name}", default=0) for name in (ENTROPY_BONUS, "calculate_entropy")]
    if knob == ENTROPY_BONUS and not any(asked):
        raise ValueError(
            f"{NODE}.knob={ENTROPY_BONUS} with {ACTOR}.{ENTROPY_BONUS}=0: verl would compute no entropy in the update. "
            "Set it to the coefficient to start from, such as 1e-3"
        )
    if knob in KNOBS_THAT_HOLD and (target.fraction or 0) > 1 + BAND:
        raise ValueError(
            f"{NODE}.fraction={target.fraction:g} asks for more entropy than the first rollout has: {knob} takes "
            "gradients away, which can hold an entropy and not raise it. Give at most 1, or take another knob"
        )
    vocabulary = _vocabulary(config) or _LARGEST_VOCABULARY
    if target.largest is not None and target.largest > math.log(vocabulary):
        raise ValueError(above_vocabulary(target.largest_field, target.largest, vocabulary))


def _vocabulary(config: DictConfig) -> int | None:
    """Returns the size of the model's vocabulary if its folder is on this machine."""
    path = OmegaConf.select(config, "actor_rollout_ref.model.path", default=None)
    try:
        size = json.loads((Path(str(path)).expanduser() / "config.json").read_text()).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return None
    return size if isinstance(size, int) and size > 0 else None
