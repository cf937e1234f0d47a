"""The mini-batch hook: selects over the whole optimizer mini-batch, before it is cut into micro-batches, and measures.

Leans on ``verl.workers.engine_workers.TrainingWorker.train_batch(data)``: in verl 0.8 to 0.9.1 the one place, for every
engine and trainer, that sees a rank's mini-batch. ``self.loss_fn`` is called there with ``model_output=,
data=<micro-batch>, dp_group=``; fields added to ``data`` survive the cut. The collectives run here, never inside the
loss, which on some engines runs on some ranks only. For ``cov_log_prob=current`` also on ``engine.eval_mode`` and
``engine.infer_batch``, and on the five settings of a micro-batch that ``train_batch`` fills in.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov import advice, metrics
from verl_cov.collectives import all_reduce
from verl_cov.covariance import Covariances
from verl_cov.host import batch, token_dump
from verl_cov.host.batch import FIELD, Tokens
from verl_cov.host.imports import when_imported
from verl_cov.host.policy_losses import MicroBatches, control_of, selected_tokens
from verl_cov.selection import NUMBERS, Selected, Totals, count, largest_means, select, totals_of

# Mini-batches of one rollout step share its number; a step never has a million of them.
MINI_BATCHES_PER_STEP = 1 << 20


def install() -> None:
    when_imported("verl.workers.engine_workers", _wrap)


def _wrap(engine_workers: Any) -> None:
    worker = engine_workers.TrainingWorker
    original = worker.train_batch

    @functools.wraps(original)  # keeps the dispatch attributes that verl's @register put on the method
    def train_batch(self, data):
        from verl.utils import tensordict_utils as tu

        cov = batch.asked_for(self.loss_fn) if "advantages" in data else None
        if cov is None:
            return original(self, data)
        if cov.controls:
            refuse_engine(self.engine.engine_config, cov)
        group = batch.data_parallel_group(self.engine)
        step = _optimizer_step(self, data, group)
        mini_batch = look(self, data, cov, step, group)
        loss_fn = self.loss_fn
        if cov.controls:
            self.loss_fn = functools.partial(_loss_with_selection, loss_fn, mini_batch.micro_batches)
        try:
            output = original(self, data)
        finally:
            self.loss_fn = loss_fn
        # Only now are the numbers read back: verl has waited for the device already, for the gradient's norm.
        found = _report(self, cov, mini_batch, step, group)
        if output is not None:  # None on the ranks of a model-parallel group that return nothing
            tu.get(output, "metrics").update(found)
        return output

    worker.train_batch = train_batch


@dataclass(frozen=True)
class MiniBatch:
    """What was found in a mini-batch before training on it.

    Args:
        log_prob: [slots], what the covariances were taken with.
        covariances: of the whole mini-batch; None if neither a selection over it nor metrics need them.
        chosen: the selection over the whole mini-batch; None if there is none.
        micro_batches: with ``cov_scope=micro_batch`` what selects, within each micro-batch, while training.
        ladder: [shares] of :data:`verl_cov.metrics.LADDER`, with ``cov_metrics=full``.
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


def look(worker: Any, data: Any, cov: Any, step: int, group: ProcessGroup | None) -> MiniBatch:
    """Select among a rank's mini-batch ``data`` (a TensorDict, jagged or dense), store the mask in it as ``FIELD``, and
    compute what the metrics need.

    Every rank of ``group`` (data-parallel) must call it with its own rows and the same ``cov`` and ``step``.
    """
    tokens = Tokens.of(data)
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
            log_prob = tokens.of_model_output(_log_probs(worker, data))
            seconds = time.perf_counter() - started
            covariances = measure(log_prob)
            by_old, chosen = chosen, choose(covariances)
            overlap = all_reduce((by_old.mask & chosen.mask).sum(), group)
        tokens.write(chosen.mask)
    ladder = largest_means(covariances.values, metrics.LADDER, group) if cov.cov_metrics == "full" else None
    return MiniBatch(tokens, log_prob, covariances, chosen, micro_batches, ladder, overlap, seconds)


def refuse_engine(engine_config: Any, cov: Any) -> None:
    """Raise ValueError for engine settings under which a selection over the mini-batch is impossible, and say why."""
    if cov.cov_scope != "mini_batch":
        return
    torchtitan = getattr(engine_config, "strategy", None) == "torchtitan"
    if torchtitan and getattr(engine_config, "context_parallel_size", 1) > 1:
        raise ValueError(
            "verl-cov: context_parallel_size > 1 cannot be combined with a selection over the mini-batch: verl's "
            "torchtitan engine counts the context-parallel ranks as data-parallel ones, so that tokens would be "
            "missing or counted twice. Set it to 1, or use cov_scope=micro_batch"
        )
    # Megatron's scheduler deals rows out after the selection, but from a mini-batch that every rank has in full, so
    # every rank has selected the same. Log-probs it collects on one rank only.
    if cov.log_prob == "current" and getattr(engine_config, "dynamic_context_parallel", False):
        raise ValueError(
            "verl-cov: cov_log_prob=current needs the log-probs on every rank, and with dynamic_context_parallel=True "
            "only one of them has them: use cov_log_prob=old"
        )
    if cov.log_prob == "current" and getattr(engine_config, "pipeline_model_parallel_size", 1) > 1:
        raise ValueError(
            "verl-cov: cov_log_prob=current needs the log-probs on every rank, and with "
            "pipeline_model_parallel_size > 1 only the last stage has them: use cov_log_prob=old"
        )


def _log_probs(worker: Any, data: Any) -> Tensor:
    """The present policy's log-probs of the whole sequences, jagged, by one forward in the training's micro-batches."""
    from verl.utils import tensordict_utils as tu

    data = data.copy()  # shallow: the engine writes settings into it
    settings, model = worker.engine_config, worker.model_config
    defaults = dict(
        use_remove_padding=model.get("use_remove_padding", False),
        use_dynamic_bsz=settings.use_dynamic_bsz,
        max_token_len_per_gpu=settings.max_token_len_per_gpu,
        micro_batch_size_per_gpu=settings.micro_batch_size_per_gpu,
        use_fused_kernels=settings.use_fused_kernels,
    )
    tu.assign_non_tensor(data, **{key: value for key, value in defaults.items() if key not in data})
    tu.assign_non_tensor(data, calculate_entropy=False)
    keep_loaded = tu.get(data, key="disable_auto_offload", default=False)
    with worker.engine.eval_mode(disable_auto_offload=keep_loaded):
        output = worker.engine.infer_batch(data, loss_function=None)
    return output["model_output"]["log_probs"]


def _report(worker: Any, cov: Any, found: MiniBatch, step: int, group: ProcessGroup | None) -> dict[str, float]:
    """The metrics of this optimizer step, the same on every rank; logs what the user should know."""
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
        token_dump.write(worker, cov, found, rollout_step, group)
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


def _optimizer_step(worker: Any, data: Any, group: ProcessGroup | None) -> int:
    """A counter of optimizer steps that a resumed run continues: (rollout step, mini-batch within it).

    The rollout step travels with the batch; the mini-batches are counted here. In asynchronous trainers rows of several
    rollout steps meet in a mini-batch: the latest counts, over all ranks.
    """
    steps = data.get("global_steps", None)
    steps = getattr(steps, "data", steps) if not hasattr(steps, "tolist") else steps.tolist()
    steps = steps if isinstance(steps, list) else [steps]
    # None: a rollout server that was not told of its weights' version yet, or another rollout than vLLM's.
    steps = [step for step in steps if step is not None] or [_updates_before(worker.engine)]
    # The legacy trainer's rows (dense) say which weights sampled them, the first of which are version 0; V1's the step.
    behind = 0 if data["response_mask"].is_nested else 1
    latest = torch.tensor(max((int(step) for step in steps), default=0) + behind, device=batch.device())
    if group is not None:
        dist.all_reduce(latest, op=dist.ReduceOp.MAX, group=group)
    seen, mini_batch = getattr(worker, "_verl_cov_step", (None, 0))
    # Never back: where rollouts of several steps wait in a queue, the next mini-batch may be all of older ones.
    rollout_step = max(int(latest), seen or 0)
    mini_batch = mini_batch + 1 if seen == rollout_step else 0
    worker._verl_cov_step = (rollout_step, mini_batch)
    return rollout_step * MINI_BATCHES_PER_STEP + mini_batch


def _updates_before(engine: Any) -> int:
    """How often the learning-rate scheduler stepped, which is once a rollout; it is in the checkpoint."""
    scheduler = getattr(engine, "lr_scheduler", None)
    scheduler = getattr(scheduler, "schedulers", [scheduler])[0]  # torchtitan's holds one for each optimizer
    for name in ("last_epoch", "num_steps"):  # torch's; Megatron's and Automodel's
        if hasattr(scheduler, name):
            return int(getattr(scheduler, name))
    return 0


def _loss_with_selection(loss_fn: Any, micro_batches: MicroBatches | None, *args: Any, **kwargs: Any) -> Any:
    """Call verl's loss on one micro-batch, with its slice of the selection or with ``micro_batches`` to select."""
    data = kwargs.get("data")
    # Distillation calls the loss once more for the student's logits, without a micro-batch.
    if data is None or ("response_mask" if micro_batches is not None else FIELD) not in data:
        return loss_fn(*args, **kwargs)
    if data.get("batch_num_tokens", None) is not None and data["batch_num_tokens"] == 0:
        # Every token of the mini-batch is masked: verl would divide zero by zero and poison the optimizer.
        from verl.utils import tensordict_utils as tu

        tu.assign_non_tensor(data, batch_num_tokens=1)
    if micro_batches is not None:
        with selected_tokens(micro_batches):
            return loss_fn(*args, **kwargs)
    mask = data.select(FIELD).to_padded_tensor()[FIELD]
    with selected_tokens(mask.bool()):
        return loss_fn(*args, **kwargs)
