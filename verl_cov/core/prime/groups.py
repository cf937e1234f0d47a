"""Groups the responses to one prompt, and computes sums, means and baselines over each group, in float64.

The trap: verl reorders the rows of a batch between ranks, so a group is the rows with one prompt id, never neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """The groups of a batch.

    Args:
        index: the row's group, 0 to count - 1; -1 for rows without a response token (padding, all masked), which are
            in no group.
        count: number of groups.
        size: K, the number of responses in the row's group, itself included; 0 for rows in no group.
    """

    index: Int64[Tensor, " rows"]
    count: int
    size: Int64[Tensor, " rows"]

    @classmethod
    def from_prompts(cls, prompts: Sequence[str], mask: Bool[Tensor, "rows tokens"]) -> Groups:
        """Groups rows by their prompt ids; ``mask`` marks the response tokens."""
        numbers: dict[str, int] = {}
        present = mask.any(-1).tolist()
        index = [
            numbers.setdefault(prompt, len(numbers)) if has_response else -1
            for prompt, has_response in zip(prompts, present, strict=True)
        ]
        row_index = torch.tensor(index, dtype=torch.int64, device=mask.device)
        groups = cls(row_index, len(numbers), torch.zeros_like(row_index))
        return cls(row_index, len(numbers), groups.sums(torch.ones(len(index), dtype=torch.float64)).long())

    @property
    def present(self) -> Bool[Tensor, " rows"]:
        """True for rows in a group."""
        return self.index >= 0

    @property
    def compared(self) -> Bool[Tensor, " rows"]:
        """True for rows with another response to the same prompt."""
        return self.size > 1

    def sums(self, values: Shaped[Tensor, " rows"]) -> Float64[Tensor, " rows"]:
        """Sums over each row's group, itself included; 0 for rows in no group."""
        rows = self.present
        totals = torch.zeros(self.count, dtype=torch.float64, device=self.index.device)
        totals.index_add_(0, self.index[rows], values.double()[rows])
        result = torch.zeros(self.index.shape, dtype=torch.float64, device=self.index.device)
        result[rows] = totals[self.index[rows]]
        return result

    def means(self, values: Shaped[Tensor, " rows"]) -> Float64[Tensor, " rows"]:
        """Averages over each row's group; 0 for rows in no group."""
        return self.sums(values) / self.size.clamp(min=1)

    def stds(self, values: Shaped[Tensor, " rows"]) -> Float64[Tensor, " rows"]:
        """Computes the sample standard deviation over each row's group; 0 in a group of one."""
        squares = self.sums((values.double() - self.means(values)) ** 2)
        return (squares / (self.size - 1).clamp(min=1)).sqrt()

    def others(self, values: Shaped[Tensor, " rows"]) -> Float64[Tensor, " rows"]:
        """Averages over the other rows of each row's group (the leave-one-out baseline); 0 if there are none."""
        own = torch.where(self.compared, values.double(), 0.0)
        return torch.where(self.compared, self.sums(values) - own, 0.0) / (self.size - 1).clamp(min=1)
