"""Whether a run asks for verl-cov, and what it asks for, where the whole configuration is at hand (driver, trainer).

Leans on ``verl.utils.config.omega_conf_to_dataclass``.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Where a configuration can name verl-cov. A value that begins with "verl_cov." (also misspelt: "VERL-COV.KL_COV") or
# "pkg://verl_cov." names it; any other field of any other owner does not.
NAMING_FIELDS = (
    "actor_rollout_ref.actor.policy_loss._target_",
    "actor_rollout_ref.actor.policy_loss.loss_mode",
    "actor_rollout_ref.rollout.agent.default_agent_loop",
    "prime._target_",
    "reward.custom_reward_function.path",
    "trainer.v1.trainer_mode",
)


def asks_for_verl_cov(config: Any) -> bool:
    """Tells whether a trainer's configuration names verl-cov: if it does not, nothing of ours may act on the run.

    Never raises: it is called in runs of people who have never heard of us, whose configuration may hold anything.
    """
    return any(names_verl_cov(_read(config, field)) for field in NAMING_FIELDS)


def names_verl_cov(value: Any) -> bool:
    """True for a value such as ``verl_cov.kl_cov``, whatever its case, with hyphens or as ``pkg://verl_cov/...``."""
    name = str(value).lower().replace("-", "_").removeprefix("pkg://").replace("/", ".")
    return name.startswith("verl_cov.")


def _read(config: Any, field: str) -> Any:
    try:
        return OmegaConf.select(config, field, default=None)
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError):
        return None  # an interpolation that cannot be resolved here, a leaf where verl has a node, no DictConfig


def asked_in(config: DictConfig) -> Any:
    """The validated :class:`~verl_cov.hooks.config.CovPolicyLossConfig` (a control, or metrics for a loss of verl's),
    or None. Raises what building it raises.

    A ``policy_loss`` that is missing or has no ``_target_`` asks for nothing of ours: verl trains with such a one.
    """
    if not asks_for_verl_cov(config):
        return None
    from verl.utils.config import omega_conf_to_dataclass

    from verl_cov.hooks.config import cov_config

    policy_loss = OmegaConf.select(config, "actor_rollout_ref.actor.policy_loss", default=None)
    if not policy_loss or "_target_" not in policy_loss:
        return None
    return cov_config(omega_conf_to_dataclass(policy_loss))


def wants_metrics(config: DictConfig) -> bool:
    """True if metrics of ours are to be logged in this run."""
    cov = asked_in(config)
    return cov is not None and cov.cov_metrics != "off"
