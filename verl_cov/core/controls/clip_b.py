"""Clip_B: drops the tokens of bad responses whose update would lower entropy most.

arXiv 2602.03392; numbers and formula from its public code (Trinity-RFT, ``ClipBAdvantageFn``).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from verl_cov.core.controls import rules
from verl_cov.core.controls.tokens import Tokens
from verl_cov.core.controls.weight import Weight, within

NO_SPREAD = 1e-12


@dataclass(frozen=True, kw_only=True)
class ClipB(Weight):
    """Weight 0 for tokens with A < 0 and S more than ``mu`` standard deviations below its mean, S = pi (H + log pi).

    Args:
        mu: population standard deviations, over the mini-batch.
        renormalise: the public form takes the dropped tokens out of the response mask, and so out of the denominator;
            dividing by the mean weight is that under ``loss_agg_mode=token-mean``, but for an entropy bonus or a
            reference KL, which keep all tokens here.

    The trap: the public form takes mean and deviation over the whole rollout batch, of the rollout engine's log-probs
    and the trainer's entropies, and keeps the set for all updates; this takes the mini-batch, and one policy for both.
    """

    mu: float = 2.5
    renormalise: bool = True

    def __post_init__(self) -> None:
        within("mu", self.mu, 0)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("entropy",)

    def __call__(self, tokens: Tokens) -> Float[Tensor, " slots"]:
        score = tokens.log_prob.exp() * (tokens.entropy + tokens.log_prob)
        mean, deviation = rules.standard_deviation(score, tokens.counted, tokens)
        low = (score.double() - mean < -self.mu * deviation) & (deviation >= NO_SPREAD)
        return 1 - ((tokens.advantage < 0) & low).float()
