"""Two ranks on which something is broken on purpose: ``torchrun -m tests.selftest.faulty OUT FAULT...``.

Runs the self-test once for each of the :data:`FAULTS`, in the same processes; rank 0 writes {fault: its checks}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from verl_cov.selftest import core, hook, ranks


def nothing(stack: ExitStack, rank: int) -> None:
    pass


def hook_disabled(stack: ExitStack, rank: int) -> None:
    from verl_cov.hooks import train_batch

    train_batch.seam.uninstall()
    stack.callback(train_batch.install)


def hook_that_sees_no_run(stack: ExitStack, rank: int) -> None:
    from verl_cov.hooks import train_batch

    stack.enter_context(patch.object(train_batch, "hook_for", lambda worker, data: None))


def verls_own_loss(stack: ExitStack, rank: int) -> None:
    """Our name, verl's kl_cov: it selects within each micro-batch."""
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY as REGISTRY

    stack.enter_context(patch.dict(REGISTRY, {"verl_cov.kl_cov": REGISTRY["kl_cov"]}))


def loss_by_micro_batch(stack: ExitStack, rank: int) -> None:
    """Our loss, which no longer takes what the hook selected."""
    from verl_cov.hooks import policy_losses
    from verl_cov.hooks.micro_batch import MicroBatches

    context = policy_losses._context
    within = lambda cov, mask: replace(context(cov, mask), selection=MicroBatches())  # noqa: E731
    stack.enter_context(patch.object(policy_losses, "_context", within))


def mask_flipped_in_the_batch(stack: ExitStack, rank: int) -> None:
    from verl_cov.hooks.batch import RankTokens

    write = RankTokens.write_selection
    if rank == 1:
        flipped = lambda self, selected: write(self, ~selected)  # noqa: E731
        stack.enter_context(patch.object(RankTokens, "write_selection", flipped))


def mask_flipped_in_the_selection(stack: ExitStack, rank: int) -> None:
    from verl_cov.core import selection

    select = selection.select_tokens

    def flipped(*args: Any, **kwargs: Any) -> Any:
        found = select(*args, **kwargs)
        return replace(found, mask=~found.mask)

    if rank == 1:
        stack.enter_context(patch.object(selection, "select_tokens", flipped))


def engine_that_swaps_rows(stack: ExitStack, rank: int) -> None:
    """Each rank trains the other's rows, and their selection travels along."""

    def resharded(data: Any) -> Any:
        gathered: list[Any] = [None, None]
        dist.all_gather_object(gathered, data)
        return gathered[1 - rank]

    _engine(stack, resharded)


def engine_that_loses_the_selection(stack: ExitStack, rank: int) -> None:
    """The rows stay, in another order than their selections."""
    from verl_cov.hooks.batch import SELECTED_FIELD

    def resharded(data: Any) -> Any:
        marks = list(data[SELECTED_FIELD].unbind())
        lengths = [len(row) for row in marks]
        whole = torch.cat(marks[::-1])
        data[SELECTED_FIELD] = torch.nested.as_nested_tensor(list(whole.split(lengths)), layout=torch.jagged)
        return data

    _engine(stack, resharded)


def engine_that_cuts_sequences(stack: ExitStack, rank: int) -> None:
    """The loss of a micro-batch gets its rows without their last token."""
    from verl.workers.utils import losses

    names = ("old_log_prob", "log_prob", "advantages", "response_mask", "rollout_is_weights")
    get = losses.get_policy_loss_fn

    def shorter(mode: str) -> Callable[..., Any]:
        def loss(**inputs: Any) -> Any:
            cut = {key: each[:, :-1] for key, each in inputs.items() if key in names and each is not None}
            return get(mode)(**{**inputs, **cut})

        return loss

    stack.enter_context(patch.object(losses, "get_policy_loss_fn", shorter))


def _engine(stack: ExitStack, resharded: Callable[[Any], Any]) -> None:
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead as Engine

    train = Engine.train_batch
    wrapped = lambda self, data, loss_function: train(self, resharded(data), loss_function)  # noqa: E731
    stack.enter_context(patch.object(Engine, "train_batch", wrapped))


FAULTS: dict[str, Callable[[ExitStack, int], None]] = {
    fault.__name__: fault
    for fault in (
        nothing,
        hook_disabled,
        hook_that_sees_no_run,
        verls_own_loss,
        loss_by_micro_batch,
        mask_flipped_in_the_batch,
        mask_flipped_in_the_selection,
        engine_that_swaps_rows,
        engine_that_loses_the_selection,
        engine_that_cuts_sequences,
    )
}


def main(output: str, *names: str) -> None:
    first, begin = ranks.start("cpu"), hook._start
    found = {}

    def start(here: ranks.Rank, folder: Path, made: list[hook.Engine]) -> str | None:
        cause = begin(here, folder, made)
        made[0].layouts = made[0].layouts[:2]  # in one micro-batch, and in micro-batches of 1
        return cause

    quick = patch.object(hook, "_start", start), patch.object(ranks.Rank, "measure")
    with quick[0], quick[1], patch.dict(core.SIZES, cpu=(10**4,)):
        import verl  # noqa: F401

        for name in names:
            fault = FAULTS[name]
            here = ranks.Rank(first.device, first.rank, first.ranks, first.group, first.gloo, first.peers)
            with ExitStack() as stack:
                fault(stack, here.rank)
                kinds = ("KL-Cov", "high_entropy") if name.startswith("hook") else ("KL-Cov",)
                few = {kind: hook.CONTROLS[kind] for kind in kinds}
                stack.enter_context(patch.object(hook, "CONTROLS", few))
                if name in ("nothing", "mask_flipped_in_the_selection"):
                    core.run(here)
                if name != "mask_flipped_in_the_selection":
                    hook.run(here)
            found[name] = [asdict(check) for check in here.checks]
    if first.rank == 0:
        Path(output).write_text(json.dumps(found, indent=1))
    ranks.leave(first)


if __name__ == "__main__":
    main(*sys.argv[1:])
