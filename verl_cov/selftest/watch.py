"""What verl's engine showed the policy loss of each micro-batch, and on which tokens the loss then acted.

Read off the loss's own gradient: a token on which a control acts has another one than in the same loss without it.
Leans on ``POLICY_LOSS_REGISTRY``, ``get_policy_loss_fn`` and ``agg_loss`` of ``verl.trainer.ppo.core_algos``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verl_cov.hooks.micro_batch import MicroBatches, in_loss

Tokens = set[tuple[int, int]]  # (row, position in its response)


@dataclass
class Seen:
    """What the losses of one update on this rank saw and did.

    Args:
        rows: rows that were seen whole and are this rank's.
        foreign: sequences that this rank did not have, or not in this length.
        within: losses that were told to select within their micro-batch.
        given: tokens that the hook told the losses to act on.
        acted: tokens they acted on.
        hidden: tokens whose gradient is 0 in any case: what happened there cannot be seen.
    """

    rows: set[int] = field(default_factory=set)
    foreign: int = 0
    within: int = 0
    given: Tokens = field(default_factory=set)
    acted: Tokens = field(default_factory=set)
    hidden: Tokens = field(default_factory=set)


def rows_by_content(share: list[dict[str, Any]]) -> dict[bytes, dict[str, Any]]:
    """The real rows of a rank by the bytes of their old log-probs; of rows alike (4 and 5) the last."""
    return {row["old_log_prob"].tobytes(): row for row in share if row["index"] >= 0}


@contextmanager
def watched(loss_mode: str, share: list[dict[str, Any]]) -> Iterator[Seen]:
    """Within this block, looks on at every call of the policy loss ``loss_mode`` on a rank that has the rows ``share``.

    The loss that is registered as the block begins is called as it is, and its result is passed on.
    """
    from verl.trainer.ppo import core_algos

    known = rows_by_content(share)
    original, seen = core_algos.POLICY_LOSS_REGISTRY[loss_mode], Seen()

    def look_on(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        names = ("old_log_prob", "log_prob", "advantages", "response_mask", "loss_agg_mode", "config")
        _look(core_algos, loss_mode, known, dict(zip(names, args, strict=False)) | kwargs, result[0], seen)
        return result

    core_algos.POLICY_LOSS_REGISTRY[loss_mode] = look_on
    try:
        yield seen
    finally:
        core_algos.POLICY_LOSS_REGISTRY[loss_mode] = original


def _look(
    core_algos: Any, loss_mode: str, known: dict[bytes, Any], inputs: dict[str, Any], loss: Tensor, seen: Seen
) -> None:
    mask = inputs["response_mask"].bool()
    if loss_mode.startswith("verl_cov."):
        acted, hidden = _by_gradient(core_algos, loss_mode, inputs, loss)
    else:  # a control by weight acts through the advantages
        acted, hidden = torch.zeros_like(mask), torch.zeros_like(mask)
    told = in_loss()
    selection = None if told is None else told.selection
    seen.within += isinstance(selection, MicroBatches)
    old, advantages = inputs["old_log_prob"].float().cpu().numpy(), inputs["advantages"].float().cpu().numpy()
    for at in range(len(mask)):
        row = known.get(old[at][old[at] != 0].tobytes())
        if row is None:  # a padding row is a copy of a real one, whose mask is empty
            seen.foreign += bool(mask[at].any())
            continue
        if not mask[at].any():
            continue
        index, length = row["index"], len(row["mask"])
        seen.rows.add(index)
        changed = acted[at, :length].cpu().numpy() | (advantages[at, :length] != row["advantage"])
        seen.acted |= _tokens(index, changed & (row["mask"] == 1))
        seen.hidden |= _tokens(index, hidden[at, :length].cpu().numpy() & (row["mask"] == 1))
        if isinstance(selection, Tensor) and selection.shape == mask.shape:
            seen.given |= _tokens(index, selection[at, :length].cpu().numpy())


def _tokens(row: int, marks: np.ndarray) -> Tokens:
    return {(row, int(position)) for position in np.flatnonzero(marks)}


def _by_gradient(core_algos: Any, loss_mode: str, inputs: dict[str, Any], loss: Tensor) -> tuple[Tensor, Tensor]:
    """Where the gradient of ``loss`` is not that of the same loss without a control, and where both are 0."""
    config, log_prob = inputs["config"], inputs["log_prob"]
    if loss_mode.endswith("clip_cov"):
        plain = core_algos.get_policy_loss_fn("vanilla")(**inputs)[0]
    else:
        plain = core_algos.agg_loss(
            loss_mat=-inputs["advantages"] * (log_prob - inputs["old_log_prob"]).clamp(-20, 20).exp(),
            loss_mask=inputs["response_mask"],
            loss_agg_mode=inputs["loss_agg_mode"],
            **(getattr(config, "global_batch_info", None) or {}),
        )
    found, without = (
        torch.autograd.grad(each, log_prob, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
        for each in (loss, plain)
    )
    return ~torch.isclose(found, without, rtol=1e-4, atol=0), (found == 0) & (without == 0)
