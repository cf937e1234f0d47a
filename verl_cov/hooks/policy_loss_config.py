"""verl's ``PolicyLossConfig``, which ours extends; for verl 0.5, which has none, one with the fields of its node.

Leans on ``verl.workers.config.PolicyLossConfig`` (0.6 and later) and on ``trainer/config/actor/actor.yaml`` of 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from verl_cov.hooks import versions

if TYPE_CHECKING or versions.this().config_class:
    from verl.workers.config import PolicyLossConfig
else:

    @dataclass
    class PolicyLossConfig:
        """``actor_rollout_ref.actor.policy_loss`` of verl 0.5, with its defaults."""

        loss_mode: str = "vanilla"
        clip_cov_ratio: float = 0.0002
        clip_cov_lb: float = 1.0
        clip_cov_ub: float = 5.0
        kl_cov_ratio: float = 0.0002
        ppo_kl_coef: float = 0.1


__all__ = ["PolicyLossConfig"]
