"""Runs verl's actor worker over several rollouts with numbers that move, in real processes, and reports what it did.

As :mod:`tests.hooks.engine`, of which it makes the rollouts: ``python -m tests.hooks.target_engine SPEC RANK``.
"""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.hooks import engine


@dataclass(frozen=True)
class Case:
    """Rollouts, one for each seed, with one policy loss.

    Args:
        stop_at: after so many rollouts a checkpoint is saved, the worker forgets everything, and loads it.
        entropy_coeff: the actor's, whose updates then compute entropies.
        edit: of the rows of each rollout.
        loads: a policy loss to load the checkpoint with, where it is another one.
    """

    policy_loss: dict[str, Any]
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    stop_at: int | None = None
    entropy_coeff: float | None = None
    edit: Any = None
    loads: dict[str, Any] | None = None


@dataclass(frozen=True)
class Spec:
    model: str
    overrides: tuple[str, ...]
    cases: dict[str, Case]
    ranks: int = 1


@dataclass
class Report:
    """What one case did at each rollout. set_to: [ranks][rollouts], the values in the configuration that each rank's
    losses had; collectives: their number on rank 0."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    gradients: list[np.ndarray] = field(default_factory=list)
    set_to: list[list[dict[str, float]]] = field(default_factory=list)
    collectives: list[int] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    error: str = ""


def run(spec: Spec, timeout: float = 3000) -> dict[str, Report]:
    """Returns {case: Report}."""
    return engine.launch("tests.hooks.target_engine", spec, timeout)


# --- inside a rank ----------------------------------------------------------------------------------------------------


def _rank_main(path: Path, rank: int) -> None:
    import torch

    torch.set_num_threads(1)
    spec: Spec = pickle.loads(path.read_bytes())
    import verl  # noqa: F401  (loads the plugin)
    from omegaconf import OmegaConf
    from verl.workers.engine_workers import ActorRolloutRefWorker

    config = engine.compose(spec.overrides, spec.model)
    OmegaConf.resolve(config)
    torch.manual_seed(0)
    worker = ActorRolloutRefWorker(config=config.actor_rollout_ref, role="actor")
    worker.init_model()
    counts = _count_collectives()
    reports = {name: _run(worker, spec, case, rank, path.parent / name, counts) for name, case in spec.cases.items()}
    if rank == 0:
        (path.parent / "report.pickle").write_bytes(pickle.dumps(reports))


def _run(worker: Any, spec: Spec, case: Case, rank: int, folder: Path, counts: Counter) -> Report:
    import torch.distributed as dist

    report = Report()
    _forget(worker)
    engine.set_policy_loss(worker, case.policy_loss)
    coefficient = 0.0 if case.entropy_coeff is None else case.entropy_coeff
    object.__setattr__(worker.actor.loss_fn.keywords["config"], "entropy_coeff", coefficient)
    extra = {"calculate_entropy": case.entropy_coeff is not None}
    mine: list[dict[str, float]] = []
    for number, seed in enumerate(case.seeds):
        if number == case.stop_at:
            worker.save_checkpoint(str(folder), global_step=number)
            dist.barrier()
            _forget(worker)
            if case.loads is not None:
                engine.set_policy_loss(worker, case.loads)
            worker.load_checkpoint(str(folder))
            report.files = sorted(each.name for each in folder.iterdir())
        rollout = engine.Spec(spec.model, (), (), ranks=spec.ranks, extra=extra, edit=case.edit)
        before = counts.total()
        with _watched(worker, mine):
            try:
                one = engine.update(worker, rollout, engine.Layout("rollout", micro=4, step=number + 1), rank, seed)
            except RuntimeError as error:
                report.error = str(error)
                break
        report.collectives.append(counts.total() - before)
        report.metrics.append(one.metrics)
        report.gradients.append(one.gradient)
    report.set_to = [[]] * spec.ranks
    dist.all_gather_object(report.set_to, mine)
    return report


def _forget(worker: Any) -> None:
    """What a new process has not."""
    if hasattr(worker.actor, "_verl_cov"):
        del worker.actor._verl_cov


def _watched(worker: Any, values: list[dict[str, float]]) -> Any:
    """Notes what the losses read: once for each call of the engine."""
    from contextlib import contextmanager

    @contextmanager
    def watch():
        train = worker.actor.engine.train_batch

        def train_batch(data, loss_function):
            inner = loss_function
            while "config" not in getattr(inner, "keywords", {}):
                inner = inner.args[0]
            config = inner.keywords["config"]
            values.append({"entropy_coeff": config.entropy_coeff, **vars(config.policy_loss)})
            for weight in (values[-1].get("cov_weights") or {}).values():
                values[-1] |= weight
            for name in ("cov_target", "schedules"):
                values[-1].pop(name, None)
            return train(data, loss_function=loss_function)

        worker.actor.engine.train_batch = train_batch
        try:
            yield
        finally:
            worker.actor.engine.train_batch = train

    return watch()


def _count_collectives() -> Counter:
    import torch.distributed as dist

    counts: Counter = Counter()
    for name in ("all_reduce", "all_gather", "all_gather_object", "broadcast", "all_gather_into_tensor", "barrier"):
        original = getattr(dist, name)

        def counted(*args: Any, original: Any = original, name: str = name, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(*args, **kwargs)

        setattr(dist, name, counted)
    return counts


if __name__ == "__main__":
    from tests.hooks import target_engine

    target_engine._rank_main(Path(sys.argv[1]), int(sys.argv[2]))
