"""The two collectives that everything here is made of. ``group`` is the data-parallel one; None is a single rank.

Every rank of the group must call them, also one without tokens. Knows nothing about verl.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def all_reduce(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum over all ranks, in place."""
    if group is not None:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


def gather_rows(table: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor, slice]:
    """Every rank's rows, padded to the longest rank's number of them.

    The host reads one number, that longest, which on an accelerator waits for what is queued.

    Args:
        table: [rows, columns] int64.

    Returns:
        [ranks x longest, columns] int64, [ranks x longest] bool (False for padding), and where this rank's rows are.
    """
    rank, ranks = (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)
    rows = table.shape[0]
    longest = torch.tensor([rows], device=table.device)
    if group is not None:
        dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=group)
    most = int(longest)
    padded = torch.zeros(most, table.shape[1] + 1, dtype=torch.int64, device=table.device)
    padded[:rows, :-1] = table
    padded[:rows, -1] = 1
    gathered = [padded]
    if group is not None:
        gathered = [torch.empty_like(padded) for _ in range(ranks)]
        dist.all_gather(gathered, padded, group=group)
    whole = torch.cat(gathered)
    return whole[:, :-1], whole[:, -1].bool(), slice(rank * most, rank * most + rows)
