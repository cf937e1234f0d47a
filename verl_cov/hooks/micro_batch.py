"""Passes the selection to the policy loss of each micro-batch, and selects within a micro-batch.

verl passes nothing but the padded micro-batch to a policy loss, so the selected tokens are passed in a ContextVar:
:mod:`.mini_batch` sets it, :mod:`.policy_losses` reads it. Leans on ``ActorConfig.clip_ratio``, ``clip_ratio_low`` and
``clip_ratio_high``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from verl_cov.core import losses
from verl_cov.core.identity import token_identity
from verl_cov.core.selection import Control, select_tokens
from verl_cov.hooks.loss_modes import CLIP_COV

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
        barred = _clipped_by_ppo(actor_config, micro_batch).flatten() if cov.loss_mode == CLIP_COV else None
        self.calls += 1

        def identity(at: Tensor) -> Tensor:
            return token_identity(torch.full_like(at, self.calls), at)

        chosen = select_tokens(
            log_prob.flatten(),
            advantages.flatten(),
            valid.flatten(),
            identity,
            control_of(cov, self.step),
            barred=barred,
        )
        self.numbers = chosen.numbers if self.numbers is None else self.numbers + chosen.numbers
        return chosen.mask.view_as(valid)


_selected: ContextVar[Tensor | MicroBatches | None] = ContextVar("verl_cov_selected", default=None)


@contextmanager
def selected_tokens(selection: Tensor | MicroBatches) -> Iterator[None]:
    """Within this block, our policy losses act on the tokens of ``selection``: [sequences, response length] bool of the
    micro-batch whose loss is being computed, or what selects within it."""
    token = _selected.set(selection)
    try:
        yield
    finally:
        _selected.reset(token)


def current_selection() -> Tensor | MicroBatches | None:
    """Returns the current selection, None outside of :func:`selected_tokens`."""
    return _selected.get()


def control_of(cov: CovPolicyLossConfig, step: int) -> Control:
    """Returns the selection rule of ``cov`` for optimizer step ``step``."""
    band = (cov.clip_cov_lb, cov.clip_cov_ub) if cov.loss_mode == CLIP_COV else None
    return Control(ratio=cov.ratio, band=band, seed=cov.cov_seed, step=step)


def _clipped_by_ppo(actor_config: ActorConfig, micro_batch: dict[str, Tensor]) -> Tensor:
    """Marks tokens whose gradient PPO's clip already removes; verl's ``clip_cov`` does not draw them."""
    low, high = (
        actor_config.clip_ratio if bound is None else bound
        for bound in (actor_config.clip_ratio_low, actor_config.clip_ratio_high)
    )
    ratio = losses.log_ratio(micro_batch["log_prob"].detach(), micro_batch["old_log_prob"]).exp()
    advantages = micro_batch["advantages"]
    return -advantages * ratio.clamp(1 - low, 1 + high) > -advantages * ratio
