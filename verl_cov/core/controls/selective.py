"""The controls that act within the loss on tokens that a rule selects by their covariance: Clip-Cov and KL-Cov.

As rows of one form: which tokens (a :class:`~verl_cov.core.selection.Control`), and what happens to them (a wrapper of
:mod:`verl_cov.core.losses`). Knows nothing about verl.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Bool
from torch import Tensor

from verl_cov.core import losses
from verl_cov.core.losses import Loss, PolicyLoss
from verl_cov.core.selection import Control


@dataclass(frozen=True)
class ClipCov:
    """Draws tokens from a band of covariance and detaches their gradient (arXiv 2505.22617, Eq. 11 and 12)."""

    ratio: float
    low: float
    high: float
    title: ClassVar[str] = "Clip-Cov"
    ratio_field: ClassVar[str] = "clip_cov_ratio"
    base_loss: ClassVar[str] = "vanilla"
    penalises: ClassVar[bool] = False  # and so draws, within a micro-batch not from tokens that PPO's clip silences
    has_dead_zone: ClassVar[bool] = False

    def rule(self, seed: int, step: int) -> Control:
        return Control(self.ratio, (self.low, self.high), seed, step)

    def act(
        self,
        base_loss: PolicyLoss,
        selected: Bool[Tensor, "sequences length"],
        aggregate: Callable[[Tensor], Tensor],
        dead_zone: float,
        **inputs: Any,
    ) -> tuple[Loss, dict[str, Any]]:
        return losses.clip_cov(base_loss, selected, **inputs)

    def describe(self) -> str:
        return f"clip_cov_ratio={self.ratio:g}, band=({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class KlCov:
    """Takes the tokens with the largest covariance and penalises their moving away (Eq. 13 and 14)."""

    ratio: float
    coefficient: float
    estimator: str
    title: ClassVar[str] = "KL-Cov"
    ratio_field: ClassVar[str] = "kl_cov_ratio"
    base_loss: ClassVar[str] = "ratio"
    penalises: ClassVar[bool] = True

    @property
    def has_dead_zone(self) -> bool:
        return self.estimator == "abs"

    def rule(self, seed: int, step: int) -> Control:
        return Control(self.ratio, None, seed, step)

    def act(
        self,
        base_loss: PolicyLoss,
        selected: Bool[Tensor, "sequences length"],
        aggregate: Callable[[Tensor], Tensor],
        dead_zone: float,
        **inputs: Any,
    ) -> tuple[Loss, dict[str, Any]]:
        return losses.kl_cov(
            base_loss,
            selected,
            aggregate,
            coefficient=self.coefficient,
            estimator=self.estimator,
            dead_zone=dead_zone,
            **inputs,
        )

    def describe(self) -> str:
        return f"kl_cov_ratio={self.ratio:g}, ppo_kl_coef={self.coefficient:g}, cov_kl={self.estimator}"
