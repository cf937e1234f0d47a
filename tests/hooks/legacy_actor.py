"""Runs the legacy actor of verl 0.6 and 0.7 (``DataParallelPPOActor``, gloo) on fixed rows, as :mod:`.engine` engines.

Sixteen rows are two mini-batches of eight: with one, that verl takes the current policy for the old one. FSDP2 shards
the model where there are ranks; the learning rate is 0. The mixed precision that this actor hard-codes is off: it would
round the log-probs that are compared.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.hooks import engine
from tests.hooks.engine import ROWS, Layout

MINI_BATCH = ROWS // 2
WIDTH = 16


@dataclass(frozen=True)
class Spec:
    """model: folder. variants: {name: fields of policy_loss}. verl: a folder with the one to import."""

    model: str
    layouts: tuple[Layout, ...]
    variants: dict[str, dict[str, Any]]
    ranks: int = 1
    overrides: tuple[str, ...] = ()
    verl: str | None = None


@dataclass
class Report:
    """Of each mini-batch: the selected (row, position) pairs and the full gradient; and the actor's metrics."""

    selected: list[set[tuple[int, int]]]
    gradient: list[np.ndarray]
    metrics: dict[str, Any]


def run(spec: Spec, timeout: float = 300) -> dict[tuple[str, str], Report | str]:
    """{(variant, layout name): what it did, or the error that making or training the actor raised}."""
    return engine.launch("tests.hooks.legacy_actor", spec, timeout)


# --- inside a rank ----------------------------------------------------------------------------------------------------


def _rank_main(path: Path, rank: int) -> None:
    import os

    import torch
    import torch.distributed as dist

    spec: Spec = pickle.loads(path.read_bytes())
    torch.set_num_threads(1)
    torch.autocast = lambda *_, **__: contextlib.nullcontext()  # type: ignore[assignment, misc]
    import verl

    from tests.hooks import older_verl
    from verl_cov.hooks.status import status

    older_verl.prepare()
    assert status.error is None, status.error
    if spec.verl is not None:
        assert verl.__file__.startswith(spec.verl), verl.__file__
    dist.init_process_group("gloo", init_method=os.environ["DIST_INIT_METHOD"], rank=rank, world_size=spec.ranks)
    reports: dict[tuple[str, str], Report | str] = {}
    for variant, policy_loss in spec.variants.items():
        for layout in spec.layouts:
            try:
                reports[variant, layout.name] = _update(spec, layout, policy_loss, rank)
            except (ValueError, RuntimeError) as error:
                reports[variant, layout.name] = str(error)
    if rank == 0:
        (path.parent / "report.pickle").write_bytes(pickle.dumps(reports))
    dist.destroy_process_group()


def _config(spec: Spec, layout: Layout, policy_loss: dict[str, Any]) -> Any:
    """The actor's configuration as that verl's worker makes it."""
    from omegaconf import OmegaConf, open_dict
    from verl.utils.config import omega_conf_to_dataclass

    actor = engine.compose(spec.overrides, spec.model).actor_rollout_ref.actor
    OmegaConf.resolve(actor)
    with open_dict(actor):
        actor.ppo_mini_batch_size = MINI_BATCH // spec.ranks
        actor.ppo_micro_batch_size_per_gpu = min(layout.micro, MINI_BATCH // spec.ranks)
        actor.use_dynamic_bsz = layout.tokens is not None
        actor.ppo_max_token_len_per_gpu = layout.tokens or 1
        actor.use_torch_compile = actor.use_remove_padding = False  # packing needs flash-attn
        if policy_loss["loss_mode"].startswith("verl_cov.") or "cov_metrics" in policy_loss:
            actor.policy_loss["_target_"] = "verl_cov.hooks.config.CovPolicyLossConfig"
        actor.policy_loss.update(policy_loss)
    return omega_conf_to_dataclass(actor)


def _update(spec: Spec, layout: Layout, policy_loss: dict[str, Any], rank: int) -> Report:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM
    from verl import DataProto
    from verl.workers.actor.dp_actor import DataParallelPPOActor

    from verl_cov.hooks.batch import SELECTED_FIELD

    model = AutoModelForCausalLM.from_pretrained(spec.model, dtype=torch.float32)
    if spec.ranks > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (spec.ranks,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    actor = DataParallelPPOActor(_config(spec, layout, policy_loss), model, optimizer)

    mine = _rows_of(spec.ranks, rank)
    rows = engine.mini_batch()
    data = DataProto.from_dict(_dense([rows[index] for index in mine]), meta_info={"temperature": 1.0})
    found = Report([], [], {})
    step = actor._optimizer_step

    def optimizer_step():
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        full = [getattr(grad, "full_tensor", lambda g=grad: g)().flatten() for grad in grads]
        found.gradient.append(torch.cat(full).double().numpy().copy())
        return step()

    actor._optimizer_step = optimizer_step
    cut = DataProto.split
    mini_batches: list[Any] = []

    def split(self, size):
        parts = cut(self, size)
        if len(self) == len(mine):
            mini_batches.extend(parts)
        return parts

    DataProto.split = split
    try:
        found.metrics = actor.update_policy(data)
    finally:
        DataProto.split = cut
    for number, part in enumerate(mini_batches):
        if SELECTED_FIELD in part.batch.keys():  # noqa: SIM118  an older TensorDict
            first = number * MINI_BATCH // spec.ranks
            local = [(mine[first + row], int(at)) for row, at in part.batch[SELECTED_FIELD].nonzero().tolist()]
            gathered: list[Any] = [None] * spec.ranks
            dist.all_gather_object(gathered, local)
            found.selected.append({pair for share in gathered for pair in share})
    return found


def _rows_of(ranks: int, rank: int) -> list[int]:
    """Rows 0 to 7 are the first mini-batch, whatever the number of ranks."""
    share = MINI_BATCH // ranks
    return [half * MINI_BATCH + rank * share + row for half in (0, 1) for row in range(share)]


def _dense(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the legacy trainer's batch has: prompts padded on the left, responses on the right."""
    import torch

    def left(values: np.ndarray) -> Any:
        return np.pad(values, (WIDTH - len(values), 0))

    def right(values: np.ndarray) -> Any:
        return np.pad(values, (0, WIDTH - len(values)))

    def stack(each: list[Any]) -> Any:
        return torch.from_numpy(np.stack(each))

    masks = [
        np.concatenate([left(np.ones(len(row["prompt"]), int)), right(np.ones(len(row["response"]), int))])
        for row in rows
    ]
    return dict(
        input_ids=stack([np.concatenate([left(row["prompt"]), right(row["response"])]) for row in rows]),
        attention_mask=stack(masks),
        position_ids=stack([np.maximum(mask.cumsum() - 1, 0) for mask in masks]),
        responses=stack([right(row["response"]) for row in rows]),
        response_mask=stack([right(row["mask"]) for row in rows]),
        old_log_probs=stack([right(row["old_log_prob"]) for row in rows]),
        advantages=stack([right(row["advantage"]) for row in rows]),
    )


if __name__ == "__main__":
    from tests.hooks import legacy_actor

    legacy_actor._rank_main(Path(sys.argv[1]), int(sys.argv[2]))
