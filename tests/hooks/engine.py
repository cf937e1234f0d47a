"""Runs verl's own actor worker (FSDP2 engine, gloo) in real processes on a fixed mini-batch, and reports what it did.

Each rank is an interpreter of its own, started as ``python -m tests.hooks.engine SPEC RANK``; rank 0 writes a report
that the tests read. What drives the worker is the self-test's (:mod:`verl_cov.selftest.engine`).
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_cov.selftest import engine as driver
from verl_cov.selftest.batches import PROMPT, RESPONSE, ROWS, mini_batch, to_tensordict
from verl_cov.selftest.engine import Layout, Report, compose, set_policy_loss

__all__ = [
    "PROMPT",
    "RESPONSE",
    "ROWS",
    "Layout",
    "Report",
    "compose",
    "mini_batch",
    "set_policy_loss",
    "to_tensordict",
]


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


# --- inside a rank ----------------------------------------------------------------------------------------------------


def _rank_main(path: Path, rank: int) -> None:
    import torch

    torch.set_num_threads(1)
    spec: Spec = pickle.loads(path.read_bytes())
    import verl  # noqa: F401  (loads the plugin)

    from tests.hooks import older_verl

    older_verl.prepare()
    worker = driver.actor_worker(spec.overrides, spec.model)
    reports: dict[Any, Report] = {}
    for layout in spec.layouts if spec.variants is None else ():
        reports[layout.name] = update(worker, spec, layout, rank)
    for name, policy_loss in (spec.variants or {}).items():
        set_policy_loss(worker, policy_loss)
        for seed in spec.seeds:
            for layout in spec.layouts:
                reports[name, seed, layout.name] = update(worker, spec, layout, rank, seed)
    if rank == 0:
        (path.parent / "report.pickle").write_bytes(pickle.dumps(reports))


def update(worker: Any, spec: Spec, layout: Layout, rank: int, seed: int = 0) -> Report:
    rows = mini_batch(seed)
    if spec.edit:
        spec.edit(rows)
    share = driver.share_of(rows, layout, rank, spec.ranks)
    more = dict(step=spec.step, extra=spec.extra, old_by=spec.old_by, updates=spec.updates)
    return driver.update(worker, share, layout, spec.ranks, **more)


if __name__ == "__main__":
    # Through the package, so that the report's classes are pickled under a name the test can import.
    from tests.hooks import engine

    engine._rank_main(Path(sys.argv[1]), int(sys.argv[2]))
