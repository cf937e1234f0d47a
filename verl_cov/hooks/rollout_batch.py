"""The rollout hook: entropy, the theorems and Figure 8 over each whole rollout batch (``cov_metrics=full``).

Leans on ``verl.workers.engine_workers.TrainingWorker``: ``train_mini_batch(data)`` gets a rank's share of the rollout
batch before it is dealt out into mini-batches; ``infer_batch(data)`` is where the legacy trainer has its entropies
computed, which its driver then drops (the V1 trainer sends them along as ``entropy``); ``save_checkpoint`` and
``load_checkpoint`` carry what the running correlation has seen. For the size of a step also on ``grad_norm`` in the
metrics of each update and on ``engine.optimizer_config.clip_grad``.
"""

from __future__ import annotations

import functools
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core import metrics, rollout
from verl_cov.core.entropy_change import EntropyChange
from verl_cov.core.rollout import Theorem
from verl_cov.hooks import batch
from verl_cov.hooks.batch import Tokens
from verl_cov.hooks.imports import when_imported

logger = logging.getLogger(__name__)

STATE_FILE = "verl_cov.json"


def install() -> None:
    when_imported("verl.workers.engine_workers", _wrap)


def _wrap(engine_workers: Any) -> None:
    worker = engine_workers.TrainingWorker
    train, infer = worker.train_mini_batch, worker.infer_batch
    save, load = worker.save_checkpoint, worker.load_checkpoint

    @functools.wraps(train)  # keeps the dispatch attributes that verl's @register put on the method
    def train_mini_batch(self, data):
        from verl.utils import tensordict_utils as tu

        cov = batch.asked_for(self.loss_fn) if "advantages" in data else None
        if cov is None or cov.cov_metrics != "full":
            return train(self, data)
        found, theorems = look(self, data, batch.data_parallel_group(self.engine))
        output = train(self, data)
        of_updates = {} if output is None else tu.get(output, "metrics")
        found |= _compare(self, found, theorems, of_updates.get("grad_norm"))
        if output is not None:  # None on the ranks of a model-parallel group that return nothing
            # A list, like its neighbours, which hold a value for each mini-batch.
            of_updates.update({key: [value] for key, value in metrics.prefixed(found).items()})
        return output

    @functools.wraps(infer)
    def infer_batch(self, data):
        output = infer(self, data)
        _keep_entropies(self, data, output)
        return output

    @functools.wraps(save)
    def save_checkpoint(self, local_path, *args, **kwargs):
        result = save(self, local_path, *args, **kwargs)
        change = getattr(self, "_verl_cov_entropy_change", None)
        # From a rank that has the metrics: under pipeline parallelism rank 0 has not.
        if (
            change is not None
            and self.engine.is_mp_src_rank_with_outputs()
            and self.engine.get_data_parallel_rank() == 0
        ):
            try:
                (Path(local_path) / STATE_FILE).write_text(json.dumps(change.state_dict()))
            except OSError as error:
                logger.warning("verl-cov: %s is not in this checkpoint: %s", STATE_FILE, error)
        return result

    @functools.wraps(load)
    def load_checkpoint(self, local_path, *args, **kwargs):
        cov = batch.asked_for(self.loss_fn)
        if cov is None or cov.cov_metrics != "full":
            return load(self, local_path, *args, **kwargs)
        text = _read_state(local_path)  # before verl, which may delete the folder
        result = load(self, local_path, *args, **kwargs)
        self._verl_cov_entropy_change = _shared_state(text)
        return result

    worker.train_mini_batch, worker.infer_batch = train_mini_batch, infer_batch
    worker.save_checkpoint, worker.load_checkpoint = save_checkpoint, load_checkpoint


def look(worker: Any, data: Any, group: ProcessGroup | None) -> tuple[dict[str, float], dict[str, Theorem]]:
    """What the rollout batch reports (without the prefix, equal on every rank), ``data`` being this rank's share;
    and what the theorems say of it."""
    tokens = Tokens.of(data)
    entropy = tokens.entropy()
    if entropy is None:
        entropy = _kept_entropies(worker, tokens)
    responses = rollout.Responses.of(
        tokens.lengths,
        tokens.valid,
        tokens.old_log_prob,
        tokens.advantage,
        entropy,
        tokens.score(),
        tokens.prompt(),
        group,
    )
    theorems = rollout.theorems(responses)
    changes = {name: theorem.change for name, theorem in theorems.items()}
    return rollout.entropies(responses) | changes | rollout.prompts(responses), theorems


def _compare(worker: Any, found: dict[str, float], theorems: dict[str, Theorem], grad_norms: Any) -> dict[str, float]:
    """The theorems of earlier rollouts against what became of the entropy. ``grad_norms``: of each of its updates."""
    if not theorems:
        return {}
    if not hasattr(worker, "_verl_cov_entropy_change"):
        worker._verl_cov_entropy_change = EntropyChange()
    scale = clip_scale(grad_norms, getattr(getattr(worker.engine, "optimizer_config", None), "clip_grad", None))
    exact = "entropy" in found
    measured = found["entropy" if exact else "entropy_sampled"]
    return {"clip_scale": scale} | worker._verl_cov_entropy_change.after_rollout(measured, theorems, scale, exact)


def clip_scale(grad_norms: Any, clip_grad: float | None) -> float:
    """What gradient clipping left of the steps of a rollout: the mean of min(1, clip_grad / grad_norm), in [0, 1].

    Where the norm is above the threshold, as it is in most steps of RL with verl's default of 1, the step is the
    gradient's direction alone, and the entropy change goes with covariance by norm. A norm that is not finite counts 0:
    verl skips that update.
    """
    norms = np.asarray(grad_norms if grad_norms is not None else [], dtype=np.float64).flatten()
    if not norms.size:
        return 1.0
    left = np.ones_like(norms) if not clip_grad else clip_grad / np.maximum(norms, clip_grad)
    return float(np.where(np.isfinite(norms), left, 0.0).mean())


def _keep_entropies(worker: Any, data: Any, output: Any) -> None:
    """Remember the entropies of a dense (legacy) batch until it is trained on."""
    cov = batch.asked_for(worker.loss_fn)
    if cov is None or cov.cov_metrics != "full" or output is None or "entropy" not in output:
        return
    if not {"response_mask", "prompts", "responses", "uid"} <= set(data.keys()) or data["response_mask"].is_nested:
        return
    from verl.workers.utils.padding import no_padding_2_padding

    padded = no_padding_2_padding(output["entropy"], data)
    worker._verl_cov_entropies = (batch.uids_of(data), padded.float().flatten())


def _kept_entropies(worker: Any, tokens: Tokens) -> Tensor | None:
    uids, entropies = getattr(worker, "_verl_cov_entropies", (None, None))
    worker._verl_cov_entropies = (None, None)
    # The same rows in the same order, or none: a filter between the two would shift them.
    if entropies is None or uids != tokens.uids() or entropies.numel() != tokens.valid.numel():
        return None
    return entropies.to(tokens.valid.device)


def _read_state(local_path: Any) -> str | None:
    # Whatever is wrong with the file: a rank that stopped here would leave the others waiting in _shared_state.
    with suppress(OSError, ValueError):
        return (Path(str(local_path)) / STATE_FILE).read_text()
    return None


def _shared_state(text: str | None) -> EntropyChange:
    """The state of whichever rank saw the file (other nodes may not see its disk); a new one if none did."""
    texts = [text]
    if dist.is_initialized():
        texts = [None] * dist.get_world_size()
        dist.all_gather_object(texts, text)
    change = EntropyChange()
    found = next((text for text in texts if text is not None), None)
    if found is not None:
        try:
            change.load_state_dict(json.loads(found))
        except ValueError as error:
            logger.warning("verl-cov: %s is damaged (%s): the comparison of entropies starts anew", STATE_FILE, error)
    return change
