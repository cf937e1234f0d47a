"""Real gloo ranks for tests: processes that are started once and then run any function of a test module."""

from __future__ import annotations

import atexit
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp


def run_ranks(function: Callable, world: int, *args: Any) -> list[Any]:
    """``[function(rank, world, group, *args) for each rank]``: a process a rank, in a gloo group of ``world`` ranks."""
    pipes = _pool(world)
    for pipe in pipes:
        pipe.send((function, args))
    results = [pipe.recv() for pipe in pipes]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@functools.cache
def _pool(world: int) -> list[Any]:
    context = mp.get_context("spawn")
    rendezvous = Path(tempfile.mkdtemp()) / "rendezvous"
    pipes = []
    for rank in range(world):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(rank, world, rendezvous, theirs), daemon=True)
        process.start()
        atexit.register(process.terminate)
        pipes.append(ours)
    return pipes


def _serve(rank: int, world: int, rendezvous: Path, pipe: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    while True:
        function, args = pipe.recv()
        try:
            pipe.send(function(rank, world, dist.group.WORLD, *args))
        except Exception as error:
            pipe.send(error)
