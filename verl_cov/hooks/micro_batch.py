"""Passes the selection to the policy loss of each micro-batch, and selects within a micro-batch.

verl passes nothing but the padded micro-batch to a policy loss, so the selected tokens are passed in a ContextVar:
:mod:`.mini_batch` sets it, :mod:`.policy_losses` reads it. Leans on ``ActorConfig.clip_ratio``, ``clip_ratio_low`` and
``clip_ratio_high``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from verl_cov.core import losses
from verl_cov.core.identity import token_identity
from verl_cov.core.selection import select_tokens
from verl_cov.hooks.update_record import UpdateRecord

if TYPE_CHECKING:
    from verl.workers.config import ActorConfig

    from verl_cov.hooks.config import CovPolicyLossConfig


class MicroBatches:
    """Selects within each micro-batch, as verl's own ``clip_cov`` and ``kl_cov`` do, and sums up what it selected.

    ``numbers`` are the sums of :attr:`verl_cov.core.selection.Selected.numbers` over the micro-batches so far, None
    before the first one. No collectives: engines call the loss on some ranks only, and not equally often.
    """

    def __init__(self, step: int = 0) -> None:
        self.step = step
        self.calls = 0
        self.numbers: Tensor | None = None

    def select(self, actor_config: ActorConfig, cov: CovPolicyLossConfig, micro_batch: dict[str, Tensor]) -> Tensor:
        """Selects in a micro-batch, given as verl's policy-loss arguments; returns [sequences, length] bool."""
        advantages, valid = micro_batch["advantages"], micro_batch["response_mask"].bool()
        log_prob = micro_batch["log_prob" if cov.log_prob == "current" else "old_log_prob"].detach()
        barred = None if cov.control.penalises else _clipped_by_ppo(actor_config, micro_batch).flatten()
        self.calls += 1

        def identity(at: Tensor) -> Tensor:
            return token_identity(torch.full_like(at, self.calls), at)

        chosen = select_tokens(
            log_prob.flatten(),
            advantages.flatten(),
            valid.flatten(),
            identity,
            cov.control.rule(cov.cov_seed, self.step),
            barred=barred,
        )
        self.numbers = chosen.numbers if self.numbers is None else self.numbers + chosen.numbers
        return chosen.mask.view_as(valid)


@dataclass(frozen=True)
class InLoss:
    """What the policy loss of the micro-batch at hand is told.

    Args:
        selection: [sequences, response length] bool: the tokens to act on; or what selects within the micro-batch.
        update: the record of the optimizer step.
        slots: [sequences, response length] int64, the micro-batch's ``SLOT_FIELD``; None if nobody asks for it.
    """

    selection: Tensor | MicroBatches
    update: UpdateRecord
    slots: Tensor | None = None


_in_loss: ContextVar[InLoss | None] = ContextVar("verl_cov_in_loss", default=None)


@contextmanager
def selected_tokens(
    selection: Tensor | MicroBatches, update: UpdateRecord | None = None, slots: Tensor | None = None
) -> Iterator[None]:
    """Within this block, our policy losses act on the tokens of ``selection``, see :class:`InLoss`."""
    token = _in_loss.set(InLoss(selection, UpdateRecord() if update is None else update, slots))
    try:
        yield
    finally:
        _in_loss.reset(token)


def in_loss() -> InLoss | None:
    """Returns what the policy loss is told, None outside of :func:`selected_tokens`."""
    return _in_loss.get()


def clip_range(actor_config: ActorConfig) -> tuple[float, float]:
    """Returns how far PPO's clip lets the ratio go below 1 and above it."""
    both, low, high = actor_config.clip_ratio, actor_config.clip_ratio_low, actor_config.clip_ratio_high
    return both if low is None else low, both if high is None else high


def _clipped_by_ppo(actor_config: ActorConfig, micro_batch: dict[str, Tensor]) -> Tensor:
    """Marks tokens whose gradient PPO's clip already removes; verl's ``clip_cov`` does not draw them."""
    low, high = clip_range(actor_config)
    ratio = losses.log_ratio(micro_batch["log_prob"].detach(), micro_batch["old_log_prob"]).exp()
    advantages = micro_batch["advantages"]
    return -advantages * ratio.clamp(1 - low, 1 + high) > -advantages * ratio
