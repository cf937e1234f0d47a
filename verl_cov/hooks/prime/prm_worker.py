"""The worker that trains the implicit PRM: verl's own TrainingWorker, which also returns the log-probs it trained on.

Leans on ``verl.workers.engine_workers.TrainingWorker``: ``train_mini_batch`` cuts a rank's rows into mini-batches and
calls ``train_batch`` on each, whose loss function gets ``model_output["log_probs"]`` (jagged, whole sequences) and the
micro-batch ``data``. Fields added to the batch survive the cuts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.padding import no_padding_2_padding

from verl_cov.core.prime import prm
from verl_cov.hooks import batch as rank_batch

if TYPE_CHECKING:
    from tensordict import TensorDict

# Fields of a row: the reference's log-probs and the PRM's, of the response; the outcome; the DPO loss's opponent.
REFERENCE = "prm_ref_log_probs"
LOG_PROBS = "prm_log_probs"
OUTCOME = "prm_outcome"
OPPONENT = "prm_opponent"
# The row's number on its rank, and a mini-batch's responses over all ranks.
_ROW = "prm_row"
_RESPONSES = "prm_responses"


class PrmWorker(TrainingWorker):
    """Trains a causal LM as an implicit PRM (``set_loss_fn`` with :func:`prm_loss`)."""

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
    def train_and_score(self, data: TensorDict) -> TensorDict | None:
        """``train_mini_batch(data)``; also puts :data:`LOG_PROBS`, of each row's first forward, before the update that
        it is part of."""
        rows = data.shape[0]
        first_log_probs: list[Tensor | None] = [None] * rows
        data[_ROW] = torch.arange(rows)
        loss_fn = self.loss_fn  # type: ignore[has-type]
        self.loss_fn = functools.partial(_recording, loss_fn, first_log_probs)
        try:
            output = self.train_mini_batch(data)
        finally:
            self.loss_fn = loss_fn
        if output is None:  # a rank of a model-parallel group that returns nothing
            return None
        log_probs = torch.nested.as_nested_tensor(first_log_probs, layout=torch.jagged)
        return tu.get_tensordict({LOG_PROBS: log_probs}, {"metrics": tu.get(output, "metrics")})

    @functools.wraps(TrainingWorker.train_batch)
    def train_batch(self, data: TensorDict) -> TensorDict | None:
        # verl counts the padding rows of an uneven batch as responses; the loss is the mean over real ones.
        mask = data["response_mask"]
        rows = mask.unbind() if mask.is_nested else mask
        responses = torch.tensor(sum(bool(row.any()) for row in rows), device=rank_batch.device())
        group = rank_batch.data_parallel_group(self.engine)
        if group is not None:
            dist.all_reduce(responses, group=group)
        tu.assign_non_tensor(data, **{_RESPONSES: int(responses)})
        return super().train_batch(data)


def _recording(
    loss_fn: Callable[..., Any],
    first_log_probs: list[Tensor | None],
    *,
    model_output: Mapping[str, Tensor],
    data: TensorDict,
    **others: Any,
) -> Any:
    log_probs = no_padding_2_padding(model_output["log_probs"], data).detach().float().cpu()
    responses = data["responses"]
    lengths = responses.offsets().diff().tolist() if responses.is_nested else [responses.shape[1]] * len(log_probs)
    for row, log_prob, length in zip(data[_ROW].tolist(), log_probs, lengths, strict=True):
        if first_log_probs[row] is None:  # a later epoch's is after an update
            first_log_probs[row] = log_prob[:length]
    return loss_fn(model_output=model_output, data=data, **others)


def prm_loss(
    model_output: Mapping[str, Tensor], data: TensorDict, dp_group: object = None, *, beta: float, kind: str
) -> tuple[Tensor, dict[str, Metric]]:
    """Computes a micro-batch's share of the PRM's loss, which is a mean over the mini-batch's responses on all ranks.

    Args:
        kind: ``ce`` or ``dpo``, see :mod:`verl_cov.core.prime.prm`.
    """
    log_prob = no_padding_2_padding(model_output["log_probs"], data).float()
    fields = data.select("response_mask", REFERENCE).to_padded_tensor()
    mask = fields["response_mask"].bool()
    # where, not a product: log-probs of padding may be infinite.
    q = torch.where(mask, beta * (log_prob - fields[REFERENCE].float()), 0.0).sum(-1)
    outcome = data[OUTCOME].float()
    each = prm.cross_entropy(q, outcome) if kind == "ce" else prm.dpo(q, data[OPPONENT].float(), outcome)
    loss = torch.where(mask.any(-1), each, 0.0).sum() / max(data[_RESPONSES], 1) * data["dp_size"]
    return loss, {"prm_loss": Metric(value=loss, aggregation=AggregationType.SUM)}
