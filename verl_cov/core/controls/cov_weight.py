"""A soft Clip-Cov, ours: no token's covariance counts for more than a quantile of the mini-batch's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verl_cov.core.controls import rules
from verl_cov.core.controls.tokens import Tokens
from verl_cov.core.controls.weight import Weight, within
from verl_cov.core.covariance import Covariances


@dataclass(frozen=True, kw_only=True)
class CovWeight(Weight):
    """Weight c / cov for tokens whose covariance (arXiv 2505.22617, Eq. 10) is above c, 1 for the others.

    Args:
        share: c is the largest covariance but for this share of the tokens, n = floor(share N), at least 1, whose
            covariances are larger. Where c is not above 0 the control rests.

    The weight falls with the covariance and is continuous, so that no token is in or out by a hair, as with Clip-Cov.
    """

    share: float = 0.002

    def __post_init__(self) -> None:
        within("share", self.share, 0, 1, above=True)

    def __call__(self, tokens: Tokens) -> Float[Tensor, " slots"]:
        found = Covariances.compute(tokens.log_prob, tokens.advantage, tokens.counted, tokens.group)
        cut = rules.upper_quantile(found.values, tokens.counted, self.share, tokens, beyond=1)
        return torch.where((found.values > cut) & (cut > 0), cut / found.values, 1.0)
