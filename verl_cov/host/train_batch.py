"""The mini-batch hook: selects over the whole optimizer mini-batch, before it is cut into micro-batches.

Leans on ``verl.workers.engine_workers.TrainingWorker.train_batch(data)``: in verl 0.8 to 0.9.1 the one place, for every
engine and trainer, that sees a rank's mini-batch. ``self.loss_fn`` is ``partial(ppo_loss, config=ActorConfig)`` there
and is called with ``model_output=, data=<micro-batch>, dp_group=``; fields added to ``data`` survive the cut. The
collectives of the selection run here, never inside the loss, which on some engines runs on some ranks only. For
``cov_log_prob=current`` also on ``engine.eval_mode`` and ``engine.infer_batch``, and on the five settings of a
micro-batch that ``train_batch`` fills in.
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
from verl_cov.host import batch
from verl_cov.host.batch import FIELD, Tokens
from verl_cov.host.imports import when_imported
from verl_cov.host.policy_losses import MicroBatches, control_of, selected_tokens
from verl_cov.selection import Selected, select_tokens, totals_of

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

        cov = _control_config(self.loss_fn, data)
        if cov is None:
            return original(self, data)
        refuse_engine(self.engine.engine_config, cov)
        group = self.engine.get_data_parallel_group()
        step = _optimizer_step(self, data, group)
        if cov.cov_scope == "micro_batch":
            selection: MicroBatches | MiniBatch = MicroBatches(step)
        else:
            selection = select_in_mini_batch(self, data, cov, step, group)
        loss_fn = self.loss_fn
        self.loss_fn = functools.partial(_loss_with_selection, loss_fn, selection)
        try:
            output = original(self, data)
        finally:
            self.loss_fn = loss_fn
        # Only now are the numbers read back: verl has waited for the device already, for the gradient's norm.
        found = _report(self, cov, selection, group)
        if output is not None:  # None on the ranks of a model-parallel group that return nothing
            tu.get(output, "metrics").update(found)
        return output

    worker.train_batch = train_batch


@dataclass(frozen=True)
class MiniBatch:
    """A selection over a whole mini-batch, and what it was made from.

    ``log_prob`` ([slots]) are the log-probs the covariance was taken with. With ``cov_log_prob=current`` only:
    ``overlap`` is how many of the selected tokens ``old`` would have selected, ``seconds`` the forward's time.
    """

    tokens: Tokens
    log_prob: Tensor
    chosen: Selected
    overlap: Tensor | None = None
    seconds: float = 0.0


def select_in_mini_batch(worker: Any, data: Any, cov: Any, step: int, group: ProcessGroup | None) -> MiniBatch:
    """Select among a rank's mini-batch ``data`` (a TensorDict, jagged or dense) and store the mask in it as ``FIELD``.

    Every rank of ``group`` (data-parallel) must call it with its own rows and the same ``cov`` and ``step``.
    """
    tokens = Tokens.of(data)
    identity, control = tokens.identity(group), control_of(cov, step)
    select = functools.partial(select_tokens, identity=identity, control=control, group=group)
    chosen = select(tokens.old_log_prob, tokens.advantage, tokens.valid)
    result = MiniBatch(tokens, tokens.old_log_prob, chosen)
    if cov.log_prob == "current":
        started = time.perf_counter()
        current = tokens.of_model_output(_log_probs(worker, data))
        seconds = time.perf_counter() - started
        by_old, chosen = chosen, select(current, tokens.advantage, tokens.valid)
        overlap = (by_old.mask & chosen.mask).sum()
        if group is not None:
            dist.all_reduce(overlap, group=group)
        result = MiniBatch(tokens, current, chosen, overlap, seconds)
    tokens.write(chosen.mask)
    return result


def refuse_engine(engine_config: Any, cov: Any) -> None:
    """Raise ValueError for engine settings under which a selection over the mini-batch is impossible, and say why."""
    if cov.cov_scope != "mini_batch":
        return
    if getattr(engine_config, "dynamic_context_parallel", False):
        raise ValueError(
            "verl-cov: dynamic_context_parallel=True cannot be combined with a selection over the mini-batch: "
            "Megatron's scheduler deals the rows out to other ranks after the selection was made. Set it to False, or "
            "use cov_scope=micro_batch"
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


def _report(worker: Any, cov: Any, selection: MicroBatches | MiniBatch, group: ProcessGroup | None) -> dict[str, float]:
    """The metrics of this optimizer step, the same on every rank; logs what the user should know."""
    if isinstance(selection, MicroBatches):
        numbers = selection.numbers
        numbers = torch.zeros(9, dtype=torch.float64, device=batch.device()) if numbers is None else numbers
        if group is not None:
            dist.all_reduce(numbers, group=group)
        return metrics.of_totals(totals_of(numbers.tolist()))
    chosen = selection.chosen
    if not hasattr(worker, "_verl_cov_advice"):
        worker._verl_cov_advice = advice.Advice(dist.get_rank() if dist.is_initialized() else 0)
    worker._verl_cov_advice.after_update(cov, chosen, selection.log_prob, selection.tokens, group)
    found = metrics.of_totals(chosen.totals)
    if selection.overlap is not None:
        found[metrics.PREFIX + "overlap_old"] = int(selection.overlap) / max(chosen.totals.selected, 1)
        found[metrics.PREFIX + "forward_seconds"] = selection.seconds
    return found


def _optimizer_step(worker: Any, data: Any, group: ProcessGroup | None) -> int:
    """A counter of optimizer steps that a resumed run continues: (rollout step, mini-batch within it).

    The rollout step travels with the batch; the mini-batches are counted here. In asynchronous trainers rows of several
    rollout steps meet in a mini-batch: the latest counts, over all ranks.
    """
    steps = data.get("global_steps", None)
    steps = getattr(steps, "data", steps) if not hasattr(steps, "tolist") else steps.tolist()
    if steps is None:
        # The legacy trainer sends no step: its learning-rate scheduler makes one a rollout, and is in the checkpoint.
        steps = getattr(getattr(worker.engine, "lr_scheduler", None), "last_epoch", 0)
    steps = steps if isinstance(steps, list) else [steps]
    latest = torch.tensor(max((int(step) for step in steps), default=0), device=batch.device())
    if group is not None:
        dist.all_reduce(latest, op=dist.ReduceOp.MAX, group=group)
    rollout_step = int(latest)
    seen, mini_batch = getattr(worker, "_verl_cov_step", (None, 0))
    mini_batch = mini_batch + 1 if seen == rollout_step else 0
    worker._verl_cov_step = (rollout_step, mini_batch)
    return rollout_step * MINI_BATCHES_PER_STEP + mini_batch


def _control_config(loss_fn: Any, data: Any) -> Any:
    """Our control's configuration if this worker trains an actor with one of our losses, else None."""
    # The critic and reward models are TrainingWorkers too: their loss has another config, or none.
    policy_loss = getattr(getattr(loss_fn, "keywords", {}).get("config"), "policy_loss", None)
    if policy_loss is None or "advantages" not in data:
        return None
    from verl_cov.config import cov_config

    return cov_config(policy_loss)


def _loss_with_selection(loss_fn: Any, selection: MicroBatches | MiniBatch, *args: Any, **kwargs: Any) -> Any:
    """Call verl's loss on one micro-batch with that micro-batch's slice of the selection."""
    data = kwargs.get("data")
    # Distillation calls the loss once more for the student's logits, without a micro-batch.
    if data is None or ("response_mask" if isinstance(selection, MicroBatches) else FIELD) not in data:
        return loss_fn(*args, **kwargs)
    if data.get("batch_num_tokens", None) is not None and data["batch_num_tokens"] == 0:
        # Every token of the mini-batch is masked: verl would divide zero by zero and poison the optimizer.
        from verl.utils import tensordict_utils as tu

        tu.assign_non_tensor(data, batch_num_tokens=1)
    if isinstance(selection, MicroBatches):
        with selected_tokens(selection):
            return loss_fn(*args, **kwargs)
    mask = data.select(FIELD).to_padded_tensor()[FIELD]
    with selected_tokens(mask.bool()):
        return loss_fn(*args, **kwargs)
