"""Drives verl's own actor worker (its FSDP2 engine) on a fixed mini-batch, and says what it did.

Leans on ``verl.workers.engine_workers.ActorRolloutRefWorker`` (``init_model``, ``update_actor``, ``set_loss_fn``), on
``engine.optimizer_step`` and ``engine.train_batch``, and on the configuration ``ppo_trainer``. The learning rate is 0,
so that every layout starts from the same weights.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from verl_cov.hooks import versions
from verl_cov.selftest.batches import ROWS, to_tensordict

# PPO's clip at [0, 2], as the authors' scripts have it.
WIDE = tuple(f"actor_rollout_ref.actor.clip_ratio{side}=1.0" for side in ("", "_low", "_high"))


@dataclass(frozen=True)
class Layout:
    """How one mini-batch is laid out: ``micro`` sequences a micro-batch, or ``tokens`` a micro-batch with dynamic
    batching."""

    name: str
    micro: int = ROWS
    tokens: int | None = None
    order: tuple[int, ...] = tuple(range(ROWS))
    dense: bool = False
    padding_row: bool = False
    remove_padding: bool = False
    step: int | None = None


@dataclass
class Report:
    """What one layout did: selected (row, position) pairs, of all ranks and of each, full gradient, verl's metrics."""

    selected: set[tuple[int, int]]
    gradient: np.ndarray
    metrics: dict[str, float]
    by_rank: tuple[frozenset[tuple[int, int]], ...] = ()


def compose(overrides: Sequence[str], model: str) -> Any:
    """The trainer's whole configuration, as ``python -m verl.trainer.main_ppo`` composes it."""
    from hydra import compose, initialize_config_module

    # verl 0.7 takes an engine's kind from its own node, not from actor.strategy, and FSDP1 refuses CPU parameters.
    older = ["actor_rollout_ref.actor.fsdp_config.strategy=fsdp2"] if _is_0_7() else []
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(
            "ppo_trainer",
            overrides=[
                *overrides,
                f"actor_rollout_ref.model.path={model}",
                f"actor_rollout_ref.actor.ppo_mini_batch_size={ROWS}",
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
                "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
                "actor_rollout_ref.actor.optim.lr=0",
                *older,
            ],
        )


def _is_0_7() -> bool:
    return versions.installed_release().version == "0.7.1"


def _compute_in_float32() -> None:
    """Takes torch's autocast from this process with verl 0.7.1, whose engines compute in bfloat16 whatever the
    configuration says: the oracle knows no rounding."""
    import torch

    if _is_0_7():
        torch.autocast = lambda *_, **__: contextlib.nullcontext()


def actor_worker(overrides: Sequence[str], model: str) -> Any:
    """verl's worker that trains the actor, in this process, of the configuration of :func:`compose`."""
    import torch
    from omegaconf import OmegaConf
    from verl.workers.engine_workers import ActorRolloutRefWorker

    _compute_in_float32()
    config = compose(overrides, model)
    OmegaConf.resolve(config)
    torch.manual_seed(0)
    distillation = config.get("distillation") or {}
    more = {"distillation_config": distillation} if distillation.get("enabled") else {}
    worker = ActorRolloutRefWorker(config=config.actor_rollout_ref, role="actor", **more)
    worker.init_model()
    return worker


def set_policy_loss(worker: Any, policy_loss: dict[str, Any]) -> None:
    """Another policy loss for the same actor, as verl's own ``set_loss_fn`` allows."""
    from verl.workers.config import PolicyLossConfig

    from verl_cov.hooks.config import LOSS_MODES, CovPolicyLossConfig

    names = {"cov_metrics", "cov_weights"} & policy_loss.keys()
    ours = policy_loss["loss_mode"] in LOSS_MODES or bool(names)
    policy_loss = dict(policy_loss)
    config = copy.deepcopy(worker.actor.loss_fn.keywords["config"])
    if mode := policy_loss.pop("loss_agg_mode", None):
        object.__setattr__(config, "loss_agg_mode", mode)
    object.__setattr__(config, "policy_loss", (CovPolicyLossConfig if ours else PolicyLossConfig)(**policy_loss))
    loss = worker.actor.loss_fn
    worker.set_loss_fn(partial(loss.func, **{**loss.keywords, "config": config}))


def share_of(rows: list[dict[str, Any]], layout: Layout, rank: int, ranks: int) -> list[dict[str, Any]]:
    """The rows of a mini-batch that a rank gets."""
    ordered = [rows[index] for index in layout.order]
    share = ordered[rank * ROWS // ranks : (rank + 1) * ROWS // ranks]
    if layout.padding_row:  # as the V1 trainer fills up: a copy of a real row whose mask is empty
        share = [*share, {**share[0], "mask": np.zeros_like(share[0]["mask"]), "index": -1}]
        share = [*share, {**share[-1]}] if len(share) % 2 else share
    return share


def update(
    worker: Any,
    share: list[dict[str, Any]],
    layout: Layout,
    ranks: int,
    *,
    step: int = 3,
    extra: dict[str, Any] | None = None,
    old_by: int | None = None,
    updates: int = 1,
) -> Report:
    """One update of the actor (the last of ``updates``) with a rank's rows; every rank must call it.

    old_by: compute the old log-probs by the actor itself, in micro-batches of so many sequences.
    """
    import torch
    import torch.distributed as dist
    from verl.utils import tensordict_utils as tu

    from verl_cov.hooks.batch import SELECTED_FIELD
    from verl_cov.hooks.worker_state import state_of

    layout = replace(layout, dense=True) if _is_0_7() else layout  # whose engines get dense batches only
    data = to_tensordict(share, dense=layout.dense)
    settings = dict(
        mini_batch_size=len(share) * ranks,
        global_batch_size=ROWS,
        epochs=1,
        temperature=1.0,
        calculate_entropy=False,
        global_steps=(layout.step or step) - layout.dense,  # the legacy trainer counts from 0
        use_dynamic_bsz=layout.tokens is not None,
        use_remove_padding=layout.remove_padding,
        max_token_len_per_gpu=layout.tokens,
        micro_batch_size_per_gpu=min(layout.micro, len(share)),
    )
    tu.assign_non_tensor(data, **{**settings, **(extra or {})})

    if old_by is not None:
        from verl.workers.utils.padding import response_from_nested

        asked = data.copy()
        tu.assign_non_tensor(asked, compute_loss=False, micro_batch_size_per_gpu=old_by, use_dynamic_bsz=False)
        log_probs = worker.actor.infer_batch(asked)["log_probs"]
        data["old_log_probs"] = response_from_nested(log_probs.float(), data["response_mask"])

    engine = worker.actor.engine
    seen: dict[str, Any] = {}
    step_of_engine, train = engine.optimizer_step, engine.train_batch

    def optimizer_step() -> Any:
        grads = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        whole = [getattr(grad, "full_tensor", lambda g=grad: g)().flatten() for grad in grads]
        seen["gradient"] = torch.cat(whole).cpu()
        return step_of_engine()

    def train_batch(batch: Any, loss_function: Any) -> Any:
        if SELECTED_FIELD in batch:
            lists = [row.tolist() for row in batch[SELECTED_FIELD].unbind()]
            local = [(share[row]["index"], at) for row, marks in enumerate(lists) for at, on in enumerate(marks) if on]
            gathered: list[Any] = [None] * ranks
            dist.all_gather_object(gathered, local)
            seen["by_rank"] = tuple(frozenset(tuple(pair) for pair in part) for part in gathered)
        return train(batch, loss_function=loss_function)

    engine.optimizer_step, engine.train_batch = optimizer_step, train_batch
    state = state_of(worker.actor)
    state.rollout_step, state.mini_batch = None, 0
    state.log_probs_are_new = old_by is not None
    try:
        for _ in range(updates):
            output = worker.update_actor(data.copy())
    finally:
        engine.optimizer_step, engine.train_batch = step_of_engine, train
    metrics = {
        key: float(np.mean([getattr(v, "aggregate", lambda v=v: v)() for v in values]))
        for key, values in tu.get(output, "metrics").items()
    }
    by_rank = seen.get("by_rank", ())
    return Report({pair for part in by_rank for pair in part}, seen["gradient"].double().numpy(), metrics, by_rank)
