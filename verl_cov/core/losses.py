"""Clip-Cov and KL-Cov as wrappers around a policy loss.

Both take verl's policy-loss arguments and a mask of selected tokens (:mod:`verl_cov.core.selection`), and do not change
the base loss otherwise, so they compose with any loss in verl's registry. Two traps are avoided: a token without
gradient stays in every normaliser (its log-prob is detached, nothing is masked out), and nothing here divides by a
local token count (``agg_loss`` divides by the mini-batch's, so the loss does not depend on how it is split).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Loss = Float[Tensor, ""]
PolicyLoss = Callable[..., tuple[Tensor, dict[str, Any]]]

# verl's vanilla loss clamps the log-ratio to the same range; one outlier would otherwise overflow exp().
LOG_RATIO_RANGE = 20.0


def log_ratio(log_prob: Float[Tensor, "*shape"], old_log_prob: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Computes log pi - log pi_old, clamped to +-20."""
    return torch.clamp(log_prob - old_log_prob, -LOG_RATIO_RANGE, LOG_RATIO_RANGE)


def clip_cov(
    base_loss: PolicyLoss,
    selected: Bool[Tensor, "sequences length"],
    *,
    log_prob: Float[Tensor, "sequences length"],
    **inputs: Any,
) -> tuple[Loss, dict[str, Any]]:
    """Clip-Cov (arXiv 2505.22617, Eq. 12): the selected tokens give no gradient.

    Args:
        base_loss: a verl policy loss, called with all the other arguments.
        log_prob: the only argument with a gradient.
        inputs: the rest of verl's policy-loss arguments.

    The *value* of the loss is that of the base loss: detached tokens still count in it, as in every mean.
    """
    return base_loss(log_prob=torch.where(selected, log_prob.detach(), log_prob), **inputs)


def kl_cov(
    base_loss: PolicyLoss,
    selected: Bool[Tensor, "sequences length"],
    aggregate: Callable[[Tensor], Tensor],
    *,
    coefficient: float,
    estimator: str,
    dead_zone: float = 0.0,
    log_prob: Float[Tensor, "sequences length"],
    old_log_prob: Float[Tensor, "sequences length"],
    rollout_is_weights: Float[Tensor, "sequences length"] | None = None,
    **inputs: Any,
) -> tuple[Loss, dict[str, Any]]:
    """KL-Cov (arXiv 2505.22617, Eq. 14): the selected tokens get a penalty on moving away from the rollout policy.

    Args:
        base_loss, selected, log_prob: as in :func:`clip_cov`.
        aggregate: reduces a [sequences, length] loss matrix to a scalar, as ``loss_agg_mode`` says.
        coefficient: beta.
        estimator, dead_zone: see :func:`kl_penalty`.
        old_log_prob: log-probs of the rollout policy, in nats.
        rollout_is_weights: rollout-correction weights; the penalty is weighted like the loss, as in verl's ``kl_cov``.

    Raises:
        ValueError: an unknown estimator.
    """
    loss, metrics = base_loss(
        log_prob=log_prob, old_log_prob=old_log_prob, rollout_is_weights=rollout_is_weights, **inputs
    )
    penalty = torch.where(selected, kl_penalty(log_ratio(log_prob, old_log_prob), estimator, dead_zone), 0.0)
    if rollout_is_weights is not None:
        penalty = penalty * rollout_is_weights
    return loss + coefficient * aggregate(penalty), metrics


def kl_penalty(log_ratio: Float[Tensor, "*shape"], estimator: str, dead_zone: float = 0.0) -> Float[Tensor, "*shape"]:
    """Computes each token's penalty in nats from x = log pi - log pi_old.

    ``abs`` = abs(x) is the released code's (Listing 1); ``k2`` = x^2 / 2 and ``k3`` = exp(-x) - 1 + x are the usual
    estimators. Raises ValueError for another estimator.

    Args:
        dead_zone: for ``abs``, in nats: no penalty where abs(x) is not above it. 0 is the released code.

    The trap: k2 and k3 are flat where the ratio is 1, and abs is not: its slope is +1 or -1 on either side of x = 0, so
    that without a dead zone rounding decides the sign of a gradient of full size (:mod:`verl_cov.core.dead_zone`).
    """
    if estimator == "abs":
        size = log_ratio.abs()
        return torch.where(size > dead_zone, size, 0.0)
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"unknown KL estimator {estimator!r}: use abs, k2 or k3")


def gradient_change(
    base_loss: Callable[[Tensor], Tensor],
    controlled_loss: Callable[[Tensor], Tensor],
    log_prob: Float[Tensor, "*shape"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Computes how much a control changes the gradient of the policy loss by the log-probs.

    Args:
        base_loss, controlled_loss: the scalar loss without and with the control, as functions of the log-probs.

    Returns:
        The sums over the tokens of |gradient with - gradient without| and of |gradient without|.
    """
    leaf = log_prob.detach().requires_grad_()
    with torch.enable_grad():
        without, with_control = (
            torch.autograd.grad(loss(leaf), leaf, allow_unused=True, materialize_grads=True)[0]
            for loss in (base_loss, controlled_loss)
        )
    return (with_control - without).abs().sum(), without.abs().sum()


def ratio_loss(
    *,
    old_log_prob: Float[Tensor, "sequences length"],
    log_prob: Float[Tensor, "sequences length"],
    advantages: Float[Tensor, "sequences length"],
    response_mask: Shaped[Tensor, "sequences length"],
    aggregate: Callable[[Tensor], Tensor],
    rollout_is_weights: Float[Tensor, "sequences length"] | None = None,
) -> tuple[Loss, dict[str, Any]]:
    """Computes the unclipped surrogate -ratio * A that the paper's KL-Cov starts from (Eq. 14).

    response_mask: bool or 0 and 1 in any dtype. ``aggregate`` as in :func:`kl_cov`.
    """
    difference = log_ratio(log_prob, old_log_prob)
    losses = -advantages * difference.exp()
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    valid = response_mask.bool()
    mean_abs = torch.where(valid, difference.detach().abs(), 0).sum() / valid.sum().clamp(min=1)
    return aggregate(losses), {"actor/ppo_kl": mean_abs}
