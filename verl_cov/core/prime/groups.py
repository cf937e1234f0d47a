"""Responses of one prompt: which rows belong together, and what the others of a row's group are on average.

verl reorders the rows of a batch between ranks, so a group is what has one prompt id, never neighbouring rows.
Tensors are [rows], sums are in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """The groups of a batch.

    Args:
        index: [rows] the row's group, 0 to count - 1; rows without a response token (padding, all masked) have -1 and
            belong to none.
        count: how many groups there are.
        size: [rows] K, the responses of the row's group, itself included; 0 outside of any.
    """

    index: Tensor
    count: int
    size: Tensor

    @classmethod
    def of(cls, prompts: Sequence[str], mask: Tensor) -> Groups:
        """prompts: the prompt id of each row. mask: [rows, tokens] its response tokens."""
        numbers: dict[str, int] = {}
        present = mask.any(-1).tolist()
        index = [
            numbers.setdefault(prompt, len(numbers)) if here else -1
            for prompt, here in zip(prompts, present, strict=True)
        ]
        row_index = torch.tensor(index, dtype=torch.int64, device=mask.device)
        groups = cls(row_index, len(numbers), torch.zeros_like(row_index))
        return cls(row_index, len(numbers), groups.sums(torch.ones(len(index), dtype=torch.float64)).long())

    @property
    def present(self) -> Tensor:
        """Rows that belong to a group."""
        return self.index >= 0

    @property
    def compared(self) -> Tensor:
        """Rows with another response to the same prompt."""
        return self.size > 1

    def sums(self, values: Tensor) -> Tensor:
        """Each row's sum over its group, itself included, in float64; 0 outside of any."""
        rows = self.present
        totals = torch.zeros(self.count, dtype=torch.float64, device=self.index.device)
        totals.index_add_(0, self.index[rows], values.double()[rows])
        result = torch.zeros(self.index.shape, dtype=torch.float64, device=self.index.device)
        result[rows] = totals[self.index[rows]]
        return result

    def means(self, values: Tensor) -> Tensor:
        """Each row's mean over its group; 0 outside of any."""
        return self.sums(values) / self.size.clamp(min=1)

    def stds(self, values: Tensor) -> Tensor:
        """Each row's sample standard deviation over its group; 0 in a group of one."""
        squares = self.sums((values.double() - self.means(values)) ** 2)
        return (squares / (self.size - 1).clamp(min=1)).sqrt()

    def others(self, values: Tensor) -> Tensor:
        """Each row's mean over the other rows of its group (the leave-one-out baseline); 0 if there is none."""
        own = torch.where(self.compared, values.double(), 0.0)
        return torch.where(self.compared, self.sums(values) - own, 0.0) / (self.size - 1).clamp(min=1)
