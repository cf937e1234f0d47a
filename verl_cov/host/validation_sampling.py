"""Registers the agent loop ``verl_cov.single_turn`` and checks the temperatures in the data it will act on.

Leans on the registry that ``verl.experimental.agent_loop`` fills while it is imported; on
``PPOTrainer._init_dataloader`` (V1) and ``RayPPOTrainer._create_dataloader`` (legacy) leaving ``train_dataset`` and
``val_dataset``, before any worker starts; and on ``RLHFDataset.dataframe``, a ``datasets.Dataset``.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
from typing import Any

from omegaconf import OmegaConf

from verl_cov.host.imports import when_imported

logger = logging.getLogger(__name__)

AGENT_LOOP = "verl_cov.single_turn"
AGENT_LOOP_FIELD = "actor_rollout_ref.rollout.agent.default_agent_loop"


def install() -> None:
    when_imported("verl.experimental.agent_loop.single_turn_agent_loop", _register)
    when_imported("verl.trainer.ppo.v1.trainer_base", lambda module: _wrap(module.PPOTrainer, "_init_dataloader"))
    when_imported("verl.trainer.ppo.ray_trainer", lambda module: _wrap(module.RayPPOTrainer, "_create_dataloader"))


def _register(module: Any) -> None:
    importlib.import_module("verl_cov.host.agent_loop")  # its class registers itself


def _wrap(trainer: Any, method: str) -> None:
    original = getattr(trainer, method)

    @functools.wraps(original)
    def create(self, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        loop = OmegaConf.select(self.config, AGENT_LOOP_FIELD, default=None)
        check(loop, self.train_dataset, self.val_dataset)
        return result

    setattr(trainer, method, create)


def check(agent_loop: str | None, train: Any, validation: Any) -> None:
    """Raise ValueError for temperatures that ``agent_loop`` would misapply; warn of ones that nothing applies."""
    if agent_loop != AGENT_LOOP or "agent_name" in getattr(validation.dataframe, "column_names", ()):
        if rows := len(temperatures(validation)):
            logger.warning(
                "verl-cov: %s validation rows have an extra_info.temperature, and nothing acts on it: set %s=%s (and "
                "leave out a column agent_name)",
                rows,
                AGENT_LOOP_FIELD,
                AGENT_LOOP,
            )
        return
    if found := temperatures(train):
        raise ValueError(
            f"verl-cov: {len(found)} training rows have an extra_info.temperature (the first: {found[0]:g}), with "
            f"which {AGENT_LOOP} would train on samples of another policy: set it to null in data.train_files, for "
            "training samples at actor_rollout_ref.rollout.temperature"
        )
    for value in temperatures(validation):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"verl-cov: extra_info.temperature={value:g} in data.val_files must be 0 (greedy), positive or null"
            )


def temperatures(dataset: Any) -> list[float]:
    """Every ``extra_info.temperature`` of a verl dataset that is not null."""
    import pyarrow.compute as pc

    frame = getattr(dataset, "dataframe", None)
    struct = getattr(frame, "features", {}).get("extra_info")
    if frame is None or not isinstance(struct, dict) or "temperature" not in struct:
        return []
    # Through Arrow: half a million rows as Python dictionaries take seconds.
    column = pc.struct_field(frame.with_format("arrow")[:]["extra_info"], "temperature")
    return [float(value) for value in pc.drop_null(column).to_pylist()]
