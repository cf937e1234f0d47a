"""Positive-advantage reweighting: good responses count less, since they take entropy away.

arXiv 2511.05993; its code was not obtainable, so the formula is from secondary sources.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verl_cov.core.controls.tokens import Tokens
from verl_cov.core.controls.weight import Weight, within


@dataclass(frozen=True, kw_only=True)
class PositiveAdvantage(Weight):
    """Weight ``weight`` for tokens with A > 0, 1 for the others.

    Args:
        weight: lambda; 1 is no control, 0.1 is W-REINFORCE, 0 trains on bad responses only.

    Each token's weight is its own. The paper's schedules move lambda during a run; this holds it.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        within("weight", self.weight, 0, 1)

    def __call__(self, tokens: Tokens) -> Float[Tensor, " slots"]:
        return torch.where(tokens.advantage > 0, self.weight, torch.ones_like(tokens.advantage))
