"""The mini-batch hook: selects over the whole optimizer mini-batch, before it is cut into micro-batches.

Leans on ``verl.workers.engine_workers.TrainingWorker.train_batch(data)``: in verl 0.8 to 0.9.1 the one place, for every
engine and trainer, that sees a rank's mini-batch. ``self.loss_fn`` is ``partial(ppo_loss, config=ActorConfig)`` there
and is called with ``model_output=, data=<micro-batch>, dp_group=``; fields added to ``data`` survive the cut. The
collectives of the selection run here, never inside the loss, which on some engines runs on some ranks only.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov import metrics, selection
from verl_cov.host.imports import when_imported
from verl_cov.host.policy_losses import control_of, selected_tokens
from verl_cov.selection import Control, Selected

# float32 like its neighbours: verl pads and re-cuts every field of a micro-batch, and bool tensors do not survive all
# of it.
FIELD = "verl_cov_selected"

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
        group = self.engine.get_data_parallel_group()
        chosen = select_in_mini_batch(data, control_of(cov, _optimizer_step(self, data, group)), group)
        loss_fn = self.loss_fn
        self.loss_fn = functools.partial(_loss_with_selection, loss_fn)
        try:
            output = original(self, data)
        finally:
            self.loss_fn = loss_fn
        if output is not None:  # None on the ranks of a model-parallel group that return nothing
            tu.get(output, "metrics").update(metrics.of_selection(chosen))
        return output

    worker.train_batch = train_batch


def select_in_mini_batch(data: Any, control: Control, group: ProcessGroup | None) -> Selected:
    """Select among a rank's mini-batch ``data`` (a TensorDict, jagged or dense) and store the mask in it as ``FIELD``.

    Every rank of ``group`` (data-parallel) must call it with its own rows and the same ``control``.
    """
    slots = _Slots.of(data["response_mask"])
    device = _device()
    valid = slots.valid
    # values() of a jagged tensor and a flattened dense one list the same slots as the mask does.
    log_prob = slots.flat(data["old_log_probs"], "old_log_probs")[valid].to(device)
    advantage = slots.flat(data["advantages"], "advantages")[valid].to(device)
    rows, positions = slots.rows[valid].to(device), slots.positions[valid].to(device)
    values = selection.row_values(rows, positions, log_prob, advantage, slots.lengths.numel())
    row_ids = _row_identities(data, slots, values, group, device)
    identity = selection.token_identity(row_ids[rows], positions)
    chosen = selection.select_tokens(log_prob, advantage, identity, control, group)
    mask = torch.zeros(valid.numel(), dtype=torch.float32)
    mask[valid] = chosen.mask.float().cpu()
    data[FIELD] = slots.unflatten(mask)
    return chosen


@dataclass(frozen=True)
class _Slots:
    """The response slots of a batch, row by row: jagged (V1 trainer) or dense with padding (legacy trainer)."""

    lengths: Tensor  # [rows] slots a row
    valid: Tensor  # [slots] bool
    rows: Tensor  # [slots] row of each slot
    positions: Tensor  # [slots] position in the response
    jagged: bool

    @classmethod
    def of(cls, response_mask: Tensor) -> _Slots:
        if response_mask.is_nested:
            lengths = response_mask.offsets().diff().cpu()
            valid = response_mask.values().bool().cpu()
        else:
            lengths = torch.full((response_mask.shape[0],), response_mask.shape[1], dtype=torch.int64)
            valid = response_mask.flatten().bool().cpu()
        rows = torch.repeat_interleave(torch.arange(lengths.numel()), lengths)
        positions = torch.arange(valid.numel()) - (lengths.cumsum(0) - lengths)[rows]
        return cls(lengths, valid, rows, positions, response_mask.is_nested)

    def flat(self, field: Tensor, name: str) -> Tensor:
        values = field.values() if field.is_nested else field.flatten()
        if values.numel() != self.valid.numel():
            raise RuntimeError(
                f"verl-cov: {name} has {values.numel()} response slots, response_mask {self.valid.numel()}: "
                "this trainer lays its batch out in a way that verl-cov does not know"
            )
        return values.cpu()

    def unflatten(self, flat: Tensor) -> Tensor:
        if not self.jagged:
            return flat.view(self.lengths.numel(), -1)
        # Not nested_tensor_from_jagged: without a maximal length it pads to the sum of all lengths later on.
        return torch.nested.as_nested_tensor(list(flat.split(self.lengths.tolist())), layout=torch.jagged)


def _row_identities(
    data: Any, slots: _Slots, row_values: Tensor, group: ProcessGroup | None, device: torch.device
) -> Tensor:
    """[rows] int64 from each row's own content, see :func:`verl_cov.selection.row_identity`."""
    tokens = data["input_ids"] if "input_ids" in data else data["responses"]
    if tokens.is_nested:
        values, lengths = tokens.values(), tokens.offsets().diff()
    else:
        values, lengths = tokens.flatten(), torch.full((tokens.shape[0],), tokens.shape[1], dtype=torch.int64)
    response_lengths = torch.zeros_like(slots.lengths).index_add_(0, slots.rows, slots.valid.long())
    return selection.row_identity(
        values.to(device),
        lengths.to(device),
        response_lengths.to(device),
        (response_lengths > 0).to(device),
        row_values,
        group,
    )


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
    latest = torch.tensor(max(int(step) for step in steps), device=_device())
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


def _loss_with_selection(loss_fn: Any, *args: Any, **kwargs: Any) -> Any:
    """Call verl's loss on one micro-batch with that micro-batch's slice of the selection."""
    data = kwargs.get("data")
    # Distillation calls the loss once more for the student's logits, without a micro-batch.
    if data is None or FIELD not in data:
        return loss_fn(*args, **kwargs)
    mask = data.select(FIELD).to_padded_tensor()[FIELD]
    with selected_tokens(mask.bool()):
        return loss_fn(*args, **kwargs)


def _device() -> torch.device:
    # On the accelerator, because process groups of some engines are NCCL-only; the batch itself lies on the CPU.
    from verl.utils.device import get_device_id, get_device_name

    name = get_device_name()
    return torch.device("cpu") if name == "cpu" else torch.device(name, get_device_id())
