"""The hook around one optimizer step: selects over the whole mini-batch before it is split, and computes metrics.

:class:`MiniBatchHook` is the part that both kinds of actor worker share; it knows verl's worker only through an
:class:`~verl_cov.hooks.actor_worker.ActorWorkerAdapter`: :mod:`.train_batch` for verl's engines, :mod:`.legacy_actor`
for the legacy actor. Its three methods are what a verl with one of ``patches/`` calls
(``verl/utils/mini_batch_hook.py``); elsewhere :mod:`.train_batch` calls them from a wrapper. The collectives run here,
never inside the loss, which on some engines runs on some ranks only.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core import dead_zone, metrics
from verl_cov.core.collectives import all_reduce
from verl_cov.core.covariance import Covariances
from verl_cov.core.metric_table import LADDER
from verl_cov.core.selection import NUMBERS, Selected, Totals, count, largest_means, select, totals_of
from verl_cov.hooks import batch, token_dump
from verl_cov.hooks.batch import SELECTED_FIELD, SLOT_FIELD, RankTokens
from verl_cov.hooks.micro_batch import MicroBatches, selected_tokens
from verl_cov.hooks.reporting import agreed, reporting
from verl_cov.hooks.update_record import UpdateRecord
from verl_cov.hooks.weights import Weighing
from verl_cov.hooks.worker_state import state_of

if TYPE_CHECKING:
    from tensordict import TensorDict

    from verl_cov.hooks.actor_worker import ActorWorkerAdapter
    from verl_cov.hooks.config import CovPolicyLossConfig

ADVICE = "the advice after an update"
# Mini-batches of one rollout step share its number; a step never has a million of them.
MINI_BATCHES_PER_STEP = 1 << 20
UPDATE = "the measurement of an update"


@dataclass(frozen=True)
class MiniBatch:
    """What is known about a mini-batch before the update.

    Args:
        log_prob: [slots], what the covariances were taken with.
        covariances: of the whole mini-batch; None if neither the selection nor the metrics need them.
        selected: the selection over the whole mini-batch; None if there is none.
        micro_batches: with ``cov_scope=micro_batch`` what selects, within each micro-batch, during the update.
        ladder: [shares] of :data:`verl_cov.core.metric_table.LADDER`, with ``cov_metrics=full``.
        reselect: with ``cov_log_prob=old``: selects by other log-probs, [slots].
        overlap, seconds: with ``cov_log_prob=current``: how many of the selected tokens ``old`` would have selected,
            and the forward's time.
    """

    tokens: RankTokens
    log_prob: Tensor
    covariances: Covariances | None = None
    selected: Selected | None = None
    micro_batches: MicroBatches | None = None
    ladder: Tensor | None = None
    overlap: Tensor | None = None
    seconds: float = 0.0
    reselect: Callable[[Tensor], Selected] | None = None


class MiniBatchHook:
    """One optimizer step on one rank. Every data-parallel rank must create it, before the mini-batch is split."""

    def __init__(self, adapter: ActorWorkerAdapter, cov: CovPolicyLossConfig) -> None:
        self._adapter, self._cov = adapter, cov
        self._step = adapter.step()
        self._mini_batch: MiniBatch | None = None
        self._weighing: Weighing | None = None
        tokens = _read(adapter, cov)
        if cov.controls:
            assert tokens is not None  # a run with a control has read them, or has raised
            self._mini_batch = select_and_measure(adapter, cov, self._step, tokens)
            self._update = start_record(adapter, cov, self._mini_batch)
        elif tokens is not None and cov.cov_metrics != "off":
            with reporting(UPDATE):
                self._mini_batch = select_and_measure(adapter, cov, self._step, tokens)
        if cov.weights:
            assert tokens is not None
            log_prob = self._mini_batch.log_prob if cov.controls and self._mini_batch is not None else None
            self._weighing = Weighing(adapter, cov, self._step, tokens, log_prob)

    def micro_batch(self, micro_batch: TensorDict) -> AbstractContextManager:
        """Returns the context for the loss of a micro-batch, in which the policy loss knows the selected tokens."""
        if not self._cov.acts or not self._adapter.has_policy_loss(micro_batch):
            return nullcontext()
        self._adapter.prepare(micro_batch)
        if self._weighing is not None:
            self._weighing.micro_batch(micro_batch)
        if not self._cov.controls:
            return nullcontext()
        assert self._mini_batch is not None
        padded = functools.partial(self._adapter.padded, micro_batch)
        if self._mini_batch.micro_batches is not None:
            return selected_tokens(self._mini_batch.micro_batches, self._update)
        slots = None if self._mini_batch.reselect is None else padded(SLOT_FIELD)
        return selected_tokens(padded(SELECTED_FIELD).bool(), self._update, slots)

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of this step, equal on every rank. All ranks must call it, after the step."""
        values: dict[str, float] = {}
        if self._weighing is not None:
            with reporting(UPDATE):
                values |= self._weighing.finish()
        if self._mini_batch is None:
            return values
        # Only now are the numbers read back: verl has waited for the device already, for the gradient's norm.
        rollout_step, number = divmod(self._step, MINI_BATCHES_PER_STEP)
        with reporting(UPDATE):
            values |= update_metrics(self._adapter, self._cov, self._mini_batch)
        if self._cov.controls:
            values |= self._effect(self._mini_batch, rollout_step)
        if self._cov.cov_dump_every and number == 0 and rollout_step % self._cov.cov_dump_every == 0:
            dump_tokens(self._adapter, self._cov, self._mini_batch, rollout_step)
        return values

    def _effect(self, mini_batch: MiniBatch, rollout_step: int) -> dict[str, float]:
        """Returns what the losses have shown of the control, and passes the measured dead zone on."""
        state, group, update = state_of(self._adapter.worker), self._adapter.group, self._update
        sums = update.sums(batch.device(), group)
        if update.dead_zone == dead_zone.ALL:
            state.dead_zone = dead_zone.from_noise(sums.drift / sums.selected) if sums.selected else dead_zone.FLOOR
        values: dict[str, float] = {}
        if self._cov.control.has_dead_zone:
            values["kl_dead_zone"] = state.dead_zone if update.dead_zone == dead_zone.ALL else update.dead_zone
        if update.measures:
            values["changed_gradient_frac"] = sums.changed / sums.gradient if sums.gradient else float(sums.changed > 0)
        shared, selected = None, mini_batch.selected
        if mini_batch.reselect is not None and selected is not None:
            with reporting("the overlap with the present policy's selection"):
                # Not where the losses of this rank's rows ran on another rank.
                if sums.seen == selected.totals.tokens + selected.totals.non_finite:
                    by_current = mini_batch.reselect(update.present_log_probs(mini_batch.log_prob))
                    shared = int(all_reduce((by_current.mask & selected.mask).sum(), group))
                    values["overlap_current"] = shared / max(selected.totals.selected, 1)
        with reporting(ADVICE):
            if "changed_gradient_frac" in values:
                state.advice.on_effect(self._cov, values["changed_gradient_frac"], rollout_step)
            if shared is not None and selected is not None:
                state.advice.on_overlap(shared, selected.totals.selected)
        return metrics.prefixed(values)


def _read(adapter: ActorWorkerAdapter, cov: CovPolicyLossConfig) -> RankTokens | None:
    """Reads this rank's rows; a run that only measures goes on without what cannot be read, on whatever rank."""
    if cov.acts:
        return RankTokens.read(adapter.data)
    tokens = None
    with reporting(UPDATE):
        tokens = RankTokens.read(adapter.data)
    return agreed(tokens, adapter.group)


def start_record(adapter: ActorWorkerAdapter, cov: CovPolicyLossConfig, mini_batch: MiniBatch) -> UpdateRecord:
    """Starts the record of this optimizer step; every rank must call it."""
    state, lengths, horizon = state_of(adapter.worker), mini_batch.tokens.lengths, None
    if cov.controls and adapter.divides_by_width():
        longest = torch.cat([lengths, lengths.new_zeros(1)]).max()
        if adapter.group is not None:
            dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=adapter.group)
        horizon = int(longest)
    # The first update on log-probs that this very policy gave: all it has moved is rounding.
    zone = cov.dead_zone(dead_zone.ALL if state.log_probs_are_new else state.dead_zone)
    state.log_probs_are_new = False
    slots = mini_batch.tokens.valid.numel() if mini_batch.reselect is not None else None
    return UpdateRecord(slots, zone, horizon, measures=cov.controls and cov.cov_metrics != "off")


def select_and_measure(
    adapter: ActorWorkerAdapter, cov: CovPolicyLossConfig, step: int, tokens: RankTokens
) -> MiniBatch:
    """Selects tokens of a mini-batch, stores the mask in it as ``SELECTED_FIELD``, and computes what metrics need.

    Every rank of ``adapter.group`` must call it with its own rows and the same ``cov`` and ``step``.
    """
    group = adapter.group
    log_prob, selected, overlap, seconds = tokens.old_log_prob, None, None, 0.0
    micro_batches = MicroBatches(step) if cov.controls and cov.cov_scope == "micro_batch" else None
    if micro_batches is not None and cov.cov_metrics == "off":
        return MiniBatch(tokens, log_prob, micro_batches=micro_batches)
    measure = functools.partial(
        Covariances.compute,
        advantage=tokens.advantage,
        valid=tokens.valid,
        group=group,
        update_kinds=cov.cov_metrics != "off",
    )
    covariances, reselect = measure(log_prob), None
    if cov.controls and micro_batches is None:
        identity, control = tokens.identity(group), cov.control.rule(cov.cov_seed, step)
        choose = functools.partial(select, advantage=tokens.advantage, identity=identity, control=control, group=group)
        selected = choose(covariances)
        if cov.log_prob == "current":
            started = time.perf_counter()
            log_prob = adapter.log_probs(tokens)
            seconds = time.perf_counter() - started
            covariances = measure(log_prob)
            selected_by_old, selected = selected, choose(covariances)
            overlap = all_reduce((selected_by_old.mask & selected.mask).sum(), group)
        elif cov.cov_metrics != "off":
            tokens.write_slots()

            def reselect(log_prob: Tensor) -> Selected:
                return choose(measure(log_prob))

        tokens.write_selection(selected.mask)
    ladder = None
    if cov.cov_metrics == "full":
        with reporting("the ladder of the covariances"):
            ladder = largest_means(covariances.values, LADDER, group)
    return MiniBatch(tokens, log_prob, covariances, selected, micro_batches, ladder, overlap, seconds, reselect)


def update_metrics(adapter: ActorWorkerAdapter, cov: CovPolicyLossConfig, mini_batch: MiniBatch) -> dict[str, float]:
    """Returns the metrics of this optimizer step, equal on every rank; also logs advice."""
    group, selected = adapter.group, mini_batch.selected
    totals = _totals(mini_batch, group)
    if selected is not None:
        with reporting(ADVICE):  # its collective comes first, by numbers equal on every rank
            state_of(adapter.worker).advice.after_update(cov, selected, mini_batch.log_prob, mini_batch.tokens, group)
    values = metrics.update_metrics(
        totals,
        cov.cov_metrics,
        ladder=None if mini_batch.ladder is None else mini_batch.ladder.tolist(),
        selected=cov.controls,
        # Each micro-batch has a threshold of its own.
        threshold=selected is not None and cov.control.penalises,
    )
    if mini_batch.overlap is not None:
        values["overlap_old"] = int(mini_batch.overlap) / max(totals.selected, 1)
        values["forward_seconds"] = mini_batch.seconds
    return metrics.prefixed(values)


def dump_tokens(adapter: ActorWorkerAdapter, cov: CovPolicyLossConfig, mini_batch: MiniBatch, step: int) -> None:
    """Appends the tokens with the highest covariance of all ranks to the file; every rank must call it."""
    tokens = None
    with reporting(token_dump.DUMP):
        assert mini_batch.covariances is not None  # the configuration refuses a dump without metrics
        highest = token_dump.highest_tokens(
            mini_batch.tokens,
            mini_batch.log_prob,
            mini_batch.covariances,
            None if mini_batch.selected is None else mini_batch.selected.mask,
            cov.cov_dump_tokens,
        )
        tokens = token_dump.with_text(highest, adapter.data, adapter.tokenizer, step)
    tokens = agreed(tokens, adapter.group)
    if tokens is not None:
        with reporting(token_dump.DUMP):
            token_dump.write(tokens, cov, adapter.group)


def _totals(mini_batch: MiniBatch, group: ProcessGroup | None) -> Totals:
    if mini_batch.selected is not None:
        return mini_batch.selected.totals
    whole = None
    if mini_batch.covariances is not None:
        whole = totals_of(count(mini_batch.covariances, group).tolist())
    if mini_batch.micro_batches is None:
        assert whole is not None
        return whole
    numbers = mini_batch.micro_batches.numbers
    numbers = torch.zeros(NUMBERS, dtype=torch.float64, device=batch.device()) if numbers is None else numbers
    within = totals_of(all_reduce(numbers.clone(), group).tolist())
    # The statistics of the covariances are the mini-batch's; what was selected is summed over the micro-batches.
    chosen = ("candidates", "selected", "negative", "tied", "selected_covariance_sum")
    return within if whole is None else whole._replace(**{name: getattr(within, name) for name in chosen})
