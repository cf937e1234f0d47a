"""Level hook: verl's engine with verl-cov's hooks gives the oracle's tokens, loss and gradient in every layout.

A tiny model is made on the spot and trained at learning rate 0 on one mini-batch: whole, in small micro-batches, with
dynamic batching, padded and with padding rows, in several orders, over all ranks. That verl-cov's hook fired is seen in
the batch and in the loss, not inferred from versions.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from verl_cov.selftest import oracle, speed
from verl_cov.selftest.machine import installed
from verl_cov.selftest.ranks import NotPossible, Rank, start_group

SEED, STEP = 11, 3
KL = dict(loss_mode="verl_cov.kl_cov", kl_cov_ratio=0.05, ppo_kl_coef=0.7, cov_seed=SEED)
CLIP = dict(loss_mode="verl_cov.clip_cov", clip_cov_ratio=0.05, clip_cov_lb=0.1, clip_cov_ub=20.0, cov_seed=SEED)
WEIGHT = dict(loss_mode="gpg", cov_metrics="basic", cov_weights={"high_entropy": {}})
NUMBER = STEP << 20  # of the optimizer step, as the hook counts
CONTROLS: dict[str, tuple[dict[str, Any], oracle.Control]] = {
    "KL-Cov": (KL, oracle.Control("kl", 0.05, coefficient=0.7, seed=SEED, step=NUMBER)),
    "Clip-Cov": (CLIP, oracle.Control("clip", 0.05, (0.1, 20.0), seed=SEED, step=NUMBER)),
    "high_entropy": (WEIGHT, oracle.Control("high_entropy", 0.2)),
}
OTHERS = {"megatron": "megatron", "veomni": "veomni", "torchtitan": "torchtitan", "automodel": "nemo_automodel"}
TOLERANCE = {"cpu": 2e-6, "cuda": 1e-4}
ON_CUDA = (
    "actor_rollout_ref.model.use_remove_padding=false",  # packing needs flash-attn
    "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
    "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.actor.use_torch_compile=false",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=false",
    # float32: in bfloat16 the gradient's rounding would hide what is looked for. The tokens do not depend on it.
    "actor_rollout_ref.actor.fsdp_config.model_dtype=fp32",
    "++actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32}",
)
HINT = "`verl-cov doctor` says what is registered"


@dataclass
class Engine:
    """verl's worker, the plain model for the oracle, the layouts, and in how many updates the hook was seen."""

    worker: Any
    plain: Any
    layouts: tuple[Any, ...]
    updates: int = 0
    fired: int = 0
    expected: dict[str, oracle.Expected] = field(default_factory=dict)


def run(here: Rank, full: bool = False) -> None:
    """All checks of this level."""
    made: list[Engine] = []
    with tempfile.TemporaryDirectory() as folder:
        here.check("hook", "verl's engine starts (FSDP2)", _start, here, Path(folder), made)
        if not made or here.checks[-1].outcome != "passed":
            return
        for name in CONTROLS:
            for layout in made[0].layouts:
                here.check("hook", f"{name}, {layout.name}", agrees, here, made[0], name, layout)
        here.check("hook", "verl-cov's hook fired in every update", _fired, made[0])
        here.check("hook", "verl's other engines", _other_engines)
        here.measure("hook", "time of the losses", speed.measure_losses, here)
        here.measure("hook", "share of an optimizer step", _share, here, made[0], Path(folder), full)


def _start(here: Rank, folder: Path, made: list[Engine]) -> str | None:
    """Makes the model and verl's worker."""
    if not installed("verl"):
        raise NotPossible("verl is not installed here")
    from verl_cov.hooks import versions

    try:
        import verl  # noqa: F401  (loads the plugin)
    except ImportError as error:
        raise NotPossible(f"verl cannot be imported: {error}") from None
    try:
        release = versions.installed_release()
    except versions.UnsupportedVersion as error:
        return f"{error}"
    if not release.engine:
        raise NotPossible(f"verl {release.version} has no engines, and its legacy actor is not driven here")
    if not release.v1 and not here.on_cuda:
        raise NotPossible(f"verl {release.version} has no CPU platform: this level needs a GPU there")
    from transformers import AutoModelForCausalLM

    from verl_cov.selftest import engine
    from verl_cov.selftest.batches import ROWS, save_untrained_model

    if ROWS % here.ranks:
        raise NotPossible(f"{ROWS} rows cannot be dealt to {here.ranks} ranks: take 1, 2, 4, 8 or 16")
    start_group(here)
    save_untrained_model(folder, positions=512)
    # Without a model of the hub, the plain one is the oracle's: on the CPU, in float32.
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    overrides = (*(ON_CUDA if here.on_cuda else ("+verl_cov=cpu",)), *engine.WIDE)
    worker = engine.actor_worker(overrides, str(folder))
    shuffled = (7, 2, 13, 0, 9, 15, 4, 11, 1, 14, 6, 3, 12, 8, 5, 10)
    layouts = [
        engine.Layout("one micro-batch"),
        engine.Layout("micro-batches of 1, other order", micro=1, order=shuffled),
        engine.Layout("micro-batches of 4, dense", micro=4, dense=True),
        engine.Layout("dynamic batching, other order", tokens=40, order=shuffled),
        engine.Layout("with padding rows", micro=2, padding_row=True),
    ]
    if not here.on_cuda or installed("flash_attn"):
        layouts.append(engine.Layout("packed (remove_padding)", tokens=64, remove_padding=True))
    made.append(Engine(worker, plain, tuple(layouts)))
    return None


def agrees(here: Rank, made: Engine, name: str, layout: Any) -> str | None:
    """One optimizer step in one layout against the oracle; returns the cause of what is different."""
    from verl_cov.selftest import engine
    from verl_cov.selftest.batches import mini_batch
    from verl_cov.selftest.watch import watched

    policy_loss, control = CONTROLS[name]
    rows = mini_batch()
    if name not in made.expected:
        made.expected[name] = oracle.expected(made.plain, rows, control)
    expected, ranks = made.expected[name], here.ranks
    engine.set_policy_loss(made.worker, policy_loss)
    share = engine.share_of(rows, layout, here.rank, ranks)
    made.updates += 1
    with watched(policy_loss["loss_mode"], share) as seen:
        report = engine.update(made.worker, share, layout, ranks, step=STEP)
    everyone: list[Any] = [None] * ranks
    dist.all_gather_object(everyone, (seen, _numbers(share)), group=here.peers)

    weighs = control.kind == "high_entropy"
    logged = any(key.startswith("actor/cov/") for key in report.metrics)
    if not logged or not (weighs or report.by_rank):
        return f"verl-cov's hook did not fire: verl trained on this mini-batch without it; {HINT}"
    made.fired += 1
    if any(each.within for each, _ in everyone):
        return "the hook told the loss to select within its micro-batch, and not over the mini-batch"
    for rank, (each, own) in enumerate(everyone):
        if each.foreign or each.rows != own:
            odd = (
                f"{each.foreign} sequences that the rank did not have whole, {len(own - each.rows)} of its own missing"
            )
            return f"this engine re-shards the mini-batch after train_batch saw it: the loss on rank {rank} saw {odd}"
    if not weighs and (cause := _selected(report, expected, everyone)):
        return cause
    for rank, (each, own) in enumerate(everyone):
        given = {token for token in expected.chosen if token[0] in own} if weighs else each.given
        if wrong := (each.acted ^ given) - each.hidden:
            return (
                f"the loss on rank {rank} acts on other tokens than verl-cov selected over the mini-batch "
                f"({len(wrong)} differ): it selects by itself, within its micro-batch"
            )
    loss_off = abs(report.metrics["loss"] - expected.loss) / expected.magnitude
    off = float(np.linalg.norm(report.gradient - expected.gradient) / np.linalg.norm(expected.gradient))
    allowed = TOLERANCE[here.device.type]
    if not max(loss_off, off) < allowed:
        return f"right tokens, but the loss is off by {loss_off:.1e}, the gradient by {off:.1e}; {allowed:.0e} allowed"
    return None


def _numbers(share: list[dict[str, Any]]) -> set[int]:
    """The rows of a rank that have a token, as what watches the losses knows them."""
    from verl_cov.selftest.watch import rows_by_content

    return {row["index"] for row in rows_by_content(share).values() if row["mask"].any()}


def _alike(tokens: Any) -> Counter[tuple[int, int]]:
    """Tokens with two rows that are equal in everything called the same: which copy is taken is free."""
    return Counter((4 if row == 5 else row, at) for row, at in tokens)


def _selected(report: Any, expected: oracle.Expected, everyone: list[Any]) -> str | None:
    """What is wrong with the selection that the hook wrote into the batch, and with its way into the loss."""
    wanted = _alike(expected.chosen)
    wrong = []
    for rank, tokens in enumerate(report.by_rank):
        if more := _alike(tokens) - wanted:
            wrong.append(f"rank {rank} {more.total()} that are not")
    missing = wanted - _alike(report.selected)
    if wrong or missing:
        parts = [*wrong, f"{missing.total()} are missing"] if missing else wrong
        return f"the mask of selected tokens is wrong (of the numpy oracle's {wanted.total()}): {', '.join(parts)}"
    for rank, (each, _) in enumerate(everyone):
        if set(_alike(each.given)) != set(_alike(report.by_rank[rank])):
            return (
                f"this engine re-shards the mini-batch after train_batch saw it: on rank {rank} the rows of a "
                "micro-batch do not have their own selection"
            )
    return None


def _fired(made: Engine) -> str | None:
    return None if 0 < made.fired == made.updates else f"in {made.fired} of {made.updates} updates; {HINT}"


def _other_engines() -> str | None:
    found = ", ".join(name for name, module in OTHERS.items() if installed(module))
    if not found:
        raise NotPossible(f"none of {', '.join(OTHERS)} is installed here")
    raise NotPossible(f"{found}: this test drives FSDP2 alone, verl-cov docs engines says what was tested of others")


def _share(here: Rank, made: Engine, folder: Path, full: bool) -> None:
    """The share of our hooks in an optimizer step, for the result; a larger model where there is a GPU."""
    from verl_cov.selftest import engine
    from verl_cov.selftest.batches import save_untrained_model

    worker = made.worker
    if here.on_cuda:
        larger = save_untrained_model(folder / "larger", 1024, layers=16, hidden=1024, inner=4096)
        worker = engine.actor_worker((*ON_CUDA, *engine.WIDE), str(larger))
    engine.set_policy_loss(worker, {**KL, "kl_cov_ratio": 2e-3})
    parameters = sum(parameter.numel() for parameter in worker.actor.engine.module.parameters())
    if here.ranks > 1 and not here.on_cuda:
        raise NotPossible("several ranks share this CPU: a hook would be charged for what it waits for another rank")
    for sequences in (32, 128):
        rows = speed.long_rows(sequences // here.ranks)
        rounds = 5 if here.on_cuda or full else 64 // sequences + 1
        hook, update = speed.share_of_step(worker, rows, rounds, here.ranks)
        here.timings.append(
            {
                "name": f"hooks in an optimizer step, KL-Cov, {parameters / 1e6:.1f} M parameters",
                "tokens": 256 * (sequences // here.ranks) * here.ranks,
                "ms": round(1000 * hook, 3),
                "against": {"optimizer step": round(hook / update, 5)},
            }
        )
