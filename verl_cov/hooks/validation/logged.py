"""Adds numbers to what a validation of either of verl's trainers logs.

Leans on ``_val_metrics_update(data_sources, sample_uids, reward_extra_infos_dict, ...)`` of verl's V1 ``PPOTrainer``
and legacy ``RayPPOTrainer``, which gets one entry a generation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from verl_cov.hooks.reporting import reporting
from verl_cov.hooks.seams import Seam

if TYPE_CHECKING:
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

# (configuration, set and prompt of each generation, {name: value of each}, {(set, prompt): responses requested} or
# None, which verl 0.9.0 and the legacy trainer do not count) -> metrics.
Measure = Callable[
    [DictConfig, Sequence[str], Sequence[str], dict[str, list[Any]], Mapping[tuple[str, str], int] | None],
    dict[str, float],
]


def add(seam: Seam, what: str, measure: Measure) -> None:
    """Logs what ``measure`` returns beside verl's numbers of each validation. what: for the warning if it fails."""
    update = functools.partial(_val_metrics_update, what, measure)

    def wrap(trainer: type[PPOTrainer | RayPPOTrainer]) -> None:
        seam.wrap(trainer, "_val_metrics_update", update)

    seam.when_imported("verl.trainer.ppo.v1.trainer_base", lambda module: wrap(module.PPOTrainer))
    seam.when_imported("verl.trainer.ppo.ray_trainer", lambda module: wrap(module.RayPPOTrainer))


def _val_metrics_update(
    what: str,
    measure: Measure,
    original: Callable,
    trainer: PPOTrainer | RayPPOTrainer,
    data_sources: Sequence[str],
    sample_uids: Sequence[str],
    reward_extra_infos_dict: dict[str, list[Any]],
    *args: Any,
    **kwargs: Any,
) -> dict[str, Any]:
    metrics = original(trainer, data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs)
    with reporting(what):
        expected = kwargs.get("expected_acc_counts")
        metrics |= measure(trainer.config, data_sources, sample_uids, reward_extra_infos_dict, expected)
    return metrics
