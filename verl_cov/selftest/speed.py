"""How long verl-cov takes on this machine: paired timings, as ratios. What they say never fails a self-test."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verl_cov.core import selection
from verl_cov.core.identity import mix
from verl_cov.selftest import core
from verl_cov.selftest.ranks import Rank

Call = Callable[[], object]


def paired(contestants: dict[str, Call], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each call, round by round; a first, unmeasured round warms up. Contestants take turns, so that a busy
    machine slows all of them. On CUDA by events: the time on the device."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, call in contestants.items():
            took = _on_cuda(call) if device.startswith("cuda") else _on_cpu(call)
            if turn:
                seconds[name].append(took)
    return seconds


def _on_cpu(call: Call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _on_cuda(call: Call) -> float:
    torch.cuda.synchronize()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1000


def ratio(seconds: dict[str, list[float]], name: str, baseline: str) -> float:
    """Median over the rounds of name's time by the baseline's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[baseline], strict=True))


def timing(name: str, tokens: int, seconds: dict[str, list[float]], ours: str, **more: Any) -> dict[str, Any]:
    """A row of the result: median milliseconds, and the median ratio against each other contestant."""
    against = {other: round(ratio(seconds, ours, other), 3) for other in seconds if other != ours}
    row = {"name": name, "tokens": tokens, "ms": round(1000 * statistics.median(seconds[ours]), 4), "against": against}
    return row | {key: value for key, value in more.items() if value is not None}


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """How much more memory ``call`` has on the device at its peak than before; None on a CPU, which does not say."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(device) - before


# --- the mathematics --------------------------------------------------------------------------------------------------


def measure_core(here: Rank, rounds: int = 5) -> None:
    """The selection against one read of its tokens and against topk, and our losses against the surrogate alone.

    On the first rank alone, so that nothing here may use a collective.
    """
    if here.rank:
        return
    device = here.device
    for size in core.SIZES[device.type]:
        log_prob, advantage = -3 * torch.rand(size, device=device), torch.randn(size, device=device)
        data = (log_prob, advantage, torch.ones(size, dtype=torch.bool, device=device))
        for name, control in core.CONTROLS.items():
            select = partial(selection.select_tokens, *data, mix, control)
            calls: dict[str, Call] = {"ours": select, "one read": partial(one_read, *data)}
            calls["topk"] = partial(_topk, log_prob, advantage, max(1, int(control.ratio * size)))
            seconds = paired(calls, rounds, device.type)
            more = {"peak_bytes": peak_bytes(select, device)}
            here.timings.append(timing(f"selection, {name}", size, seconds, "ours", **more))
    shape = (8, 8192) if device.type == "cuda" else (8, 1024)
    inputs, chosen = core.loss_inputs(shape, torch.float32, device)
    steps: dict[str, Call] = {name: partial(_step, call) for name, call in core.our_losses(inputs, chosen).items()}
    seconds = paired(steps, rounds, device.type)
    for name in ("KL-Cov", "Clip-Cov"):
        both = {key: seconds[key] for key in (name, "surrogate")}
        peak = peak_bytes(steps[name], device)
        here.timings.append(timing(f"loss, {name}", shape[0] * shape[1], both, name, peak_bytes=peak))


def one_read(log_prob: Tensor, advantage: Tensor, valid: Tensor) -> object:
    """The fastest that torch can look at every token once."""
    return log_prob.sum(), advantage.sum(), valid.sum()


def _topk(log_prob: Tensor, advantage: Tensor, count: int) -> object:
    return ((log_prob - log_prob.mean()) * (advantage - advantage.mean())).topk(count)


def _step(loss: Callable[[], Tensor]) -> None:
    loss().backward()


# --- through verl -----------------------------------------------------------------------------------------------------

LOSSES = ("vanilla", "clip_cov", "verl_cov.clip_cov", "kl_cov", "verl_cov.kl_cov")


def loss_calls(shape: tuple[int, int], device: str, losses: Sequence[str] = LOSSES) -> dict[str, Call]:
    """Forward and backward of verl's losses and ours, by name. Ours are handed their selection, as by the hook."""
    from verl.trainer.ppo import core_algos
    from verl.workers.config import FSDPActorConfig

    from verl_cov.hooks.config import CovPolicyLossConfig
    from verl_cov.hooks.micro_batch import selected_tokens

    inputs, chosen = core.loss_inputs(shape, torch.float32, torch.device(device))

    def step(name: str) -> None:
        config = FSDPActorConfig(
            strategy="fsdp2",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            clip_ratio=1.0,
            clip_ratio_low=1.0,
            clip_ratio_high=1.0,
            policy_loss=CovPolicyLossConfig(loss_mode=name, clip_cov_ratio=2e-3, kl_cov_ratio=2e-3),
        )
        inputs["log_prob"].grad = None
        with selected_tokens(chosen if name.startswith("verl_cov.") else torch.zeros(0)):
            loss, _ = core_algos.get_policy_loss_fn(name)(**inputs, loss_agg_mode="token-mean", config=config)
        loss.backward()

    return {name: partial(step, name) for name in losses}


def measure_losses(here: Rank, rounds: int = 5) -> None:
    """Our losses against verl's own, as verl calls them."""
    shape = (8, 8192) if here.on_cuda else (8, 1024)
    calls = loss_calls(shape, str(here.device))
    seconds = paired(calls, rounds, here.device.type)
    for ours in ("clip_cov", "kl_cov"):
        three = {name: seconds[name] for name in (f"verl_cov.{ours}", ours, "vanilla")}
        peak = peak_bytes(calls[f"verl_cov.{ours}"], here.device)
        row = timing(f"loss, {ours}", shape[0] * shape[1], three, f"verl_cov.{ours}", peak_bytes=peak)
        here.timings.append(row)


def share_of_step(worker: Any, rows: list[dict[str, Any]], rounds: int, ranks: int = 1) -> tuple[float, float]:
    """Median seconds of an optimizer step of verl's engine, and of our hooks in it, on these rows of each rank.

    The first round warms up. On an accelerator the hooks are waited for, before and after.
    """
    from verl.utils import tensordict_utils as tu
    from verl.utils.device import get_torch_device
    from verl.workers.engine_workers import TrainingWorker

    from verl_cov.hooks import mini_batch, policy_losses, rollout_batch
    from verl_cov.hooks.seams import shadowed
    from verl_cov.hooks.update_record import UpdateRecord
    from verl_cov.selftest.batches import to_tensordict

    seconds: dict[str, list[float]] = {"hook": [], "update": []}

    def timed(owner: Any, name: str, key: str) -> Any:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            get_torch_device().synchronize()
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                get_torch_device().synchronize()
                seconds[key].append(time.perf_counter() - started)

        return shadowed(owner, name, call)

    ours: list[tuple[Any, str]] = [(mini_batch.MiniBatchHook, "__init__"), (mini_batch.MiniBatchHook, "metrics")]
    ours += [(rollout_batch, "gather_responses"), (rollout_batch, "rollout_metrics")]
    ours += [(policy_losses, "_measure"), (UpdateRecord, "add_log_probs")]
    hooks = []
    with _all([timed(owner, name, "hook") for owner, name in ours] + [timed(TrainingWorker, "train_batch", "update")]):
        for _ in range(rounds + 1):
            data = to_tensordict(rows, dense=False)
            tu.assign_non_tensor(data, mini_batch_size=len(rows) * ranks, global_batch_size=len(rows) * ranks, epochs=1)
            tu.assign_non_tensor(data, temperature=1.0, calculate_entropy=True, global_steps=1, use_dynamic_bsz=False)
            tu.assign_non_tensor(data, max_token_len_per_gpu=None, micro_batch_size_per_gpu=8)
            seconds["hook"].clear()
            worker.update_actor(data)
            hooks.append(sum(seconds["hook"]))
    return statistics.median(hooks[1:]), statistics.median(seconds["update"][1:])


def _all(contexts: list[Any]) -> Any:
    from contextlib import ExitStack

    stack = ExitStack()
    for context in contexts:
        stack.enter_context(context)
    return stack


def long_rows(sequences: int, prompt: int = 64, response: int = 256, seed: int = 0) -> list[dict[str, Any]]:
    """Sequences of one length, for timing."""
    random = np.random.default_rng(seed)
    return [
        dict(
            prompt=random.integers(0, 200, prompt),
            response=random.integers(0, 200, response),
            mask=np.ones(response, dtype=np.int64),
            old_log_prob=-random.exponential(1.5, response).astype(np.float32) - 4.0,
            advantage=np.full(response, random.normal(), dtype=np.float32),
            entropy=random.exponential(1.0, response).astype(np.float32),
            score=float(random.integers(0, 2)),
            uid=f"prompt {index // 8}",
        )
        for index in range(sequences)
    ]
