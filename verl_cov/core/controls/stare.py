"""STARE: raises the weight of the most surprising tokens of good responses while entropy is below a target.

arXiv 2606.19236; numbers and formula from its public code (hp-luo/STARE, ``compute_stare_token_weights``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verl_cov.core.controls import rules
from verl_cov.core.controls.tokens import Tokens
from verl_cov.core.controls.weight import Weight, within


@dataclass(frozen=True, kw_only=True)
class Stare(Weight):
    """Of the tokens with A > 0 the ``share`` with the largest -log pi weigh ``promote``, of those with A < 0 ``damp``.

    Args:
        share: P, of the tokens of each sign; n = ceil(P n), at least 1.
        promote, damp: W and M; damp 1 is the paper's variant O1, 0.9 its C2.
        below_entropy: H*, in nats: the control rests unless the rollout's mean entropy is below it; None: always on.

    The trap: the public code takes the share within each micro-batch of a GPU, with a floor of one token a sign; this
    takes it over the mini-batch. Its gate's entropy is averaged by ``loss_agg_mode``, ours over each response, then
    over responses.
    """

    share: float = 0.1
    promote: float = 1.1
    damp: float = 1.0
    below_entropy: float | None = 0.3

    def __post_init__(self) -> None:
        within("share", self.share, 0, 1, above=True)
        within("promote", self.promote, 0)
        within("damp", self.damp, 0)
        if self.below_entropy is not None:
            within("below_entropy", self.below_entropy, 0, above=True)

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.below_entropy is None else ("rollout_entropy",)

    def __call__(self, tokens: Tokens) -> Float[Tensor, " slots"]:
        weight = torch.ones_like(tokens.advantage)
        if self.below_entropy is not None and not tokens.rollout_entropy < self.below_entropy:
            return weight
        for value, sign in ((self.promote, tokens.advantage > 0), (self.damp, tokens.advantage < 0)):
            if value != 1:
                marked = rules.largest(-tokens.log_prob, tokens.counted & sign, self.share, tokens, up=True)
                weight = torch.where(marked, value, weight)
        return weight
