"""Forward and backward of the policy losses, against verl's vanilla loss and verl's own clip_cov and kl_cov."""

from __future__ import annotations

import math

import torch

from benchmarks.timing import milliseconds, paired, ratio, table
from verl_cov.selftest import speed

LOSSES = (*speed.LOSSES, "verl_cov.ce_gppo")
SHAPES = ((32, 8192), (8, 32768))


def measure(device: str = "cpu", rounds: int = 15, shapes: tuple[tuple[int, int], ...] = SHAPES) -> str:
    """A Markdown table. Our losses are handed their selection, as the mini-batch hook does; the selection's own time
    stands in its own table."""
    rows = []
    for shape in shapes:
        calls = speed.loss_calls(shape, device, LOSSES)
        seconds = paired(calls, rounds, device)
        for name in LOSSES:
            saved = _saved_bytes(calls[name]) / (4 * math.prod(shape))
            against = f"{ratio(seconds, name, 'vanilla'):.2f}"
            rows.append(["x".join(map(str, shape)), f"`{name}`", milliseconds(seconds[name]), against, f"{saved:.1f}"])
    header = ["sequences x tokens", "loss", "ms (median)", "against vanilla", "saved for backward, in log-prob tensors"]
    return table(header, rows)


def _saved_bytes(step) -> int:
    """Bytes that one forward keeps for its backward."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(kept.values())
