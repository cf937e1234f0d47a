"""The metrics of a PRIME run; docs/prime.md explains each of them.

No key may contain "min", "max", "sum" or "total" by accident: verl reduces a metric by these. Leans on
``verl.utils.metric.reduce_metrics``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor
from verl.utils.metric import reduce_metrics

from verl_cov.core.prime import prm
from verl_cov.core.prime.advantage import Advantages
from verl_cov.core.prime.groups import Groups
from verl_cov.hooks.prime.accuracy_band import Band


def training_metrics(worker_metrics: Mapping[str, Any]) -> dict[str, float]:
    """Reduces and renames the metrics that verl's worker returns for the PRM's update."""
    names = {"prm_loss": "prm_loss", "grad_norm": "prm_grad_norm", "lr": "prm_lr"}
    return reduce_metrics(
        {f"prime/{name}": worker_metrics[key] for key, name in names.items() if key in worker_metrics}
    )


def ranking_metrics(q: Float[Tensor, " rows"], outcome: Float[Tensor, " rows"], groups: Groups) -> dict[str, float]:
    """Measures how well the PRM's logits ``q`` rank the responses."""
    ranking = prm.ranking(q, outcome, groups)
    metrics: dict[str, float] = {"prime/pairs": ranking.pairs}
    if ranking.right is not None:
        metrics["prime/pairwise_accuracy"] = ranking.right
    if ranking.sign_right is not None:
        metrics["prime/outcome_accuracy"] = ranking.sign_right
    return metrics


def reward_metrics(
    rewards: Float[Tensor, "rows tokens"],
    valid: Bool[Tensor, "rows tokens"],
    outcome: Float[Tensor, " rows"],
    advantages: Advantages,
) -> dict[str, float]:
    """Summarises the outcomes and process rewards of a batch."""
    rows = valid.any(-1)
    values = rewards[valid]
    return {
        "prime/outcome": float(outcome[rows].mean()),
        "prime/process_reward": float(values.mean()),
        "prime/process_reward_abs": float(values.abs().mean()),
        "prime/process_reward_std": float(values.std(correction=0)),
        "prime/response_reward_abs": float(rewards.sum(-1)[rows].abs().mean()),
        "prime/reward_scale": advantages.scale,
        "prime/uncompared_responses": int((rows & ~advantages.compared).sum()),
    }


def filter_metrics(dropped: Mapping[float, int] | None, band: Band | None) -> dict[str, float]:
    """Counts the prompts that the filter dropped, given as {mean accuracy: prompts}; none without a filter."""
    if band is None:
        return {}
    dropped = dropped or {}
    hard = sum(count for accuracy, count in dropped.items() if accuracy < band.low)
    return {"prime/filter_too_hard": hard, "prime/filter_too_easy": int(np.sum(list(dropped.values()))) - hard}
