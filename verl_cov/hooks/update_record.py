"""What the policy losses of an optimizer step's micro-batches need to know of it, and what they leave for the hook.

:mod:`.mini_batch` makes one record for each optimizer step, :mod:`.policy_losses` fills it, and after the step
:mod:`.mini_batch` adds it up over the ranks. No collectives here: engines call the loss on some ranks only, and not
equally often. On an accelerator nothing here waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.collectives import all_reduce
from verl_cov.core.dead_zone import FLOOR


class Sums(NamedTuple):
    """Sums over the mini-batch, equal on every rank."""

    # The first two only where the dead zone holds every token.
    drift: float = 0.0  # of |log pi - log pi_old| over the selected tokens, in nats
    selected: float = 0.0  # tokens
    changed: float = 0.0  # of |what the control added to the policy loss's gradient by a log-prob|
    gradient: float = 0.0  # of |that gradient without the control|
    seen: float = 0.0  # valid tokens whose present log-prob the losses saw


class UpdateRecord:
    """One rank's record of one optimizer step.

    Args:
        slots: number of this rank's response slots; None to keep no log-probs.
        dead_zone: of the absolute penalty in this step, in nats.
        horizon: slots of the longest response of the mini-batch; None if the loss does not need it.
        measures: False to leave gradients and log-probs out (``cov_metrics=off``).

    Attributes:
        log_probs: [1 + slots], of the present policy, at the number that ``SLOT_FIELD`` gives each token; the first is
            where padding goes.
    """

    def __init__(
        self,
        slots: int | None = None,
        dead_zone: float = FLOOR,
        horizon: int | None = None,
        measures: bool = False,
    ) -> None:
        self.dead_zone, self.horizon, self.measures = dead_zone, horizon, measures
        self._slots = slots
        self.log_probs: Float32[Tensor, " slots+1"] | None = None
        self._sums: dict[str, Tensor] = {}

    def add(self, **sums: Tensor) -> None:
        """Adds to :class:`Sums`, by name."""
        for name, value in sums.items():
            before = self._sums.get(name)
            value = value.detach().double()
            self._sums[name] = value if before is None else before + value

    def add_log_probs(
        self,
        at: Int64[Tensor, "sequences length"],
        log_prob: Float[Tensor, "sequences length"],
        valid: Bool[Tensor, "sequences length"],
    ) -> None:
        """Keeps the present policy's log-probs of a micro-batch; ``at`` is its ``SLOT_FIELD``."""
        if self._slots is None:
            return
        if self.log_probs is None:
            self.log_probs = torch.full((self._slots + 1,), torch.nan, device=log_prob.device)
        # An engine that gives a rank the rows of another one: their numbers are not this rank's, and may be larger.
        at = torch.where(at > self._slots, 0, at)
        self.log_probs[at.flatten()] = log_prob.detach().flatten().float()
        self.add(seen=valid.sum())

    def present_log_probs(self, otherwise: Float32[Tensor, " slots"]) -> Float32[Tensor, " slots"]:
        """Returns the log-probs that the losses saw, of each slot; ``otherwise`` if this rank computed no loss."""
        return otherwise if self.log_probs is None else self.log_probs[1:].to(otherwise.device)

    def sums(self, device: torch.device, group: ProcessGroup | None) -> Sums:
        """Adds up over the ranks, all of which must call it; waits for the device."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        local = torch.stack([self._sums.get(name, zero).to(device) for name in Sums._fields])
        return Sums(*all_reduce(local, group).tolist())
