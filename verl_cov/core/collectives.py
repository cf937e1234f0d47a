"""The three collectives that every computation over ranks uses.

``group`` is the data-parallel process group, None for a single rank. Every rank of the group must call them, also a
rank without tokens. Knows nothing about verl.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor
from torch.distributed import ProcessGroup


def all_reduce(tensor: Shaped[Tensor, "*shape"], group: ProcessGroup | None) -> Shaped[Tensor, "*shape"]:
    """Adds up ``tensor`` over all ranks, in place, and returns it."""
    if group is not None:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


def largest_of_ranks(tensor: Shaped[Tensor, "*shape"], group: ProcessGroup | None) -> Shaped[Tensor, "*shape"]:
    """Takes the maximum of ``tensor`` over all ranks, in place, and returns it."""
    if group is not None:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return tensor


def gather_rows(
    table: Int64[Tensor, "rows columns"], group: ProcessGroup | None
) -> tuple[Int64[Tensor, "all_rows columns"], Bool[Tensor, " all_rows"], slice]:
    """Gathers every rank's rows; each rank's are padded to the largest number of rows on any rank.

    Returns the rows, False for each padding row, and the slice that holds this rank's rows. The host reads one number,
    the number of rows to pad to, which on an accelerator waits for all queued work.
    """
    rank, ranks = (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)
    rows = table.shape[0]
    most = int(largest_of_ranks(torch.tensor([rows], device=table.device), group))
    padded = torch.zeros(most, table.shape[1] + 1, dtype=torch.int64, device=table.device)
    padded[:rows, :-1] = table
    padded[:rows, -1] = 1
    gathered = [padded]
    if group is not None:
        gathered = [torch.empty_like(padded) for _ in range(ranks)]
        dist.all_gather(gathered, padded, group=group)
    table_of_all = torch.cat(gathered)
    return table_of_all[:, :-1], table_of_all[:, -1].bool(), slice(rank * most, rank * most + rows)
