"""Round one optimizer step: selects over the whole mini-batch, before it is cut into micro-batches, and measures.

:class:`MiniBatchHook` is what both kinds of actor worker have in common; it knows verl's worker only through a
:class:`Seam`: :mod:`.train_batch` for verl's engines, :mod:`.update_policy` for the legacy actor. Its three methods are
what a verl with one of ``patches/`` calls (``verl/utils/mini_batch_hook.py``); elsewhere :mod:`.train_batch` calls them
from a wrapper. The collectives run here, never inside the loss, which on some engines runs on some ranks only.
"""

from __future__ import annotations

import functools
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core import advice, metrics
from verl_cov.core.collectives import all_reduce
from verl_cov.core.covariance import Covariances
from verl_cov.core.selection import NUMBERS, Selected, Totals, count, largest_means, select, totals_of
from verl_cov.hooks import batch, token_dump
from verl_cov.hooks.batch import Tokens
from verl_cov.hooks.policy_losses import MicroBatches, control_of, selected_tokens

# Mini-batches of one rollout step share its number; a step never has a million of them.
MINI_BATCHES_PER_STEP = 1 << 20


class Seam(Protocol):
    """What the hook asks of a worker that trains an actor, for one mini-batch.

    Args:
        worker: verl's; what must outlive the mini-batch is kept in its attributes.
        data: this rank's rows, as :class:`~verl_cov.hooks.batch.Tokens` reads them.
        group: data-parallel, None if it has one rank.
        tokenizer: for the dump of tokens, or None.
    """

    worker: Any
    data: Any
    group: ProcessGroup | None
    tokenizer: Any

    def step(self) -> int:
        """A counter of optimizer steps that a resumed run continues, equal on every rank."""
        ...

    def log_probs(self, tokens: Tokens) -> Tensor:
        """[slots] float32 log-probs of the present policy, at the price of a forward (``cov_log_prob=current``)."""
        ...

    def has_policy_loss(self, micro_batch: Any) -> bool:
        """True for a micro-batch on which the policy loss is computed; what its loss needs is then put right in it."""
        ...

    def mask_of(self, micro_batch: Any) -> Tensor:
        """[sequences, response length] bool: the field ``batch.FIELD`` of a micro-batch, padded as its loss has it."""
        ...


@dataclass(frozen=True)
class MiniBatch:
    """What was found in a mini-batch before training on it.

    Args:
        log_prob: [slots], what the covariances were taken with.
        covariances: of the whole mini-batch; None if neither a selection over it nor metrics need them.
        chosen: the selection over the whole mini-batch; None if there is none.
        micro_batches: with ``cov_scope=micro_batch`` what selects, within each micro-batch, while training.
        ladder: [shares] of :data:`verl_cov.core.metrics.LADDER`, with ``cov_metrics=full``.
        overlap, seconds: with ``cov_log_prob=current``: how many of the selected tokens ``old`` would have selected,
            and the forward's time.
    """

    tokens: Tokens
    log_prob: Tensor
    covariances: Covariances | None = None
    chosen: Selected | None = None
    micro_batches: MicroBatches | None = None
    ladder: Tensor | None = None
    overlap: Tensor | None = None
    seconds: float = 0.0


class MiniBatchHook:
    """One optimizer step on one rank. Made before the mini-batch is cut up; every data-parallel rank must make it."""

    def __init__(self, seam: Seam, cov: Any) -> None:
        """cov: the validated :class:`~verl_cov.hooks.config.CovPolicyLossConfig`."""
        self._seam, self._cov = seam, cov
        self._step = seam.step()
        self._found = look(seam, cov, self._step)

    def micro_batch(self, micro_batch: Any) -> AbstractContextManager:
        """To be entered round the loss of each micro-batch: the policy loss then knows what was selected of it."""
        if not self._cov.controls or not self._seam.has_policy_loss(micro_batch):
            return nullcontext()
        if self._found.micro_batches is not None:
            return selected_tokens(self._found.micro_batches)
        return selected_tokens(self._seam.mask_of(micro_batch))

    def metrics(self) -> dict[str, float]:
        """``actor/cov/...`` of this step, the same on every rank; all ranks must ask (collectives), after the step."""
        # Only now are the numbers read back: verl has waited for the device already, for the gradient's norm.
        return report(self._seam, self._cov, self._found, self._step)


def look(seam: Seam, cov: Any, step: int) -> MiniBatch:
    """Select among a rank's mini-batch ``seam.data`` (jagged or dense), store the mask in it as ``batch.FIELD``, and
    compute what the metrics need.

    Every rank of ``seam.group`` must call it with its own rows and the same ``cov`` and ``step``.
    """
    group, tokens = seam.group, Tokens.of(seam.data)
    log_prob, chosen, overlap, seconds = tokens.old_log_prob, None, None, 0.0
    micro_batches = MicroBatches(step) if cov.controls and cov.cov_scope == "micro_batch" else None
    if micro_batches is not None and cov.cov_metrics == "off":
        return MiniBatch(tokens, log_prob, micro_batches=micro_batches)
    measure = functools.partial(
        Covariances.of, advantage=tokens.advantage, valid=tokens.valid, group=group, kinds=cov.cov_metrics != "off"
    )
    covariances = measure(log_prob)
    if cov.controls and micro_batches is None:
        identity, control = tokens.identity(group), control_of(cov, step)
        choose = functools.partial(select, advantage=tokens.advantage, identity=identity, control=control, group=group)
        chosen = choose(covariances)
        if cov.log_prob == "current":
            started = time.perf_counter()
            log_prob = seam.log_probs(tokens)
            seconds = time.perf_counter() - started
            covariances = measure(log_prob)
            by_old, chosen = chosen, choose(covariances)
            overlap = all_reduce((by_old.mask & chosen.mask).sum(), group)
        tokens.write(chosen.mask)
    ladder = largest_means(covariances.values, metrics.LADDER, group) if cov.cov_metrics == "full" else None
    return MiniBatch(tokens, log_prob, covariances, chosen, micro_batches, ladder, overlap, seconds)


def report(seam: Seam, cov: Any, found: MiniBatch, step: int) -> dict[str, float]:
    """The metrics of this optimizer step, the same on every rank; logs what the user should know."""
    worker, group = seam.worker, seam.group
    totals = _totals(found, group)
    if found.chosen is not None:
        if not hasattr(worker, "_verl_cov_advice"):
            worker._verl_cov_advice = advice.Advice(dist.get_rank() if dist.is_initialized() else 0)
        worker._verl_cov_advice.after_update(cov, found.chosen, found.log_prob, found.tokens, group)
    values = metrics.of_update(
        totals,
        cov.cov_metrics,
        ladder=None if found.ladder is None else found.ladder.tolist(),
        selected=cov.controls,
        # Each micro-batch has a threshold of its own.
        threshold=found.chosen is not None and cov.loss_mode == "verl_cov.kl_cov",
    )
    if found.overlap is not None:
        values["overlap_old"] = int(found.overlap) / max(totals.selected, 1)
        values["forward_seconds"] = found.seconds
    rollout_step, mini_batch = divmod(step, MINI_BATCHES_PER_STEP)
    if cov.cov_dump_every and mini_batch == 0 and rollout_step % cov.cov_dump_every == 0:
        token_dump.write(seam.tokenizer, cov, found, rollout_step, group)
    return metrics.prefixed(values)


def _totals(found: MiniBatch, group: ProcessGroup | None) -> Totals:
    if found.chosen is not None:
        return found.chosen.totals
    whole = None
    if found.covariances is not None:
        whole = totals_of(count(found.covariances, group).tolist())
    if found.micro_batches is None:
        assert whole is not None
        return whole
    numbers = found.micro_batches.numbers
    numbers = torch.zeros(NUMBERS, dtype=torch.float64, device=batch.device()) if numbers is None else numbers
    within = totals_of(all_reduce(numbers.clone(), group).tolist())
    # How the covariances are distributed is the mini-batch's; what was chosen from them the micro-batches' own.
    chosen = ("candidates", "selected", "negative", "tied", "selected_covariance_sum")
    return within if whole is None else whole._replace(**{name: getattr(within, name) for name in chosen})
