"""The ranks of a self-test, and what its checks came to: each rank runs every check, and they agree on the outcome."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from verl_cov.selftest.machine import scrubbed

Outcome = Literal["passed", "failed", "not possible"]
LEFT = "Error: "  # in the cause of a check that a rank left half-way
OUTCOMES: tuple[Outcome, ...] = ("failed", "not possible", "passed")
# How long a rank waits for another: one that ended in an error inside a check keeps the others waiting in a collective.
PATIENCE = timedelta(seconds=float(os.environ.get("VERL_COV_SELFTEST_PATIENCE_S", 120)))


class NotPossible(Exception):
    """A check that this machine cannot make; the message says why."""


@dataclass(frozen=True)
class Check:
    """One check. cause: of a failure, or why it is not possible here; "" if it passed."""

    level: str
    name: str
    outcome: Outcome
    cause: str = ""


@dataclass
class Rank:
    """A self-test on one of its ranks.

    Args:
        group: of all ranks, for tensors on ``device``; None if there is one rank.
        gloo: of all ranks, for tensors on the CPU; None if there is one rank.
        peers: of all ranks, for what they agree on; a rank that left a check half-way is out of step in the others.
        timings: what was measured, see :mod:`.speed`; only rank 0's count.
    """

    device: torch.device
    rank: int = 0
    ranks: int = 1
    group: ProcessGroup | None = None
    gloo: ProcessGroup | None = None
    peers: ProcessGroup | None = None
    checks: list[Check] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    lost: bool = False

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def failed(self) -> bool:
        return any(check.outcome == "failed" for check in self.checks)

    def check(self, level: str, name: str, run: Callable[..., str | None], *args: Any) -> None:
        """Makes a check on every rank: ``run(*args)`` returns None, or a line that says what is wrong; it may raise."""
        self.checks.append(Check(level, name, *self._agreed(*self._run(run, args))))

    def measure(self, level: str, name: str, run: Callable[..., None], *args: Any) -> None:
        """Runs what only measures: that it fails is told, and fails nothing."""
        outcome, cause = self._agreed(*self._run(run, args))
        if outcome != "passed":
            self.checks.append(Check(level, name, "not possible", cause))

    def _agreed(self, outcome: Outcome, cause: str) -> tuple[Outcome, str]:
        """The outcome of all ranks: the first failure, with its rank unless all have the same."""
        if self.ranks > 1 and not self.lost:
            everyone: list[Any] = [None] * self.ranks
            try:
                dist.all_gather_object(everyone, (outcome, cause), group=self.peers)
            except RuntimeError as error:  # gloo's, and a timeout
                self.lost = True
                outcome, cause = "failed", cause or f"the ranks lost each other: {_line(error)}"
            else:
                worst = min(everyone, key=_how_bad)
                alike = all(each == worst for each in everyone)
                self.lost = not alike and any(LEFT in why for _, why in everyone)
                outcome, cause = worst
                cause = cause if alike or not cause else f"rank {everyone.index(worst)}: {cause}"
        return outcome, scrubbed(cause)

    def _run(self, run: Callable[..., str | None], args: tuple[Any, ...]) -> tuple[Outcome, str]:
        if self.lost:
            return "not possible", "the ranks lost each other in a check before"
        try:
            cause = run(*args)
        except NotPossible as error:
            return "not possible", str(error)
        except torch.OutOfMemoryError as error:
            return "not possible", f"not enough memory on the device: {_line(error)}"
        except Exception as error:  # of whatever kind: it is the answer
            cause = f"{type(error).__name__.removesuffix('Error')}{LEFT}{_line(error)}"
            if self.ranks > 1:  # at once: the others may end in an error of gloo's or NCCL's
                print(f"rank {self.rank}: {scrubbed(cause)}", file=sys.__stderr__, flush=True)
            return "failed", cause
        return ("passed", "") if cause is None else ("failed", cause)


def _how_bad(found: tuple[Outcome, str]) -> tuple[int, bool]:
    """The order of causes: what a rank says of itself before what it says of a rank that it waits for in vain."""
    outcome, cause = found
    return OUTCOMES.index(outcome), bool(re.search("timed out|connection|pair closure|nccl", cause, re.IGNORECASE))


def _line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [""])[0]


def start(device: str = "auto") -> Rank:
    """Joins the ranks that torchrun started; without it this process is the only one.

    Raises ValueError for a device that is not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {device}: it must be auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here (torch.cuda.is_available() is False)")
    kind = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    rank, ranks, local = (int(os.environ.get(name, number)) for name, number in RANK_VARIABLES)
    if kind == "cpu":
        os.environ["VERL_PLATFORM"] = "cpu"  # before verl is imported, which looks once
        torch.set_num_threads(1)  # more of them, on a busy machine, wait for each other: 1 ms became 3 s
        here = Rank(torch.device("cpu"), rank, ranks)
    else:
        torch.cuda.set_device(local)
        here = Rank(torch.device("cuda", local), rank, ranks)
    if ranks > 1:
        start_group(here)
        here.group = dist.group.WORLD
        here.gloo = dist.new_group(backend="gloo", timeout=PATIENCE) if here.on_cuda else here.group
        here.peers = dist.new_group(backend="gloo", timeout=3 * PATIENCE)
    return here


def leave(here: Rank) -> None:
    """Ends the process groups. Of several ranks each waits for the others, and one that lost them does not return.

    Not destroy_process_group with several: a rank's gloo threads may abort it when another one is gone already.
    """
    if here.ranks == 1:
        if dist.is_initialized():
            dist.destroy_process_group()
        return
    if not here.lost:
        dist.barrier(group=here.peers)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if here.failed else 0)


RANK_VARIABLES = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


def start_group(here: Rank) -> None:
    """Starts torch's process group, unless it is there: verl's engine wants one on a single rank too."""
    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if here.on_cuda else "gloo"
    if here.ranks > 1:
        dist.init_process_group(backend, timeout=PATIENCE)  # by the variables that torchrun has set
        return
    os.environ |= {name: str(number) for name, number in RANK_VARIABLES}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # verl's worker reads them, and does not use them
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=PATIENCE)
