"""Decides whether a run asks for verl-cov, and for what. If it does not, no code of verl-cov may act on the run.

Every run is checked, so nothing of verl is imported until the answer is yes. Leans on
``verl.utils.config.omega_conf_to_dataclass`` and on the loss function of a worker that trains an actor:
``partial(ppo_loss, config=ActorConfig)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_cov.hooks.loss_modes import POLICY_LOSS

if TYPE_CHECKING:
    from verl.workers.config import PolicyLossConfig

    from verl_cov.hooks.config import CovPolicyLossConfig

# The fields in which a configuration can name verl-cov. Other people's fields that look like ours do not count.
NAMING_FIELDS = (
    f"{POLICY_LOSS}._target_",
    f"{POLICY_LOSS}.loss_mode",
    "actor_rollout_ref.rollout.agent.default_agent_loop",
    "prime._target_",
    "reward.custom_reward_function.path",
    "trainer.v1.trainer_mode",
)


def asks_for_verl_cov(config: DictConfig) -> bool:
    """Tells whether a trainer's configuration names verl-cov in one of :data:`NAMING_FIELDS`.

    Never raises: it is called in every run, also of people who never heard of verl-cov, with any configuration.
    """
    return any(names_verl_cov(_read(config, field)) for field in NAMING_FIELDS)


def names_verl_cov(value: object) -> bool:
    """True for a value such as ``verl_cov.kl_cov``, whatever its case, with hyphens, or as ``pkg://verl_cov/...``."""
    name = str(value).lower().replace("-", "_").removeprefix("pkg://").replace("/", ".")
    return name.startswith("verl_cov.")


def config_from_policy_loss(policy_loss: PolicyLossConfig | None) -> CovPolicyLossConfig | None:
    """Returns the control or metrics that verl's ``policy_loss`` dataclass asks for; None if it asks for neither.

    Accepts verl's plain ``PolicyLossConfig`` too, so that ``policy_loss.loss_mode=verl_cov.kl_cov`` alone works: verl's
    fields keep verl's defaults, and the fields that verl-cov adds take its own.
    """
    if not (names_verl_cov(type(policy_loss).__module__) or names_verl_cov(getattr(policy_loss, "loss_mode", None))):
        return None
    from verl_cov.hooks.config import CovPolicyLossConfig

    cov = policy_loss if isinstance(policy_loss, CovPolicyLossConfig) else CovPolicyLossConfig.extend(policy_loss)
    return cov if cov.acts or cov.cov_metrics != "off" or cov.moves else None


def config_from_loss(loss_fn: Callable[..., Any] | None) -> CovPolicyLossConfig | None:
    """Returns the control or the metrics that a worker's loss function asks for; None if neither.

    Critics and reward models have losses with another configuration, or none.
    """
    actor_config = getattr(loss_fn, "keywords", {}).get("config")
    return config_from_policy_loss(getattr(actor_config, "policy_loss", None))


def config_from_trainer(config: DictConfig) -> CovPolicyLossConfig | None:
    """Returns the control or the metrics that a trainer's whole configuration asks for; None if neither.

    Raises what building the dataclass raises.
    """
    if not asks_for_verl_cov(config):
        return None
    from verl.utils.config import omega_conf_to_dataclass

    policy_loss = OmegaConf.select(config, POLICY_LOSS, default=None)
    if not policy_loss or "_target_" not in policy_loss:  # verl can train without a class
        return None
    return config_from_policy_loss(omega_conf_to_dataclass(policy_loss))


def wants_metrics(config: DictConfig) -> bool:
    """Returns True if this trainer's configuration asks for metrics of verl-cov."""
    cov = config_from_trainer(config)
    return cov is not None and cov.cov_metrics != "off"


def _read(config: DictConfig, field: str) -> object:
    try:
        return OmegaConf.select(config, field, default=None)
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError):
        return None  # an unresolvable interpolation, a leaf where verl has a node, or no DictConfig
