"""Registers the agent loop ``verl_cov.single_turn`` and has the data that it will act on checked before workers start.

Leans on the registry that ``verl.experimental.agent_loop`` fills while it is imported, and on
``PPOTrainer._init_dataloader`` (V1) and ``RayPPOTrainer._create_dataloader`` (legacy) leaving ``train_dataset`` and
``val_dataset``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cov import suggestions
from verl_cov.hooks.asks import asks_for_verl_cov, names_verl_cov
from verl_cov.hooks.seams import Seam
from verl_cov.hooks.validation.temperatures import AGENT_LOOP, AGENT_LOOP_FIELD, check_temperatures

seam = Seam()


def install() -> None:
    seam.when_imported("verl.experimental.agent_loop.single_turn_agent_loop", _register)
    seam.when_imported("verl.trainer.ppo.v1.trainer_base", _wrap_v1)
    seam.when_imported("verl.trainer.ppo.ray_trainer", _wrap_legacy)


def _register(module: Any) -> None:
    importlib.import_module("verl_cov.hooks.validation.agent_loop")  # its class registers itself


def _wrap_v1(trainer_base: Any) -> None:
    seam.wrap(trainer_base.PPOTrainer, "_init_dataloader", _create_dataloader)


def _wrap_legacy(ray_trainer: Any) -> None:
    seam.wrap(ray_trainer.RayPPOTrainer, "_create_dataloader", _create_dataloader)


def _create_dataloader(original: Callable, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(trainer, *args, **kwargs)
    if asks_for_verl_cov(trainer.config):
        loop = OmegaConf.select(trainer.config, AGENT_LOOP_FIELD, default=None)
        check_temperatures(loop, trainer.train_dataset, trainer.val_dataset)
    return result


def refuse(config: DictConfig) -> None:
    """Raise ValueError for an agent loop of ours that is misspelt, or whose samples would all be the same."""
    loop = str(OmegaConf.select(config, AGENT_LOOP_FIELD, default=None))
    if not names_verl_cov(loop):
        return
    if loop != AGENT_LOOP:
        raise ValueError(f"{AGENT_LOOP_FIELD}={loop} is unknown{suggestions.did_you_mean(loop, [AGENT_LOOP])}")
    if OmegaConf.select(config, "actor_rollout_ref.rollout.full_determinism", default=False):
        raise ValueError(
            "actor_rollout_ref.rollout.full_determinism=True gives every request of a vLLM server the same seed, so "
            f"that all samples of a prompt are one and the same: set it to False with {AGENT_LOOP_FIELD}={AGENT_LOOP}"
        )
