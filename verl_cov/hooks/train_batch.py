"""The mini-batch hook in verl's engines: a wrapper around ``TrainingWorker.train_batch``, or a patched verl's own hook.

Leans on ``verl.workers.engine_workers.TrainingWorker.train_batch(data)``: in verl 0.7.1 (engine mode) to 0.9.1 the one
place, for every engine and trainer, that sees a rank's mini-batch. ``self.loss_fn`` is called there with
``model_output=, data=<micro-batch>, dp_group=``; fields added to ``data`` survive the cut. For
``cov_log_prob=current`` also on ``engine.eval_mode`` and ``engine.infer_batch``, and on the five settings of a
micro-batch that ``train_batch`` fills in. A verl with one of ``patches/`` calls :func:`hook_for` itself, through
``verl.utils.mini_batch_hook``, and is not wrapped.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.hooks import batch
from verl_cov.hooks.asks import config_from_loss
from verl_cov.hooks.batch import RankTokens
from verl_cov.hooks.mini_batch import MINI_BATCHES_PER_STEP, UPDATE, MiniBatchHook
from verl_cov.hooks.reporting import reporting
from verl_cov.hooks.seams import Seam
from verl_cov.hooks.worker_state import state_of

if TYPE_CHECKING:
    from tensordict import TensorDict
    from verl.workers.config import EngineConfig
    from verl.workers.engine.base import BaseEngine
    from verl.workers.engine_workers import TrainingWorker

    from verl_cov.hooks.config import CovPolicyLossConfig

# What an update may ask of its forward besides log-probs. An additional forward asks for none of it: top-k distillation
# would call the loss, which it has not. tests/hooks/test_forward_flags.py reads verl's engines for flags missing here.
FORWARD_FLAGS = {
    "calculate_entropy": False,
    "calculate_sum_pi_squared": False,
    "distillation_use_topk": False,
    "distillation_only": False,
}

seam = Seam()


def install() -> None:
    seam.when_imported("verl.utils.mini_batch_hook", _register_with_patched_verl)
    seam.when_imported("verl.workers.engine_workers", _wrap)


def _register_with_patched_verl(mini_batch_hook: ModuleType) -> None:
    mini_batch_hook.register_mini_batch_hook(hook_for)
    seam.on_uninstall(lambda: mini_batch_hook._FACTORIES.remove(hook_for))


def hook_for(worker: TrainingWorker, data: TensorDict) -> MiniBatchHook | None:
    """Makes the hook for a mini-batch of an engine's worker; None for another worker or a run without verl-cov.

    Raises:
        ValueError: the engine's settings make a selection over the mini-batch impossible.
    """
    if not hasattr(worker, "engine") or "advantages" not in data:
        return None
    cov = config_from_loss(worker.loss_fn)
    if cov is None or not (cov.acts or cov.cov_metrics != "off"):
        return None
    if cov.acts:
        refuse_engine(worker.engine.engine_config, cov)
    return MiniBatchHook(EngineAdapter(worker, data), cov)


def _wrap(engine_workers: ModuleType) -> None:
    if hasattr(engine_workers, "MiniBatchStep"):  # a patched verl calls the hook itself
        return
    seam.wrap(engine_workers.TrainingWorker, "train_batch", _train_batch)


def _train_batch(
    original: Callable[..., TensorDict | None], worker: TrainingWorker, data: TensorDict
) -> TensorDict | None:
    """In place of ``TrainingWorker.train_batch``: one optimizer step on a rank's mini-batch."""
    hook = hook_for(worker, data)
    if hook is None:
        return original(worker, data)
    from verl.utils import tensordict_utils as tu

    loss_fn = worker.loss_fn
    worker.loss_fn = functools.partial(_loss_with_selection, loss_fn, hook)
    try:
        output = original(worker, data)
    finally:
        worker.loss_fn = loss_fn
    metrics = hook.metrics()
    if output is not None:  # None on the ranks of a model-parallel group that return nothing
        with reporting(UPDATE):
            tu.get(output, "metrics").update(metrics)
    return output


def _loss_with_selection(loss_fn: Callable[..., Any], hook: MiniBatchHook, *args: Any, **kwargs: Any) -> Any:
    """Calls verl's loss on one micro-batch in the hook's context."""
    # Distillation calls the loss once more for the student's logits, without a micro-batch.
    with nullcontext() if kwargs.get("data") is None else hook.micro_batch(kwargs["data"]):
        return loss_fn(*args, **kwargs)


class EngineAdapter:
    """A ``TrainingWorker`` and the mini-batch that its ``train_batch`` was called with (a TensorDict)."""

    def __init__(self, worker: TrainingWorker, data: TensorDict) -> None:
        self.worker, self.data = worker, data
        self.group = batch.data_parallel_group(worker.engine)
        self.tokenizer = getattr(worker.model_config, "tokenizer", None)

    def step(self) -> int:
        return _count_optimizer_step(self.worker, self.data, self.group)

    def log_probs(self, tokens: RankTokens) -> Tensor:
        return tokens.pick_responses(_log_probs(self.worker, self.data))

    def has_policy_loss(self, micro_batch: TensorDict) -> bool:
        return "response_mask" in micro_batch

    def prepare(self, micro_batch: TensorDict) -> None:
        if micro_batch.get("batch_num_tokens", None) is not None and micro_batch["batch_num_tokens"] == 0:
            # Every token of the mini-batch is masked: verl would divide zero by zero and poison the optimizer.
            from verl.utils import tensordict_utils as tu

            tu.assign_non_tensor(micro_batch, batch_num_tokens=1)

    def padded(self, micro_batch: TensorDict, name: str) -> Tensor:
        return micro_batch.select(name).to_padded_tensor()[name]

    def divides_by_width(self) -> bool:
        actor = self.worker.loss_fn.keywords["config"]
        return actor.loss_agg_mode == "seq-mean-token-sum-norm" and getattr(actor, "loss_scale_factor", None) is None


def refuse_engine(engine_config: EngineConfig, cov: CovPolicyLossConfig) -> None:
    """Raises ValueError for engine settings that make a selection over the mini-batch impossible."""
    if cov.cov_scope != "mini_batch":
        return
    torchtitan = getattr(engine_config, "strategy", None) == "torchtitan"
    if torchtitan and getattr(engine_config, "context_parallel_size", 1) > 1:
        raise ValueError(
            "context_parallel_size > 1 cannot be combined with a selection over the mini-batch: verl's "
            "torchtitan engine counts the context-parallel ranks as data-parallel ones, so that tokens would be "
            "missing or counted twice. Set it to 1, or use cov_scope=micro_batch"
        )
    # Megatron's scheduler deals rows out after the selection, but from a mini-batch that every rank has in full, so
    # every rank has selected the same. But it collects log-probs on one rank only.
    if cov.log_prob == "current" and getattr(engine_config, "dynamic_context_parallel", False):
        raise ValueError(
            "cov_log_prob=current needs the log-probs on every rank, and with dynamic_context_parallel=True "
            "only one of them has them: use cov_log_prob=old"
        )
    if cov.log_prob == "current" and getattr(engine_config, "pipeline_model_parallel_size", 1) > 1:
        raise ValueError(
            "cov_log_prob=current needs the log-probs on every rank, and with "
            "pipeline_model_parallel_size > 1 only the last stage has them: use cov_log_prob=old"
        )


def _log_probs(worker: TrainingWorker, data: TensorDict) -> Tensor:
    """Computes the present policy's log-probs of whole sequences, jagged, in the micro-batches of training."""
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
    tu.assign_non_tensor(data, **FORWARD_FLAGS)
    keep_loaded = tu.get(data, key="disable_auto_offload", default=False)
    with worker.engine.eval_mode(disable_auto_offload=keep_loaded):
        output = worker.engine.infer_batch(data, loss_function=None)
    return output["model_output"]["log_probs"]


def _count_optimizer_step(worker: TrainingWorker, data: TensorDict, group: ProcessGroup | None) -> int:
    """Counts one optimizer step: its number holds the rollout step and the mini-batch within it.

    The rollout step travels with the batch; the mini-batches are counted here. In asynchronous trainers rows of several
    rollout steps meet in a mini-batch: the latest counts, over all ranks.
    """
    steps = data.get("global_steps", None)
    steps = getattr(steps, "data", steps) if not hasattr(steps, "tolist") else steps.tolist()
    steps = steps if isinstance(steps, list) else [steps]
    # None: a rollout server that was not told of its weights' version yet, or another rollout than vLLM's.
    steps = [step for step in steps if isinstance(step, numbers.Real)] or [_updates_before(worker.engine)]
    # The legacy trainer's rows (dense) say which weights sampled them, the first of which are version 0; V1's the step.
    behind = 0 if data["response_mask"].is_nested else 1
    latest = torch.tensor(max((int(step) for step in steps), default=0) + behind, device=batch.device())
    if group is not None:
        dist.all_reduce(latest, op=dist.ReduceOp.MAX, group=group)
    state = state_of(worker)
    # Never back: where rollouts of several steps wait in a queue, the next mini-batch may be all of older ones.
    rollout_step = max(int(latest), state.rollout_step or 0)
    state.mini_batch = state.mini_batch + 1 if state.rollout_step == rollout_step else 0
    state.rollout_step = rollout_step
    return rollout_step * MINI_BATCHES_PER_STEP + state.mini_batch


def _updates_before(engine: BaseEngine) -> int:
    """Returns how often the learning-rate scheduler stepped: once per rollout, and continued from a checkpoint."""
    scheduler = getattr(engine, "lr_scheduler", None)
    scheduler = getattr(scheduler, "schedulers", [scheduler])[0]  # torchtitan's holds one for each optimizer
    for name in ("last_epoch", "num_steps"):  # torch's; Megatron's and Automodel's
        if hasattr(scheduler, name):
            return int(getattr(scheduler, name))
    return 0
