"""Registers the agent loop ``verl_cov.single_turn`` and checks the data that it will act on before workers start.

Leans on ``register`` and ``_agent_loop_registry`` of ``verl.experimental.agent_loop.agent_loop``, and on
``PPOTrainer._init_dataloader`` (V1) and ``RayPPOTrainer._create_dataloader`` (legacy) leaving ``train_dataset`` and
``val_dataset``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from verl_cov import suggestions
from verl_cov.hooks.asks import asks_for_verl_cov, names_verl_cov
from verl_cov.hooks.seams import Seam
from verl_cov.hooks.validation.greedy import refuse_other_agent_loops
from verl_cov.hooks.validation.temperatures import AGENT_LOOP, AGENT_LOOP_FIELD, check_temperatures, columns

if TYPE_CHECKING:
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

seam = Seam()


def install() -> None:
    seam.when_imported("verl.experimental.agent_loop.single_turn_agent_loop", _register)
    seam.when_imported("verl.trainer.ppo.v1.trainer_base", _wrap_v1)
    seam.when_imported("verl.trainer.ppo.ray_trainer", _wrap_legacy)


def _register(single_turn_agent_loop: ModuleType) -> None:
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry, register

    from verl_cov.hooks.validation.agent_loop import PromptTemperatureAgentLoop

    register(AGENT_LOOP)(PromptTemperatureAgentLoop)
    seam.on_uninstall(lambda: _agent_loop_registry.pop(AGENT_LOOP, None))


def _wrap_v1(trainer_base: ModuleType) -> None:
    seam.wrap(trainer_base.PPOTrainer, "_init_dataloader", _create_dataloader)


def _wrap_legacy(ray_trainer: ModuleType) -> None:
    seam.wrap(ray_trainer.RayPPOTrainer, "_create_dataloader", _create_dataloader)


def _create_dataloader(
    original: Callable[..., None], trainer: PPOTrainer | RayPPOTrainer, *args: Any, **kwargs: Any
) -> None:
    original(trainer, *args, **kwargs)
    if asks_for_verl_cov(trainer.config):
        loop = OmegaConf.select(trainer.config, AGENT_LOOP_FIELD, default=None)
        check_temperatures(loop, trainer.train_dataset, trainer.val_dataset)
        refuse_other_agent_loops(trainer.config, columns(trainer.val_dataset))


def refuse(config: DictConfig) -> None:
    """Raises ValueError if our agent loop is misspelt, or if its samples would all be identical."""
    loop = str(OmegaConf.select(config, AGENT_LOOP_FIELD, default=None))
    if not names_verl_cov(loop):
        return
    if loop != AGENT_LOOP:
        raise ValueError(f"{AGENT_LOOP_FIELD}={loop} is unknown{suggestions.did_you_mean(loop, [AGENT_LOOP])}")
    if OmegaConf.select(config, "actor_rollout_ref.rollout.full_determinism", default=False):
        raise ValueError(
            "actor_rollout_ref.rollout.full_determinism=True gives every request of a vLLM server the same seed, so "
            f"all samples of a prompt would be identical: set it to False with {AGENT_LOOP_FIELD}={AGENT_LOOP}"
        )
