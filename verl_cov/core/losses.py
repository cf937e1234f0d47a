"""Clip-Cov and KL-Cov as wrappers round a policy loss.

Both take verl's policy-loss arguments and a mask of selected tokens (:mod:`verl_cov.core.selection`), and leave the
base loss alone otherwise, so they compose with any loss that verl knows. Traps kept out: a removed token stays in every
normaliser (its log-probability is detached, nothing is masked out), and nothing here divides by a local token count
(``agg_loss`` divides by the mini-batch's, so the loss does not depend on how it is split).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PolicyLoss = Callable[..., tuple[Tensor, dict[str, Any]]]

# verl's vanilla loss clamps the log-ratio to the same range; one outlier would otherwise overflow exp().
LOG_RATIO_RANGE = 20.0


def log_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """log pi - log pi_old, clamped to +-20."""
    return torch.clamp(log_prob - old_log_prob, -LOG_RATIO_RANGE, LOG_RATIO_RANGE)


def clip_cov(base_loss: PolicyLoss, selected: Tensor, *, log_prob: Tensor, **inputs: Any) -> tuple[Tensor, dict]:
    """Clip-Cov (arXiv 2505.22617, Eq. 12): the selected tokens give no gradient.

    Args:
        base_loss: a verl policy loss, called with every argument given here.
        selected: [sequences, response length] bool.
        log_prob: [sequences, response length], the only argument with a gradient.
        inputs: the rest of verl's policy-loss arguments.

    The loss *value* is the base loss's: detached tokens still count in it, as they do in every mean.
    """
    return base_loss(log_prob=torch.where(selected, log_prob.detach(), log_prob), **inputs)


def kl_cov(
    base_loss: PolicyLoss,
    selected: Tensor,
    aggregate: Callable[[Tensor], Tensor],
    *,
    coefficient: float,
    estimator: str,
    log_prob: Tensor,
    old_log_prob: Tensor,
    rollout_is_weights: Tensor | None = None,
    **inputs: Any,
) -> tuple[Tensor, dict]:
    """KL-Cov (arXiv 2505.22617, Eq. 14): the selected tokens pay a penalty for leaving the rollout policy.

    Args:
        base_loss, selected, log_prob: as in :func:`clip_cov`.
        aggregate: turns a [sequences, response length] loss matrix into the scalar that ``loss_agg_mode`` asks for.
        coefficient: beta.
        estimator: ``abs``, ``k2`` or ``k3``, see :func:`kl_penalty`.
        old_log_prob: [sequences, response length] log-probabilities of the rollout policy.
        rollout_is_weights: rollout-correction weights; the penalty is weighted like the loss, as in verl's ``kl_cov``.
    """
    loss, metrics = base_loss(
        log_prob=log_prob, old_log_prob=old_log_prob, rollout_is_weights=rollout_is_weights, **inputs
    )
    penalty = torch.where(selected, kl_penalty(log_ratio(log_prob, old_log_prob), estimator), 0.0)
    if rollout_is_weights is not None:
        penalty = penalty * rollout_is_weights
    return loss + coefficient * aggregate(penalty), metrics


def kl_penalty(log_ratio: Tensor, estimator: str) -> Tensor:
    """Per-token penalty in nats from log pi - log pi_old.

    ``abs`` = abs(x) is the released code's (Listing 1), ``k2`` = x^2 / 2 and ``k3`` = exp(-x) - 1 + x are the usual
    estimators. All three are flat where the ratio is 1: with one update per rollout, KL-Cov does nothing.
    """
    if estimator == "abs":
        return log_ratio.abs()
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"unknown KL estimator {estimator!r}: use abs, k2 or k3")


def ratio_loss(
    *,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    aggregate: Callable[[Tensor], Tensor],
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """The unclipped surrogate -ratio * A that the paper's KL-Cov starts from (Eq. 14).

    All tensors are [sequences, response length]; ``aggregate`` as in :func:`kl_cov`.
    """
    difference = log_ratio(log_prob, old_log_prob)
    losses = -advantages * difference.exp()
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    valid = response_mask.bool()
    mean_abs = torch.where(valid, difference.detach().abs(), 0).sum() / valid.sum().clamp(min=1)
    return aggregate(losses), {"actor/ppo_kl": mean_abs}
