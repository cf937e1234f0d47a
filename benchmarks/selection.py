"""The selection against reading its tokens once, and its traffic against an all-gather of every rank's top k."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist

from benchmarks.timing import milliseconds, paired, ratio, table
from verl_cov.core.covariance import Covariances
from verl_cov.core.identity import mix
from verl_cov.core.metric_table import LADDER
from verl_cov.core.selection import Control, largest_means, select, select_tokens
from verl_cov.selftest.speed import one_read

BAND = (1.0, 5.0)


def measure(largest: int = 10**8, device: str = "cpu") -> str:
    """Time of a selection on one rank, for numbers of tokens up to ``largest``."""
    rows = []
    for tokens in (10**power for power in range(5, len(str(largest)))):
        log_prob, advantage = -torch.rand(tokens, device=device) * 3, torch.randn(tokens, device=device)
        valid = torch.ones(tokens, dtype=torch.bool, device=device)
        for name, share, band in (
            ("KL-Cov, k = 1", 1 / tokens, None),
            ("KL-Cov, 0.2 %", 2e-3, None),
            ("KL-Cov, 1 %", 1e-2, None),
            ("Clip-Cov, 0.02 %", 2e-4, BAND),
        ):
            data = (log_prob, advantage, valid)
            calls = {
                "read": partial(one_read, *data),
                "covariance": partial(_covariance, *data),
                "select": partial(select_tokens, *data, mix, Control(share, band)),
                "topk": partial(_topk, *data, max(1, int(share * tokens))),
            }
            seconds = paired(calls, 9 if tokens <= 10**7 else 3, device)
            rows.append(
                [f"{tokens:.0e}".replace("e+0", "e"), name, milliseconds(seconds["select"])]
                + [f"{ratio(seconds, 'select', other):.1f}" for other in ("read", "covariance", "topk")]
            )
    header = ["tokens", "control", "ms (median)", "against one read", "against the covariance alone", "against topk"]
    return table(header, rows)


def traffic(tokens: int = 20_000) -> str:
    """Bytes that one rank puts into collectives, counted, in process groups of up to 1024 ranks (torch's fake backend:
    one real rank, collectives that return at once), beside what gathering every rank's top k would take."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    rows = []
    for ranks in (1, 8, 64, 1024):
        dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
        try:
            for share, band in ((2e-3, None), (2e-4, BAND)):
                for ties in (False, True):
                    rows.append(_traffic_row(tokens, ranks, share, band, ties))
        finally:
            dist.destroy_process_group()
    header = ["ranks", "control", "ties at the cut", "bytes a rank", "the ladder's (`cov_metrics=full`)"]
    return table([*header, "all-gather of local top k, bytes received a rank"], rows)


def _traffic_row(tokens: int, ranks: int, share: float, band, ties: bool) -> list[str]:
    log_prob, advantage = -torch.rand(tokens) * 3, torch.randn(tokens)
    if ties:
        log_prob, advantage = log_prob.round(), advantage.round()
    sent = 0
    original = dist.all_reduce

    def counting(tensor, **kwargs):
        nonlocal sent
        sent += tensor.nbytes
        return original(tensor, **kwargs)

    dist.all_reduce = counting
    try:
        valid, group = torch.ones(tokens, dtype=torch.bool), dist.group.WORLD
        covariances = Covariances.compute(log_prob, advantage, valid, group, update_kinds=True)
        select(covariances, advantage, mix, Control(share, band), group)
        selection = sent
        largest_means(covariances.values, LADDER, group)
    finally:
        dist.all_reduce = original
    # The k of the whole mini-batch, of 8 bytes each, from every rank.
    gathered = ranks * max(1, int(share * tokens * ranks)) * 8
    name = "KL-Cov 0.2 %" if band is None else "Clip-Cov 0.02 %"
    ladder = sent - selection
    return [str(ranks), name, "yes" if ties else "no", f"{selection:,}", f"{ladder:,}", f"{gathered:,}"]


def _covariance(log_prob, advantage, valid):
    """The covariance as the paper's Listing 1 writes it, in float32."""
    count = valid.sum()
    centred = log_prob - (log_prob * valid).sum() / count
    return centred * (advantage - (advantage * valid).sum() / count)


def _topk(log_prob, advantage, valid, count):
    return _covariance(log_prob, advantage, valid).topk(count)
