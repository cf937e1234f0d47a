"""Collects the refusals and notices of all features; each feature knows its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from omegaconf import DictConfig, OmegaConf

from verl_cov import __version__
from verl_cov.core.prime.prime_config import TRAINER_MODE
from verl_cov.hooks import group_filter, legacy_actor, policy_loss_refusals, reward, target_refusals
from verl_cov.hooks.asks import asks_for_verl_cov, config_from_trainer
from verl_cov.hooks.checks import machine
from verl_cov.hooks.cpu import refusals as cpu_refusals
from verl_cov.hooks.loss_modes import POLICY_LOSS
from verl_cov.hooks.prime import refusals as prime_refusals
from verl_cov.hooks.status import status
from verl_cov.hooks.validation import entropy, greedy, pass_at_k, sampling


def refuse(config: DictConfig) -> None:
    """Raises ValueError for what verl-cov cannot do in this run, on whatever machine; names the field and the fix."""
    if status.error and _needs_plugin(config):
        raise ValueError(f"the plugin is not working ({status.error}); run `verl-cov doctor`")
    if status.error:
        return
    for refuse_feature in (
        policy_loss_refusals.refuse_names,
        target_refusals.refuse,  # before the rest: it says of a target's values more than the whole configuration does
        policy_loss_refusals.refuse,
        legacy_actor.refuse,
        cpu_refusals.refuse,
        entropy.refuse,
        pass_at_k.refuse,
        greedy.refuse,
        group_filter.refuse,
        sampling.refuse,
        reward.refuse,
        prime_refusals.refuse,
    ):
        _in_one_line(refuse_feature, config)


def _needs_plugin(config: DictConfig) -> bool:
    """False for a run of which only the reward function is ours: verl finds that by itself."""
    without_reward = OmegaConf.merge(config, {})
    OmegaConf.update(without_reward, "reward.custom_reward_function.path", None, force_add=True)
    return asks_for_verl_cov(without_reward)


def refuse_here(config: DictConfig) -> None:
    """Raises ValueError for what would make the run hang, or fail after minutes, on this machine."""
    for refuse_feature in (
        prime_refusals.refuse_models,
        cpu_refusals.refuse_here,
        machine.refuse_without_accelerator,
        machine.refuse_too_few_ray_cpus,
    ):
        _in_one_line(refuse_feature, config)


def notices(config: DictConfig) -> Iterator[str]:
    """Lines that the user should read before the run starts."""
    if status.error:
        return
    yield from policy_loss_refusals.notices(config)
    yield from group_filter.notices(config)
    yield from target_refusals.notices(config)


def start_up_line(config: DictConfig) -> str:
    """Says that verl-cov is active and what it does in this run."""
    if status.error:
        return f"verl-cov {__version__} is NOT active: {status.error}"
    mode = str(OmegaConf.select(config, f"{POLICY_LOSS}.loss_mode", default="vanilla"))
    cov = config_from_trainer(config)
    trainer = "PRIME; " if OmegaConf.select(config, "trainer.v1.trainer_mode", default=None) == TRAINER_MODE else ""
    if cov is not None:
        active = "set WITHOUT EFFECT" if policy_loss_refusals.without_effect(config) else "active"
        return f"verl-cov {__version__} is {active}: {trainer}{cov.describe(target_refusals.entropy_coeff(config))}"
    verls = f"loss_mode={mode} is verl's own (ours: +verl_cov=kl_cov or clip_cov)"
    return f"verl-cov {__version__} is {'active: ' if trainer else 'loaded; '}{trainer}{verls}"


def _in_one_line(refuse_feature: Callable[[DictConfig], None], config: DictConfig) -> None:
    from hydra.errors import InstantiationException

    try:
        refuse_feature(config)
    except InstantiationException as error:
        # Hydra wraps what a dataclass raised; the cause says it better.
        raise ValueError(" ".join(str(error.__cause__ or error).split())) from None
    except (TypeError, RuntimeError) as error:
        raise ValueError(str(error)) from None
