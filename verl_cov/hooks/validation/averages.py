"""Logs the paper's average over the validation sets beside verl's numbers for each of them.

Leans on ``_val_metrics_update(data_sources, sample_uids, reward_extra_infos_dict, ...)`` of verl's V1 ``PPOTrainer``
and legacy ``RayPPOTrainer``, which gets one entry a generation, and on the name ``acc`` that reward functions use.
"""

from __future__ import annotations

import functools
from typing import Any

from verl_cov.core.evaluation import averages, by_set
from verl_cov.hooks import asked
from verl_cov.hooks.imports import when_imported

PREFIX = "val-cov/"


def install() -> None:
    when_imported("verl.trainer.ppo.v1.trainer_base", lambda module: _wrap(module.PPOTrainer))
    when_imported("verl.trainer.ppo.ray_trainer", lambda module: _wrap(module.RayPPOTrainer))


def _wrap(trainer: Any) -> None:
    original = trainer._val_metrics_update

    @functools.wraps(original)
    def _val_metrics_update(self, data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs):
        found = original(self, data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs)
        if asked.wants_metrics(self.config) and "acc" in reward_extra_infos_dict:
            expected = kwargs.get("expected_acc_counts")
            sets = by_set(data_sources, sample_uids, reward_extra_infos_dict["acc"], expected)
            found |= named(sets)
        return found

    trainer._val_metrics_update = _val_metrics_update


def named(sets: dict[str, tuple[float, int]]) -> dict[str, float]:
    """The averages as verl's metrics."""
    found = averages(sets)
    if found is None:
        return {}
    return {
        PREFIX + "acc/sample_weighted": found.sample_weighted,
        PREFIX + "acc/plain_mean": found.plain_mean,
        PREFIX + "generations": found.generations,
    }
