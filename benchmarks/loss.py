"""Forward and backward of the policy losses, against verl's vanilla loss and verl's own clip_cov and kl_cov."""

from __future__ import annotations

from functools import partial

import torch
import verl.trainer.ppo.core_algos as core_algos
from verl.workers.config import FSDPActorConfig

from benchmarks.timing import milliseconds, paired, ratio, table
from verl_cov.hooks.config import CovPolicyLossConfig
from verl_cov.hooks.micro_batch import selected_tokens

SHAPES = ((32, 8192), (8, 32768))
LOSSES = ("vanilla", "clip_cov", "verl_cov.clip_cov", "kl_cov", "verl_cov.kl_cov")


def measure(device: str = "cpu", rounds: int = 15, shapes: tuple[tuple[int, int], ...] = SHAPES) -> str:
    """A Markdown table. Our losses are handed their selection, as the mini-batch hook does; the selection's own time
    stands in its own table. On CUDA our losses run under ``set_sync_debug_mode("error")``."""
    rows = []
    for shape in shapes:
        inputs = _batch(shape, device)
        selected = torch.rand(shape, device=device) < 0.002
        calls = {name: partial(_step, name, inputs, selected) for name in LOSSES}
        seconds = paired(calls, rounds)
        for name in LOSSES:
            saved = _saved_bytes(calls[name]) / inputs["log_prob"].nbytes
            against = f"{ratio(seconds, name, 'vanilla'):.2f}"
            rows.append(["x".join(map(str, shape)), f"`{name}`", milliseconds(seconds[name]), against, f"{saved:.1f}"])
    header = ["sequences x tokens", "loss", "ms (median)", "against vanilla", "saved for backward, in log-prob tensors"]
    return table(header, rows)


def _batch(shape: tuple[int, int], device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(shape, generator=generator) * 3
    new = old + 0.05 * torch.randn(shape, generator=generator)
    advantages = torch.randn(shape[0], 1, generator=generator).expand(shape).contiguous()
    mask = torch.arange(shape[1]) < torch.randint(shape[1] // 2, shape[1] + 1, (shape[0], 1), generator=generator)
    batch = dict(old_log_prob=old, log_prob=new, advantages=advantages, response_mask=mask)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    batch["log_prob"].requires_grad_()
    return batch


def _step(name: str, inputs: dict[str, torch.Tensor], selected: torch.Tensor) -> None:
    ours = name.startswith("verl_cov.")
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
    # verl reads its metrics back inside the loss (.item()), so only what is ours can be held to "no waiting".
    with selected_tokens(selected if ours else torch.zeros(0)):
        loss, _ = core_algos.get_policy_loss_fn(name)(**inputs, loss_agg_mode="token-mean", config=config)
    loss.backward()


def _saved_bytes(step) -> int:
    """Bytes that one forward keeps for its backward."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(kept.values())
