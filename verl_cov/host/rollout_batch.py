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

from verl_cov import metrics, rollout
from verl_cov.entropy_change import EntropyChange
from verl_cov.host import batch
from verl_cov.host.batch import Tokens
from verl_cov.host.imports import when_imported

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

        cov = batch.asked_for(self.loss_fn, data)
        if cov is None or cov.cov_metrics != "full":
            return train(self, data)
        found = look(self, data, batch.data_parallel_group(self.engine))
        output = train(self, data)
        of_updates = {} if output is None else tu.get(output, "metrics")
        found |= _compare(self, found, of_updates.get("grad_norm"))
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
        if change is not None and (not dist.is_initialized() or dist.get_rank() == 0):
            (Path(local_path) / STATE_FILE).write_text(json.dumps(change.state_dict()))
        return result

    @functools.wraps(load)
    def load_checkpoint(self, local_path, *args, **kwargs):
        state = _read_state(local_path)  # before verl, which may delete the folder
        result = load(self, local_path, *args, **kwargs)
        if state is not None:
            self._verl_cov_entropy_change = state
        return result

    worker.train_mini_batch, worker.infer_batch = train_mini_batch, infer_batch
    worker.save_checkpoint, worker.load_checkpoint = save_checkpoint, load_checkpoint


def look(worker: Any, data: Any, group: ProcessGroup | None) -> dict[str, float]:
    """What the rollout batch reports, ``data`` being this rank's share: without the prefix, equal on every rank."""
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
    return rollout.entropies(responses) | rollout.theorems(responses) | rollout.prompts(responses)


def _compare(worker: Any, found: dict[str, float], grad_norms: Any) -> dict[str, float]:
    """The theorems of earlier rollouts against what became of the entropy. ``grad_norms``: of each of its updates."""
    if "entropy_sampled" not in found:
        return {}
    if not hasattr(worker, "_verl_cov_entropy_change"):
        worker._verl_cov_entropy_change = EntropyChange()
    scale = clip_scale(grad_norms, getattr(getattr(worker.engine, "optimizer_config", None), "clip_grad", None))
    predictors = {name: scale * found[name] for name in ("theorem1", "theorem2")}
    measured = found.get("entropy", found["entropy_sampled"])
    return {"clip_scale": scale} | worker._verl_cov_entropy_change.after_rollout(measured, predictors)


def clip_scale(grad_norms: Any, clip_grad: float | None) -> float:
    """What gradient clipping left of the steps of a rollout: the mean of min(1, clip_grad / grad_norm), in (0, 1].

    Where the norm is above the threshold, as it is in most steps of RL with verl's default of 1, the step is the
    gradient's direction alone, and the entropy change goes with covariance by norm.
    """
    norms = np.asarray(grad_norms if grad_norms is not None else [], dtype=np.float64).flatten()
    norms = norms[np.isfinite(norms) & (norms > 0)]
    if not norms.size or not clip_grad:
        return 1.0
    return float(np.minimum(1.0, clip_grad / norms).mean())


def _keep_entropies(worker: Any, data: Any, output: Any) -> None:
    """Remember the entropies of a dense (legacy) batch until it is trained on."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import no_padding_2_padding

    policy_loss = getattr(getattr(worker.loss_fn, "keywords", {}).get("config"), "policy_loss", None)
    if output is None or "entropy" not in output or getattr(policy_loss, "cov_metrics", None) == "off":
        return
    if policy_loss is None or "response_mask" not in data or data["response_mask"].is_nested or "uid" not in data:
        return
    padded = no_padding_2_padding(output["entropy"], data)
    worker._verl_cov_entropies = ([str(uid) for uid in tu.get(data, "uid")], padded.float().flatten())


def _kept_entropies(worker: Any, tokens: Tokens) -> Tensor | None:
    uids, entropies = getattr(worker, "_verl_cov_entropies", (None, None))
    worker._verl_cov_entropies = (None, None)
    # The same rows in the same order, or none: a filter between the two would shift them.
    if entropies is None or uids != tokens.uids() or entropies.numel() != tokens.valid.numel():
        return None
    return entropies.to(tokens.valid.device)


def _read_state(local_path: Any) -> EntropyChange | None:
    """The state that rank 0 finds beside the checkpoint, on every rank: other nodes may not see its disk."""
    text = None
    path = Path(str(local_path)) / STATE_FILE
    if not dist.is_initialized() or dist.get_rank() == 0:
        with suppress(OSError):
            text = path.read_text()
    if dist.is_initialized():
        shared = [text]
        dist.broadcast_object_list(shared, src=0)
        text = shared[0]
    if text is None:  # a checkpoint of a run without these metrics
        return None
    try:
        change = EntropyChange()
        change.load_state_dict(json.loads(text))
        return change
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("verl-cov: %s cannot be read (%s): the correlation of entropy changes starts anew", path, error)
        return None
