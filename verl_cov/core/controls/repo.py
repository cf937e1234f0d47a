"""REPO-R: adds to each advantage a multiple of it that grows with the token's surprise.

arXiv 2603.11682; formula from a public implementation (SkyRL, ``repo_r_rescale_advantages``).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from verl_cov.core.controls.tokens import Tokens
from verl_cov.core.controls.weight import Weight, within

LEAST_LOG_PROB = -20.0


@dataclass(frozen=True, kw_only=True)
class Repo(Weight):
    """Weight (1 - sign(A) zeta log pi), at least 0, with log pi of at least -20.

    Args:
        zeta: above 0, rare tokens of good responses gain and those of bad ones lose less, which raises entropy; below
            0, the reverse.

    Each token's weight is its own, so the public form is exact too. The public controller of zeta, which doubles and
    halves it round a target entropy, is not here.
    """

    zeta: float = 1e-3

    def __post_init__(self) -> None:
        within("zeta", self.zeta, -1, 1)

    def __call__(self, tokens: Tokens) -> Float[Tensor, " slots"]:
        surprise = tokens.log_prob.clamp(min=LEAST_LOG_PROB)
        return (1 - tokens.advantage.sign() * self.zeta * surprise).clamp(min=0.0)
