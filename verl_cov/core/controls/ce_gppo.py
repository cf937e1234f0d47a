"""CE-GPPO: a PPO loss that keeps a scaled gradient of the tokens that PPO's clip would silence.

arXiv 2509.20712; formula from its public code (Kwai-Klear/CE-GPPO, ``compute_gppo_loss_general_beta``). Knows nothing
about verl.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from verl_cov.core.losses import Loss, log_ratio

BETAS = (0.75, 1.0)  # of its README for 7B


def ce_gppo(
    *,
    old_log_prob: Float[Tensor, "sequences length"],
    log_prob: Float[Tensor, "sequences length"],
    advantages: Float[Tensor, "sequences length"],
    response_mask: Shaped[Tensor, "sequences length"],
    aggregate: Callable[[Tensor], Tensor],
    betas: tuple[float, float],
    clip: tuple[float, float],
    dual_clip: float,
    rollout_is_weights: Float[Tensor, "sequences length"] | None = None,
) -> tuple[Loss, dict[str, Any]]:
    """Computes the loss of a micro-batch, and verl's metrics of a PPO loss.

    Args:
        aggregate: reduces a [sequences, length] loss matrix to a scalar.
        betas: scales of the gradient where A < 0 and the ratio is below 1 - clip[0] (more: exploitation), and where A >
            0 and it is above 1 + clip[1] (more: exploration).
        dual_clip: c: with A < 0 a token's loss is at most -c A, without a gradient there.

    The trap: the value of a clipped token's loss is beta (1 -+ clip) |A|, and its gradient is not 0. Unlike the public
    code, log-ratios are clamped to +-20.
    """
    difference = log_ratio(log_prob, old_log_prob)
    ratio = difference.exp()
    one = ratio / ratio.detach()  # its value is 1, its gradient that of the log-prob
    below, above = (advantages < 0) & (ratio < 1 - clip[0]), (advantages > 0) & (ratio > 1 + clip[1])
    kept = torch.where(below, betas[0] * (1 - clip[0]) * one, torch.where(above, betas[1] * (1 + clip[1]) * one, ratio))
    losses = -advantages * kept
    losses = torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    valid = response_mask.bool()

    def mean(values: Tensor) -> Tensor:
        return torch.where(valid, values.detach().float(), 0.0).sum() / valid.sum().clamp(min=1)

    return aggregate(losses), {"actor/pg_clipfrac": mean(below | above), "actor/ppo_kl": mean(-difference)}
