"""What the implicit PRM learns from, and how well it tells good responses from bad ones. Tensors are [rows]. No verl.

Q(y) = beta sum_t (log pi_phi(y_t) - log pi_ref(y_t)) is its logit that response y is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from verl_cov.core.prime.groups import Groups


def cross_entropy(q: Tensor, outcome: Tensor) -> Tensor:
    """-r_o log sigma(Q) - (1 - r_o) log(1 - sigma(Q)) of each response; the outcome may lie between 0 and 1."""
    # With logits: the plain form is not allowed under autocast, and loses all digits once the PRM is sure.
    return F.binary_cross_entropy_with_logits(q, outcome, reduction="none")


def dpo(q: Tensor, opponent: Tensor, outcome: Tensor) -> Tensor:
    """-log sigma(Q - opponent) of a response that is right in anything, -log sigma(opponent - Q) of the others (the
    released code's detached DPO). opponent: :func:`opponents`, which has no gradient."""
    sign = torch.where(outcome > 0, 1.0, -1.0)
    return -F.logsigmoid(sign * (q - opponent))


def opponents(q: Tensor, outcome: Tensor, groups: Groups) -> Tensor:
    """Mean Q of the responses to the same prompt that did worse, or, for a response with outcome 0, better; 0 if there
    are none (then :func:`dpo` is :func:`cross_entropy`'s, for outcomes of 0 and 1)."""
    worse = _pairs(outcome, groups)
    pairs = torch.where((outcome > 0)[:, None], worse, worse.T).double()
    return ((pairs @ q.double()) / pairs.sum(-1).clamp(min=1)).to(q.dtype)


def _pairs(outcome: Tensor, groups: Groups) -> Tensor:
    """[rows, rows] True where the row's response did better than the column's, to the same prompt."""
    same = (groups.index[:, None] == groups.index[None, :]) & groups.present[:, None]
    return same & (outcome[:, None] > outcome[None, :])


@dataclass(frozen=True)
class Ranking:
    """How the PRM orders responses.

    Args:
        pairs: of responses to one prompt with another outcome. right: the share of them that Q orders as the outcome
            does, an equal Q counted half; None without pairs (the released code's dpo_acc).
        sign_right: share of responses whose Q is above 0 just if their outcome is above 1/2 (dpo_acc_abs); a Q of 0
            counts half. None without responses.
    """

    pairs: int
    right: float | None
    sign_right: float | None


def ranking(q: Tensor, outcome: Tensor, groups: Groups) -> Ranking:
    """Of the responses that are in ``groups``."""
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
