"""A control that multiplies the advantage of each token by a weight, and the check of its numbers.

verl's losses are homogeneous in the advantage: a token's loss times w >= 0 is the loss with w A. So a control is a
function from :class:`~verl_cov.core.controls.tokens.Tokens` to weights, and no loss needs to know of it. Knows nothing
about verl.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from verl_cov.core.collectives import all_reduce
from verl_cov.core.controls import rules
from verl_cov.core.controls.tokens import Tokens

# What is counted of each control: tokens, their weights, those whose weight is not 1, |A|, and w |A|.
NUMBERS = 5


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Base class of the controls by weight: its fields are the control's numbers, checked when it is made.

    Args:
        renormalise: divide the weights by their mean over the mini-batch. With weights of 0 and 1 and
            ``loss_agg_mode=token-mean`` that is the loss over the tokens left.

    A subclass is called with :class:`Tokens` and returns a weight of at least 0 for each slot; what it gives for slots
    that are not ``tokens.counted`` is ignored. ``needs`` names the inputs that a batch may lack: ``entropy``,
    ``rollout_entropy``.
    """

    renormalise: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def __call__(self, tokens: Tokens) -> Float[Tensor, " slots"]:
        raise NotImplementedError

    def describe(self) -> str:
        """Describes the numbers: ``share=0.2, ...``."""
        numbers = {each.name: getattr(self, each.name) for each in fields(self)}
        return ", ".join(f"{name}={_text(value)}" for name, value in numbers.items() if value is not False)


def within(name: str, value: float, low: float, high: float = math.inf, above: bool = False) -> None:
    """Raises ValueError unless ``value`` is a finite number from ``low`` to ``high``; ``above``: not ``low`` itself."""
    if not math.isfinite(value) or not low <= value <= high or (above and value == low):
        bounds = f"{'above' if above else 'of at least'} {low:g}" + (
            f" and at most {high:g}" if high < math.inf else ""
        )
        raise ValueError(f"{name}={value!r} must be a number {bounds}")


def weigh(
    controls: Mapping[str, Weight], tokens: Tokens
) -> tuple[Float32[Tensor, " slots"], Float64[Tensor, "controls 5"]]:
    """Multiplies the weights of several controls, each taken from the unweighted tokens, so in any order.

    A weight that is negative counts as 0, one that is not finite as 1.

    Returns:
        This rank's weights, 1 where no token is; and :data:`NUMBERS` of each control, summed over all ranks.
    """
    counted, size = tokens.counted, tokens.advantage.abs().double()
    product, numbers = torch.ones_like(tokens.advantage), []
    for control in controls.values():
        weight = control(tokens).float()
        weight = torch.where(counted & weight.isfinite(), weight.clamp(min=0.0), 1.0)
        if control.renormalise:
            mean = rules.mean(weight, counted, tokens)
            weight = torch.where(counted & (mean > 0), weight / mean, weight).float()
        product = product * weight
        each = [torch.ones_like(size), weight.double(), (weight != 1).double(), size, weight * size]
        numbers.append(torch.stack([torch.where(counted, x, 0.0).sum() for x in each]))
    return product, all_reduce(torch.stack(numbers), tokens.group)


def weight_metrics(name: str, numbers: list[float]) -> dict[str, float]:
    """Computes the metrics of one control from its :data:`NUMBERS`, as {key without the prefix: value}."""
    tokens, weights, weighted, size, weighted_size = numbers
    return {
        f"{name}/weight": weights / max(tokens, 1.0),
        f"{name}/weighted_frac": weighted / max(tokens, 1.0),
        f"{name}/advantage_frac": weighted_size / size if size else 1.0,
    }


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
