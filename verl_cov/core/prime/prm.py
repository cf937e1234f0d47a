"""The losses of the implicit PRM, and how well it tells right responses from wrong ones. Knows nothing about verl.

Q(y) = beta sum_t (log pi_phi(y_t) - log pi_ref(y_t)) is the PRM's logit that response y is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from verl_cov.core.prime.groups import Groups


def cross_entropy(q: Float[Tensor, " rows"], outcome: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Computes -r_o log sigma(Q) - (1 - r_o) log(1 - sigma(Q)) for outcomes r_o in [0, 1]."""
    # From logits: the plain form is not allowed under autocast, and loses all digits once the PRM is sure.
    return F.binary_cross_entropy_with_logits(q, outcome, reduction="none")


def dpo(
    q: Float[Tensor, " rows"], opponent: Float[Tensor, " rows"], outcome: Float[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Computes -log sigma(Q - opponent) for outcomes above 0 and -log sigma(opponent - Q) for the others.

    This is the released code's detached DPO. opponent: from :func:`opponents`, without a gradient.
    """
    sign = torch.where(outcome > 0, 1.0, -1.0)
    return -F.logsigmoid(sign * (q - opponent))


def opponents(q: Float[Tensor, " rows"], outcome: Float[Tensor, " rows"], groups: Groups) -> Float[Tensor, " rows"]:
    """Averages Q over the responses to the same prompt that did worse, or better for a response with outcome 0.

    0 if there are none; for outcomes of 0 and 1 :func:`dpo` then equals :func:`cross_entropy`.
    """
    worse = _pairs(outcome, groups)
    pairs = torch.where((outcome > 0)[:, None], worse, worse.T).double()
    return ((pairs @ q.double()) / pairs.sum(-1).clamp(min=1)).to(q.dtype)


def _pairs(outcome: Float[Tensor, " rows"], groups: Groups) -> Bool[Tensor, "rows rows"]:
    """True where the row's response did better than the column's response to the same prompt."""
    same = (groups.index[:, None] == groups.index[None, :]) & groups.present[:, None]
    return same & (outcome[:, None] > outcome[None, :])


@dataclass(frozen=True)
class Ranking:
    """How well the PRM ranks responses.

    Args:
        pairs: number of pairs of responses to one prompt with different outcomes.
        right: share of the pairs that Q orders as the outcome does; an equal Q counts half. None without pairs (the
            released code's dpo_acc).
        sign_right: share of the responses whose Q is positive exactly if their outcome is above 1/2; a Q of 0 counts
            half. None without responses (the released code's dpo_acc_abs).
    """

    pairs: int
    right: float | None
    sign_right: float | None


def ranking(q: Float[Tensor, " rows"], outcome: Float[Tensor, " rows"], groups: Groups) -> Ranking:
    """Compares Q with the outcome over the responses that are in a group."""
    better = _pairs(outcome, groups)
    pairs = int(better.sum())
    difference = torch.sign(q[:, None] - q[None, :])[better]
    present = groups.present
    sign = torch.sign(q) * torch.where(outcome > 0.5, 1.0, -1.0)
    return Ranking(
        pairs,
        float((difference.double() + 1).mean() / 2) if pairs else None,
        float((sign.double()[present] + 1).mean() / 2) if present.any() else None,
    )
