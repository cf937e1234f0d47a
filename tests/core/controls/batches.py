"""Mini-batches for the tests of controls: random tokens, with ties and slots without a token, split over real ranks."""

from __future__ import annotations

import numpy as np
import torch

from verl_cov.core.controls.tokens import Tokens
from verl_cov.core.identity import mix


def mini_batch(seed: int, slots: int = 240) -> dict[str, np.ndarray]:
    """Columns of float32 by name, and ``valid``. Coarse values, so that there are ties within and across ranks."""
    random = np.random.default_rng(seed)
    log_prob = np.float32(-np.round(random.exponential(1.0, slots) * 16) / 16)
    columns = dict(
        log_prob=log_prob,
        old_log_prob=np.float32(log_prob + np.round(random.normal(0, 0.1, slots) * 64) / 64),
        advantage=np.float32(random.integers(-2, 3, slots) / 2),
        entropy=np.float32(np.round(random.exponential(0.5, slots) * 32) / 32),
    )
    columns["valid"] = random.random(slots) < 0.9
    for name in ("log_prob", "old_log_prob", "advantage", "entropy"):
        columns[name][~columns["valid"]] = random.choice([np.nan, np.inf, 0.0, 1e30], (~columns["valid"]).sum())
    return columns


def share_of(columns: dict[str, np.ndarray], rank: int, world: int, group=None, **more) -> Tokens:
    """One rank's share: every world-th slot from the rank on, so that neighbours lie on different ranks."""
    at = np.arange(rank, len(columns["valid"]), world)
    tensors = {name: torch.from_numpy(column[at]) for name, column in columns.items()}
    ids = mix(torch.from_numpy(at))
    return Tokens(
        log_prob=tensors["log_prob"],
        old_log_prob=tensors["old_log_prob"],
        advantage=tensors["advantage"],
        valid=tensors["valid"],
        identity=lambda slots: ids[slots],
        entropies=tensors["entropy"],
        group=group,
        **more,
    )


def together(shares: list[np.ndarray]) -> np.ndarray:
    """Puts the ranks' shares back into the mini-batch's order."""
    whole = np.empty(sum(map(len, shares)), dtype=np.asarray(shares[0]).dtype)
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    return whole
