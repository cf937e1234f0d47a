"""The rollout hook: entropy, the theorems and Figure 8 over each whole rollout batch (``cov_metrics=full``), and what a
target or a schedule sets for its updates (:mod:`.target`).

Leans on ``verl.workers.engine_workers.TrainingWorker``: ``train_mini_batch(data)`` gets a rank's share of the rollout
batch before it is dealt out into mini-batches; ``infer_batch(data)`` is where the legacy trainer has its entropies
computed, which its driver then drops (the V1 trainer sends them along as ``entropy``); ``save_checkpoint`` and
``load_checkpoint`` carry what the running correlation and the controller have seen. For the size of a step also on
``grad_norm`` in the metrics of each update and on ``engine.optimizer_config.clip_grad``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core import metrics, rollout
from verl_cov.core.entropy_change import EntropyChange
from verl_cov.core.rollout import Theorem
from verl_cov.hooks import batch, target
from verl_cov.hooks.asks import config_from_loss
from verl_cov.hooks.batch import RankTokens
from verl_cov.hooks.reporting import agreed, reporting
from verl_cov.hooks.seams import Seam
from verl_cov.hooks.worker_state import state_of

if TYPE_CHECKING:
    from tensordict import TensorDict
    from verl.workers.engine_workers import TrainingWorker

    from verl_cov.hooks.config import CovPolicyLossConfig

STATE_FILE = "verl_cov.json"
ROLLOUT = "the measurement of a rollout batch"

seam = Seam()


def install() -> None:
    seam.when_imported("verl.workers.engine_workers", _wrap)


def _wrap(engine_workers: ModuleType) -> None:
    worker = engine_workers.TrainingWorker
    seam.wrap(worker, "train_mini_batch", _train_mini_batch)
    seam.wrap(worker, "infer_batch", _infer_batch)
    seam.wrap(worker, "save_checkpoint", _save_checkpoint)
    seam.wrap(worker, "load_checkpoint", _load_checkpoint)


def _sees_rollouts(worker: TrainingWorker) -> CovPolicyLossConfig | None:
    """Returns the configuration of a worker that trains an actor, if it measures or moves something once a rollout."""
    cov = config_from_loss(worker.loss_fn)
    sees = cov is not None and (cov.cov_metrics == "full" or cov.moves or _needs_entropy(cov))
    return cov if sees else None


def _needs_entropy(cov: CovPolicyLossConfig) -> bool:
    """Returns True if a control goes by the rollout's mean entropy."""
    return not cov.needs.isdisjoint({"rollout_entropy", "own"})


def _train_mini_batch(
    original: Callable[..., TensorDict | None], worker: TrainingWorker, data: TensorDict
) -> TensorDict | None:
    """In place of ``TrainingWorker.train_mini_batch``: all updates on a rank's share of a rollout batch."""
    cov = _sees_rollouts(worker)
    if "advantages" not in data or cov is None:
        return original(worker, data)
    from verl.utils import tensordict_utils as tu

    values: dict[str, float] = {}
    theorems: dict[str, Theorem] = {}
    responses = None
    if cov.cov_metrics == "full" or cov.cov_target is not None or _needs_entropy(cov):
        with nullcontext() if cov.cov_target is not None or _needs_entropy(cov) else reporting(ROLLOUT):
            responses = gather_responses(worker, data, batch.data_parallel_group(worker.engine))
    if responses is not None and (cov.cov_metrics == "full" or _needs_entropy(cov)):
        values, theorems = rollout_metrics(responses)
        state_of(worker).rollout_entropy = values.get("entropy")
        if cov.cov_metrics != "full":
            values, theorems = {}, {}
    if cov.moves:
        with target.moved(worker, cov, responses) as moved:
            output = original(worker, data)
        values |= moved
    else:
        output = original(worker, data)
    with reporting(ROLLOUT):
        # No output on the ranks of a model-parallel group that return nothing.
        update_metrics = {} if output is None else tu.get(output, "metrics")
        with reporting("the comparison of the theorems with the entropy"):
            values |= _compare_with_predictions(worker, values, theorems, update_metrics.get("grad_norm"))
        # A list, like its neighbours, which hold a value for each mini-batch.
        update_metrics.update({key: [value] for key, value in metrics.prefixed(values).items()})
    return output


def _infer_batch(
    original: Callable[..., TensorDict | None], worker: TrainingWorker, data: TensorDict
) -> TensorDict | None:
    cov = config_from_loss(worker.loss_fn)
    if cov is None:
        return original(worker, data)
    if not data.get("no_lora_adapter", False):  # with it the reference policy is asked
        state_of(worker).log_probs_are_new = True
    output = original(worker, data)
    if output is not None and "entropy" in output and _sees_rollouts(worker):
        with reporting("the entropy of a rollout batch"):
            _keep_entropies(worker, data, output)
    return output


def _save_checkpoint(original: Callable, worker: TrainingWorker, local_path: str, *args: Any, **kwargs: Any) -> Any:
    result = original(worker, local_path, *args, **kwargs)
    cov = _sees_rollouts(worker)
    # From a rank that has the metrics: under pipeline parallelism rank 0 has none.
    if cov is not None and worker.engine.is_mp_src_rank_with_outputs() and worker.engine.get_data_parallel_rank() == 0:
        state = state_of(worker)
        text = json.dumps(state.entropy_change.state_dict() | target.state_dict(state))
        with nullcontext() if cov.moves else reporting(f"{STATE_FILE} in a checkpoint"):
            (Path(local_path) / STATE_FILE).write_text(text)
    return result


def _load_checkpoint(original: Callable, worker: TrainingWorker, local_path: str, *args: Any, **kwargs: Any) -> Any:
    cov = _sees_rollouts(worker)
    if cov is None:
        return original(worker, local_path, *args, **kwargs)
    text = _read_state(local_path)  # before verl, which may delete the folder
    result = original(worker, local_path, *args, **kwargs)
    state, saved = state_of(worker), _shared(text)
    state.entropy_change = _entropy_change(saved)
    if cov.moves:
        target.load_state(state, cov, saved)
    return result


def gather_responses(worker: TrainingWorker, data: TensorDict, group: ProcessGroup | None) -> rollout.Responses | None:
    """Gathers the responses of all ranks; None on every rank if the batch of one cannot be read.

    Args:
        data: this rank's share of the rollout batch.
    """
    table = None
    with reporting(ROLLOUT):
        table = _row_sums(worker, data)
    table = agreed(table, group)
    return None if table is None else rollout.Responses.gather(table, group)


def rollout_metrics(responses: rollout.Responses) -> tuple[dict[str, float], dict[str, Theorem]]:
    """Computes the entropy metrics of a rollout batch and the theorems' predictions; equal on every rank.

    Returns:
        The metrics without their prefix; the theorems by their names. Without what failed.
    """
    values: dict[str, float] = {}
    theorems: dict[str, Theorem] = {}
    with reporting(ROLLOUT):
        with reporting("the entropy of a rollout batch"):
            values |= rollout.entropies(responses)
        with reporting("Figure 8 of a rollout batch"):
            values |= rollout.prompts(responses)
        theorems = rollout.theorems(responses)
        values |= {name: theorem.change for name, theorem in theorems.items()}
    return values, theorems


def _row_sums(worker: TrainingWorker, data: TensorDict) -> Tensor:
    tokens = RankTokens.read(data)
    entropy = tokens.entropy()
    if entropy is None:
        entropy = _take_kept_entropies(worker, tokens)
    return rollout.row_sums(
        tokens.lengths,
        tokens.valid,
        tokens.old_log_prob,
        tokens.advantage,
        entropy,
        tokens.score(),
        tokens.prompt(),
        tokens.response(),
    )


def _compare_with_predictions(
    worker: TrainingWorker, values: dict[str, float], theorems: dict[str, Theorem], grad_norms: Sequence[float] | None
) -> dict[str, float]:
    """Compares the theorems of earlier rollouts with the measured entropy.

    Args:
        values: :func:`rollout_metrics` of this rollout.
        grad_norms: of each of its updates.
    """
    if not theorems:
        return {}
    scale = clip_scale(grad_norms, getattr(getattr(worker.engine, "optimizer_config", None), "clip_grad", None))
    exact = "entropy" in values
    measured = values["entropy" if exact else "entropy_sampled"]
    return {"clip_scale": scale} | state_of(worker).entropy_change.after_rollout(measured, theorems, scale, exact)


def clip_scale(grad_norms: Sequence[float] | None, clip_grad: float | None) -> float:
    """Computes what gradient clipping left of a rollout's steps: the mean of min(1, clip_grad / grad_norm).

    Where the norm is above the threshold, as it is in most steps of RL with verl's default of 1, the step is the
    gradient's direction alone, and the entropy change goes with covariance by norm. A norm that is not finite counts 0:
    verl skips that update.
    """
    norms = np.asarray(grad_norms if grad_norms is not None else [], dtype=np.float64).flatten()
    if not norms.size:
        return 1.0
    left = np.ones_like(norms) if not clip_grad else clip_grad / np.maximum(norms, clip_grad)
    return float(np.where(np.isfinite(norms), left, 0.0).mean())


def _keep_entropies(worker: TrainingWorker, data: TensorDict, output: TensorDict) -> None:
    """Keeps the entropies of a dense (legacy) batch until it is trained on."""
    if not {"response_mask", "prompts", "responses", "uid"} <= set(data.keys()) or data["response_mask"].is_nested:
        return
    from verl.workers.utils.padding import no_padding_2_padding

    padded = no_padding_2_padding(output["entropy"], data)
    state_of(worker).inferred_entropies = (batch.prompt_uids(data), padded.float().flatten())


def _take_kept_entropies(worker: TrainingWorker, tokens: RankTokens) -> Tensor | None:
    state = state_of(worker)
    kept, state.inferred_entropies = state.inferred_entropies, None
    if kept is None:
        return None
    uids, entropies = kept
    # The same rows in the same order, or none: a filter between the two would shift them.
    if uids != batch.prompt_uids(tokens.data) or entropies.numel() != tokens.valid.numel():
        return None
    return entropies.to(tokens.valid.device)


def _read_state(local_path: str) -> str | None:
    # Whatever is wrong with the file: a rank that stopped here would leave the others waiting in _shared.
    with suppress(OSError, ValueError):
        return (Path(str(local_path)) / STATE_FILE).read_text()
    return None


def _shared(text: str | None) -> str | None:
    """Returns what whichever rank read (other nodes may not see its disk); None if none did."""
    texts = [text]
    if dist.is_initialized():
        texts = [None] * dist.get_world_size()
        dist.all_gather_object(texts, text)
    return next((text for text in texts if text is not None), None)


def _entropy_change(saved: str | None) -> EntropyChange:
    change = EntropyChange()
    if saved is not None:
        with reporting(f"{STATE_FILE} of a checkpoint"):
            change.load_state_dict(json.loads(saved))
    return change
