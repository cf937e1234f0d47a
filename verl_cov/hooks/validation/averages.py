"""Logs the paper's average over the validation sets beside verl's numbers for each of them.

Leans on ``_val_metrics_update(data_sources, sample_uids, reward_extra_infos_dict, ...)`` of verl's V1 ``PPOTrainer``
and legacy ``RayPPOTrainer``, which gets one entry a generation, and on the name ``acc`` that reward functions use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from verl_cov.core.evaluation import averages, by_set
from verl_cov.hooks.asks import wants_metrics
from verl_cov.hooks.reporting import reporting
from verl_cov.hooks.seams import Seam

if TYPE_CHECKING:
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

PREFIX = "val-cov/"

seam = Seam()


def install() -> None:
    seam.when_imported("verl.trainer.ppo.v1.trainer_base", lambda module: _wrap(module.PPOTrainer))
    seam.when_imported("verl.trainer.ppo.ray_trainer", lambda module: _wrap(module.RayPPOTrainer))


def _wrap(trainer: type[PPOTrainer | RayPPOTrainer]) -> None:
    seam.wrap(trainer, "_val_metrics_update", _val_metrics_update)


def _val_metrics_update(
    original: Callable,
    trainer: PPOTrainer | RayPPOTrainer,
    data_sources: Sequence[str],
    sample_uids: Sequence[str],
    reward_extra_infos_dict: dict[str, list[Any]],
    *args: Any,
    **kwargs: Any,
) -> dict[str, Any]:
    metrics = original(trainer, data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs)
    with reporting("the average over the validation sets"):
        if wants_metrics(trainer.config) and "acc" in reward_extra_infos_dict:
            expected = kwargs.get("expected_acc_counts")
            metrics |= named(by_set(data_sources, sample_uids, reward_extra_infos_dict["acc"], expected))
    return metrics


def named(sets: dict[str, tuple[float, int]]) -> dict[str, float]:
    """The averages as verl's metrics."""
    accuracy = averages(sets)
    if accuracy is None:
        return {}
    return {
        PREFIX + "acc/sample_weighted": accuracy.sample_weighted,
        PREFIX + "acc/plain_mean": accuracy.plain_mean,
        PREFIX + "generations": accuracy.generations,
    }
