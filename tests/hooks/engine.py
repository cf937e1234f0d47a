"""Runs verl's own actor worker (FSDP2 engine, gloo) in real processes on a fixed mini-batch, and reports what it did.

Each rank is an interpreter of its own, started as ``python -m tests.hooks.engine SPEC RANK``; rank 0 writes a report
that the tests read. The learning rate is 0, so that every layout starts from the same weights.
"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verl_cov.hooks.worker_state import state_of

ROWS = 16
# Columns of a dense batch's prompts, and of its responses. verl 0.7.1's engines, without remove_padding, let a sequence
# attend to as many tokens as the responses have columns: as many as the longest sequence has, or it is not the model.
PROMPT, RESPONSE = 16, 24


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


@dataclass(frozen=True)
class Spec:
    """A run: model folder, config overrides, the layouts to try one after the other for each variant of the policy loss
    ({name: its fields, and ``loss_agg_mode``}; None: as the overrides say) and each seed of the batch, ranks, rollout
    step. old_by: compute the old log-probs by the actor itself, in micro-batches of so many sequences. updates: on the
    same mini-batch, of which the last is reported. verl: a folder with the verl to import, None: the installed one;
    verl_ranks: by which ranks, None: by all."""

    model: str
    overrides: tuple[str, ...]
    layouts: tuple[Layout, ...]
    ranks: int = 1
    step: int = 3
    variants: dict[str, dict[str, Any]] | None = None
    seeds: tuple[int, ...] = (0,)
    extra: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[list[dict[str, Any]]], None] | None = None
    old_by: int | None = None
    updates: int = 1
    verl: str | None = None
    verl_ranks: tuple[int, ...] | None = None


@dataclass
class Report:
    """What one layout did: selected (row, position) pairs, full gradient, verl's metrics."""

    selected: set[tuple[int, int]]
    gradient: np.ndarray
    metrics: dict[str, float]


def mini_batch(seed: int = 0) -> list[dict[str, Any]]:
    """Sixteen sequences of prompts and responses of several lengths, with old log-probs, advantages and masks."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(ROWS):
        prompt, response = random.integers(3, 9), random.integers(2, 14)
        mask = np.ones(response, dtype=np.int64)
        if response > 6 and index % 3 == 0:
            mask[3:5] = 0  # a tool's answer inside the response
        rows.append(
            dict(
                index=index,
                prompt=random.integers(0, 200, prompt),
                response=random.integers(0, 200, response),
                mask=mask,
                old_log_prob=-random.exponential(1.5, response).astype(np.float32) - 4.0,
                advantage=np.full(response, random.normal(), dtype=np.float32),
                entropy=random.exponential(1.0, response).astype(np.float32),
                score=float(random.integers(0, 2)),
                uid=f"prompt {index // 4}",
            )
        )
    # Two sequences alike in everything: their tokens tie, and the cut between them must not move the gradient.
    rows[5] = {**rows[4], "index": 5}
    return rows


def run(spec: Spec, timeout: float = 3000) -> dict[Any, Report]:
    """Run every layout of ``spec`` on ``spec.ranks`` processes.

    Returns {layout name: Report}, or with variants {(variant name, seed, layout name): Report}.
    """
    return launch("tests.hooks.engine", spec, timeout)


def launch(module: str, spec: Any, timeout: float) -> Any:
    """``python -m module SPEC RANK`` for each of ``spec.ranks`` ranks; returns the report that rank 0 wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.pickle"
        path.write_bytes(pickle.dumps(spec))
        environment = {
            **os.environ,
            "VERL_PLATFORM": "cpu",
            "VERL_USE_EXTERNAL_MODULES": "verl_cov.plugin",  # how verl before 0.9 is told
            "HF_HUB_OFFLINE": "1",
            "WORLD_SIZE": str(spec.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
            "DIST_INIT_METHOD": f"file://{folder}/rendezvous",
            "OMP_NUM_THREADS": "1",
        }
        other = {} if getattr(spec, "verl", None) is None else {"PYTHONPATH": spec.verl}
        by = getattr(spec, "verl_ranks", None)
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", module, str(path), str(rank)],
                env={
                    **environment,
                    "RANK": str(rank),
                    "LOCAL_RANK": "0",
                    **(other if by is None or rank in by else {}),
                },
                cwd=Path(__file__).parents[2],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(spec.ranks)
        ]
        try:
            outputs = [process.communicate(timeout=timeout)[0] for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        for process, output in zip(ranks, outputs, strict=True):
            assert process.returncode == 0, output[-6000:]
        return pickle.loads((Path(folder) / "report.pickle").read_bytes())


def compose(overrides: tuple[str, ...], model: str) -> Any:
    """The trainer's whole configuration, as ``python -m verl.trainer.main_ppo`` composes it."""
    from hydra import compose, initialize_config_module

    from tests.hooks import older_verl

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
                *older_verl.overrides(),
            ],
        )


# --- inside a rank ----------------------------------------------------------------------------------------------------


def _rank_main(path: Path, rank: int) -> None:
    import torch

    torch.set_num_threads(1)
    spec: Spec = pickle.loads(path.read_bytes())
    import verl  # noqa: F401  (loads the plugin)
    from omegaconf import OmegaConf

    from tests.hooks import older_verl

    older_verl.prepare()
    from verl.workers.engine_workers import ActorRolloutRefWorker

    config = compose(spec.overrides, spec.model)
    OmegaConf.resolve(config)
    torch.manual_seed(0)
    distillation = config.get("distillation") or {}
    more = {"distillation_config": distillation} if distillation.get("enabled") else {}
    worker = ActorRolloutRefWorker(config=config.actor_rollout_ref, role="actor", **more)
    worker.init_model()
    reports: dict[Any, Report] = {}
    for layout in spec.layouts if spec.variants is None else ():
        reports[layout.name] = _update(worker, spec, layout, rank)
    for name, policy_loss in (spec.variants or {}).items():
        _set_policy_loss(worker, policy_loss)
        for seed in spec.seeds:
            for layout in spec.layouts:
                reports[name, seed, layout.name] = _update(worker, spec, layout, rank, seed)
    if rank == 0:
        (path.parent / "report.pickle").write_bytes(pickle.dumps(reports))


def _set_policy_loss(worker: Any, policy_loss: dict[str, Any]) -> None:
    """Another policy loss for the same actor, as verl's own ``set_loss_fn`` allows."""
    from functools import partial

    from verl.workers.config import PolicyLossConfig

    from verl_cov.hooks.config import LOSS_MODES, CovPolicyLossConfig

    ours = policy_loss["loss_mode"] in LOSS_MODES or "cov_metrics" in policy_loss
    policy_loss = dict(policy_loss)
    config = copy.deepcopy(worker.actor.loss_fn.keywords["config"])
    if mode := policy_loss.pop("loss_agg_mode", None):
        object.__setattr__(config, "loss_agg_mode", mode)
    object.__setattr__(config, "policy_loss", (CovPolicyLossConfig if ours else PolicyLossConfig)(**policy_loss))
    loss = worker.actor.loss_fn
    worker.set_loss_fn(partial(loss.func, **{**loss.keywords, "config": config}))


def _update(worker: Any, spec: Spec, layout: Layout, rank: int, seed: int = 0) -> Report:
    import torch
    import torch.distributed as dist
    from verl.utils import tensordict_utils as tu

    from tests.hooks import older_verl
    from verl_cov.hooks.batch import SELECTED_FIELD

    layout = older_verl.known(layout)
    rows = mini_batch(seed)
    if spec.edit:
        spec.edit(rows)
    ordered = [rows[index] for index in layout.order]
    share = ordered[rank * ROWS // spec.ranks : (rank + 1) * ROWS // spec.ranks]
    if layout.padding_row:  # as the V1 trainer fills up: a copy of a real row whose mask is empty
        share = [*share, {**share[0], "mask": np.zeros_like(share[0]["mask"]), "index": -1}]
        share = [*share, {**share[-1]}] if len(share) % 2 else share
    data = to_tensordict(share, dense=layout.dense)
    settings = dict(
        mini_batch_size=len(share) * spec.ranks,
        global_batch_size=ROWS,
        epochs=1,
        temperature=1.0,
        calculate_entropy=False,
        global_steps=(layout.step or spec.step) - layout.dense,  # the legacy trainer counts from 0
        use_dynamic_bsz=layout.tokens is not None,
        use_remove_padding=layout.remove_padding,
        max_token_len_per_gpu=layout.tokens,
        micro_batch_size_per_gpu=min(layout.micro, len(share)),
    )
    tu.assign_non_tensor(data, **{**settings, **spec.extra})

    if spec.old_by is not None:
        from verl.workers.utils.padding import response_from_nested

        asked = data.copy()
        tu.assign_non_tensor(asked, compute_loss=False, micro_batch_size_per_gpu=spec.old_by, use_dynamic_bsz=False)
        log_probs = worker.actor.infer_batch(asked)["log_probs"]
        data["old_log_probs"] = response_from_nested(log_probs.float(), data["response_mask"])

    engine = worker.actor.engine
    seen: dict[str, Any] = {}
    step, train = engine.optimizer_step, engine.train_batch

    def optimizer_step():
        grads = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        seen["gradient"] = torch.cat([getattr(grad, "full_tensor", lambda g=grad: g)().flatten() for grad in grads])
        return step()

    def train_batch(batch, loss_function):
        if SELECTED_FIELD in batch:
            chosen = batch[SELECTED_FIELD]
            lists = [row.tolist() for row in chosen.unbind()]
            local = [(share[row]["index"], at) for row, marks in enumerate(lists) for at, on in enumerate(marks) if on]
            gathered: list[Any] = [None] * spec.ranks
            dist.all_gather_object(gathered, local)
            seen["selected"] = {tuple(pair) for part in gathered for pair in part}
        return train(batch, loss_function=loss_function)

    engine.optimizer_step, engine.train_batch = optimizer_step, train_batch
    state = state_of(worker.actor)
    state.rollout_step, state.mini_batch = None, 0
    state.log_probs_are_new = spec.old_by is not None
    try:
        for _ in range(spec.updates):
            output = worker.update_actor(data.copy())
    finally:
        engine.optimizer_step, engine.train_batch = step, train
    metrics = {
        key: np.mean([getattr(v, "aggregate", lambda v=v: v)() for v in values])
        for key, values in tu.get(output, "metrics").items()
    }
    return Report(
        seen.get("selected", set()), seen["gradient"].double().numpy(), {k: float(v) for k, v in metrics.items()}
    )


def to_tensordict(rows: list[dict[str, Any]], dense: bool) -> Any:
    """The batch as the V1 trainer (jagged) or the legacy trainer (dense, padded) hands it to update_actor."""
    import torch
    from verl.utils import tensordict_utils as tu

    def jagged(values: list[np.ndarray]) -> Any:
        return torch.nested.as_nested_tensor([torch.from_numpy(np.asarray(v)) for v in values], layout=torch.jagged)

    def padded(values: list[np.ndarray], width: int = RESPONSE) -> Any:
        return torch.stack([torch.from_numpy(np.pad(v, (0, width - len(v)))) for v in values])

    whole = [np.concatenate([row["prompt"], row["response"]]) for row in rows]
    fields = {"input_ids": jagged(whole), "position_ids": jagged([np.arange(len(ids)) for ids in whole])}
    response = dict(response_mask="mask", old_log_probs="old_log_prob", advantages="advantage", loss_mask="mask")
    if "entropy" in rows[0]:
        response["entropy"] = "entropy"
        for row in rows:
            row["token_scores"] = np.zeros_like(row["entropy"])
            row["token_scores"][-1] = row["score"]
        response["token_level_scores" if dense else "rm_scores"] = "token_scores"
    lay_out = padded if dense else jagged
    fields |= {name: lay_out([row[key] for row in rows]) for name, key in response.items()}
    if dense:
        fields["prompts"] = torch.stack(
            [torch.from_numpy(np.pad(r["prompt"], (PROMPT - len(r["prompt"]), 0))) for r in rows]
        )
        fields["responses"] = padded([row["response"] for row in rows])
        fields["attention_mask"] = torch.stack(
            [
                torch.from_numpy(
                    np.concatenate(
                        [
                            np.pad(np.ones(len(r["prompt"]), int), (PROMPT - len(r["prompt"]), 0)),
                            np.pad(np.ones(len(r["response"]), int), (0, RESPONSE - len(r["response"]))),
                        ]
                    )
                )
                for r in rows
            ]
        )
    else:
        fields["prompts"] = jagged([row["prompt"] for row in rows])
        fields["responses"] = jagged([row["response"] for row in rows])
    extra = {"max_response_len": RESPONSE} if dense else {}
    fields |= {key: jagged([row[key] for row in rows]) for key in ("teacher_ids", "teacher_logprobs") if key in rows[0]}
    for name in ("uid", "session_id"):
        if name in rows[0]:
            fields[name] = [row[name] for row in rows]
    return tu.get_tensordict(fields, non_tensor_dict=extra)


if __name__ == "__main__":
    # Through the package, so that the report's classes are pickled under a name the test can import.
    from tests.hooks import engine

    engine._rank_main(Path(sys.argv[1]), int(sys.argv[2]))
