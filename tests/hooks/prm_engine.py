"""Runs the PRM's worker and its reference's (verl's FSDP2 engine, gloo) in real processes, and reports what they did.

As :mod:`tests.hooks.engine` does for the actor: ``python -m tests.hooks.prm_engine SPEC RANK``, of which rank 0 writes
the report. Every case starts from the weights in the model's folder.
"""

from __future__ import annotations

import functools
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.hooks import engine

N = 4  # responses a prompt
BETA = 0.5


@dataclass(frozen=True)
class Case:
    """One call of ``train_and_score`` on all rows.

    Args:
        micro: sequences a micro-batch; tokens: the same with dynamic batching. mini: responses a mini-batch, over all
            ranks; None: all.
        order: of the rows, dealt to the ranks in this order. padding: rows whose mask is empty, at the end of each
            rank's share; empty: rows (by index) whose mask is.
        reference: "given" or "own", the log-probs that the reference's worker gives the same rows.
    """

    name: str
    loss: str = "ce"
    micro: int = engine.ROWS
    tokens: int | None = None
    mini: int | None = None
    epochs: int = 1
    shuffle: bool = False
    order: tuple[int, ...] = tuple(range(engine.ROWS))
    padding: int = 0
    empty: tuple[int, ...] = ()
    packed: bool = False
    lr: float = 1e-3
    reference: str = "given"


@dataclass(frozen=True)
class Spec:
    model: str
    cases: tuple[Case, ...]
    ranks: int = 1


@dataclass
class Report:
    """What one case did, over all ranks; {row: log-probs of the response} for the rows that are no padding.

    Args:
        scored: what ``train_and_score`` put. reference: what the frozen reference gives. after: what the PRM gives
            afterwards. gradient: of the first update. losses, grad_norms: verl's metrics, one an update.
    """

    scored: dict[int, np.ndarray]
    reference: dict[int, np.ndarray]
    after: dict[int, np.ndarray]
    gradient: np.ndarray
    losses: list[float]
    grad_norms: list[float]
    updates: int


def rows() -> list[dict[str, Any]]:
    """The mini-batch of :mod:`tests.hooks.engine` with reference log-probs, soft outcomes and opponents."""
    random = np.random.default_rng(5)
    found = engine.mini_batch()
    for row in found:
        length = len(row["response"])
        row["reference"] = (-random.exponential(1.0, length) - 5.0).astype(np.float32)
        row["outcome"] = float(random.choice([0.0, 0.25, 1.0]))
        row["opponent"] = float(random.normal())
    return found


def run(spec: Spec, timeout: float = 300) -> dict[str, Report]:
    """{case name: Report}"""
    return engine.launch("tests.hooks.prm_engine", spec, timeout)


# --- inside a rank ----------------------------------------------------------------------------------------------------


def _rank_main(path: Path, rank: int) -> None:
    import torch

    torch.set_num_threads(1)
    spec: Spec = pickle.loads(path.read_bytes())
    import verl  # noqa: F401  (loads the plugin)
    from omegaconf import OmegaConf
    from verl.workers.engine_workers import TrainingWorker

    from verl_cov.hooks.prime.prm_settings import prime_in, worker_config
    from verl_cov.hooks.prime.prm_worker import PrmWorker

    config = engine.compose(("+verl_cov=[prime,cpu]", "prime.optim.lr=1e-3"), spec.model)
    OmegaConf.resolve(config)
    prime = prime_in(config)
    torch.manual_seed(0)
    prm = PrmWorker(config=worker_config(config, prime, 100, reference=False))
    reference = TrainingWorker(config=worker_config(config, prime, 100, reference=True))
    reference.reset()
    reports = {case.name: _case(prm, reference, spec, case, rank) for case in spec.cases}
    if rank == 0:
        (path.parent / "report.pickle").write_bytes(pickle.dumps(reports))


def _case(prm: Any, reference: Any, spec: Spec, case: Case, rank: int) -> Report:
    import torch
    import torch.distributed as dist
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import response_from_nested

    from verl_cov.hooks.prime.prm_worker import LOG_PROBS, OPPONENT, OUTCOME, REFERENCE, prm_loss

    prm.reset()
    for group in prm.engine.optimizer.param_groups:
        group["lr"] = case.lr
    prm.set_loss_fn(functools.partial(prm_loss, beta=BETA, kind=case.loss))

    ordered = [rows()[index] for index in case.order]
    for row in ordered:
        if row["index"] in case.empty:
            row["mask"] = np.zeros_like(row["mask"])
    share = ordered[rank * len(ordered) // spec.ranks : (rank + 1) * len(ordered) // spec.ranks]
    copies = [{**share[0], "mask": np.zeros_like(share[0]["mask"]), "index": -1} for _ in range(case.padding)]
    share = [*share, *copies]

    def batch(**settings: Any) -> Any:
        data = engine.to_tensordict(share, dense=False)
        tu.assign_non_tensor(
            data,
            temperature=1.0,
            calculate_entropy=False,
            use_dynamic_bsz=case.tokens is not None,
            use_remove_padding=case.packed,
            max_token_len_per_gpu=case.tokens,
            micro_batch_size_per_gpu=min(case.micro, len(share)),
            **settings,
        )
        return data

    def infer(worker: Any) -> Any:
        data = batch(compute_loss=False)
        return response_from_nested(worker.infer_batch(data)["log_probs"].float(), data["response_mask"])

    def gathered(log_probs: Any) -> dict[int, np.ndarray]:
        own = {row["index"]: found.numpy() for row, found in zip(share, log_probs.unbind(), strict=True)}
        parts: list[Any] = [None] * spec.ranks
        dist.all_gather_object(parts, own)
        return {index: found for part in parts for index, found in part.items() if index >= 0}

    own = infer(reference)
    total = len(share) * spec.ranks
    data = batch(
        global_batch_size=case.mini or total,
        mini_batch_size=case.mini or total,
        epochs=case.epochs,
        seed=7,
        dataloader_kwargs={"shuffle": case.shuffle},
    )
    given = torch.nested.as_nested_tensor([torch.from_numpy(row["reference"]) for row in share], layout=torch.jagged)
    data[REFERENCE] = own if case.reference == "own" else given
    data[OUTCOME] = torch.tensor([row["outcome"] for row in share])
    data[OPPONENT] = torch.tensor([row["opponent"] for row in share])

    gradients: list[np.ndarray] = []
    step = prm.engine.optimizer_step

    def optimizer_step() -> Any:
        grads = [parameter.grad for parameter in prm.engine.module.parameters() if parameter.grad is not None]
        whole = torch.cat([getattr(grad, "full_tensor", lambda g=grad: g)().flatten() for grad in grads])
        gradients.append(whole.double().numpy())
        return step()

    prm.engine.optimizer_step = optimizer_step
    try:
        output = prm.train_and_score(data)
    finally:
        del prm.engine.optimizer_step
    metrics = tu.get(output, "metrics")
    return Report(
        scored=gathered(output[LOG_PROBS]),
        reference=gathered(own),
        after=gathered(infer(prm)),
        gradient=gradients[0],
        losses=[_number(value) for value in metrics["prm_loss"]],
        grad_norms=[_number(value) for value in metrics["grad_norm"]],
        updates=len(gradients),
    )


def _number(value: Any) -> float:
    return float(getattr(value, "aggregate", lambda: value)())


if __name__ == "__main__":
    # Through the package, so that the report's classes are pickled under a name the test can import.
    from tests.hooks import prm_engine

    prm_engine._rank_main(Path(sys.argv[1]), int(sys.argv[2]))
