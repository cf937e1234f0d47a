"""Logs the paper's average over the validation sets beside verl's numbers for each of them.

Leans on the name ``acc`` that reward functions use, and through :mod:`.logged` on verl's trainers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from verl_cov.core.evaluation import averages, by_set
from verl_cov.hooks.asks import wants_metrics
from verl_cov.hooks.seams import Seam
from verl_cov.hooks.validation import logged

PREFIX = "val-cov/"

seam = Seam()


def install() -> None:
    logged.add(seam, "the average over the validation sets", _measure)


def _measure(
    config: DictConfig,
    data_sources: Sequence[str],
    sample_uids: Sequence[str],
    infos: dict[str, list[Any]],
    expected: Mapping[tuple[str, str], int] | None,
) -> dict[str, float]:
    if not wants_metrics(config) or "acc" not in infos:
        return {}
    return named(by_set(data_sources, sample_uids, infos["acc"], expected))


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
