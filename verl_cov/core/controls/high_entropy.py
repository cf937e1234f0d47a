"""80/20: only the tokens with the highest entropy give a gradient.

arXiv 2506.01939. No code of the authors was found; TRL's ``get_high_entropy_mask`` is the public form.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from verl_cov.core.controls import rules
from verl_cov.core.controls.tokens import Tokens
from verl_cov.core.controls.weight import Weight, within


@dataclass(frozen=True, kw_only=True)
class HighEntropy(Weight):
    """Weight 1 for the ``share`` of the mini-batch's tokens with the highest entropy, 0 for all others.

    Args:
        share: rho; n = floor(rho N), at least 1, ties cut by the hash.

    The others stay in every mean's denominator, unless ``renormalise``. The entropy is the rollout policy's; the public
    forms take the present policy's, which differs from the second update of a rollout on. The trap: TRL and ms-swift
    take the quantile within each micro-batch, and keep more than the share where entropies are equal.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        within("share", self.share, 0, 1, above=True)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("entropy",)

    def __call__(self, tokens: Tokens) -> Float[Tensor, " slots"]:
        return rules.largest(tokens.entropy, tokens.counted, self.share, tokens).float()
