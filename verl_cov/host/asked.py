"""What a trainer's configuration asks of verl-cov, where the whole configuration is at hand (the driver, the trainer).

Leans on ``verl.utils.config.omega_conf_to_dataclass``.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def asked_in(config: DictConfig) -> Any:
    """The validated :class:`~verl_cov.config.CovPolicyLossConfig` (a control, or metrics for a loss of verl's), or
    None. Raises what building it raises.

    A ``policy_loss`` that is missing or has no ``_target_`` asks for nothing of ours: verl trains with such a one, and
    this is called in runs that have never heard of us.
    """
    from verl.utils.config import omega_conf_to_dataclass

    from verl_cov.config import cov_config

    policy_loss = OmegaConf.select(config, "actor_rollout_ref.actor.policy_loss", default=None)
    if not policy_loss or "_target_" not in policy_loss:
        return None
    return cov_config(omega_conf_to_dataclass(policy_loss))


def wants_metrics(config: DictConfig) -> bool:
    """True if metrics of ours are to be logged in this run."""
    cov = asked_in(config)
    return cov is not None and cov.cov_metrics != "off"
