"""STEER: weighs each token down by the change of entropy that its update is expected to make.

arXiv 2510.10150; numbers and formula from its public code (zz-haooo/STEER, ``compute_token_weights``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verl_cov.core.controls import rules
from verl_cov.core.controls.tokens import Tokens
from verl_cov.core.controls.weight import Weight, within


@dataclass(frozen=True, kw_only=True)
class Steer(Weight):
    """Weights between ``least`` and ``most`` by |Omega|, Omega = r A (1 - pi) (log pi + H), r = pi / pi_old.

    Args:
        map: ``linear``: from ``most`` at the smallest |Omega| of the mini-batch to ``least`` at the largest, their mean
            where all are equal; ``exponential``: least^(|Omega| / largest), with ``most`` 1.
        least, most: weights; the scripts take 0.8 and 1.2 (linear), 0.8 and 1 (exponential).
        floor: of the largest |Omega|, for ``exponential``: small changes are weighed down less.

    The trap: the public code takes smallest and largest within each micro-batch of a GPU, where one outlier sets the
    weights of its neighbours. Tokens that raise entropy are damped like those that lower it.
    """

    map: str = "linear"
    least: float = 0.8
    most: float = 1.2
    floor: float = 0.02

    def __post_init__(self) -> None:
        if self.map not in ("linear", "exponential"):
            raise ValueError(f"map={self.map!r} is unknown: use linear or exponential")
        within("least", self.least, 0, above=self.map == "exponential")
        within("most", self.most, self.least)
        within("floor", self.floor, 0, above=True)
        if self.map == "exponential" and self.most != 1:
            raise ValueError(f"most={self.most!r} must be 1 with map=exponential, whose weights begin there")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("entropy",)

    def __call__(self, tokens: Tokens) -> Float[Tensor, " slots"]:
        log_prob = tokens.log_prob
        ratio = (log_prob - tokens.old_log_prob).exp()
        size = (ratio * tokens.advantage * (1 - log_prob.exp()) * (log_prob + tokens.entropy)).abs()
        size = torch.where(size.isfinite(), size, 0.0)  # as released: a weight of `most`
        largest = rules.maximum(size, tokens.counted, tokens)
        if self.map == "exponential":
            rate = -math.log(self.least) / largest.clamp(min=self.floor)
            return (-rate * size).exp().clamp(self.least, 1.0)
        smallest = rules.minimum(size, tokens.counted, tokens)
        weight = self.most - (size - smallest) / (largest - smallest) * (self.most - self.least)
        return torch.where(largest > smallest, weight, (self.least + self.most) / 2)
