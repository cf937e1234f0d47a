"""Reads one rank's mini-batch or rollout batch from verl's TensorDict, and writes the selection back into it.

Leans on the fields of the TensorDict that ``TrainingWorker.train_batch`` and ``train_mini_batch`` get:
``response_mask``, ``old_log_probs``, ``advantages`` (jagged in the V1 trainer, dense and padded in the legacy one),
``input_ids`` or ``responses``, for metrics ``entropy``, ``rm_scores`` or ``token_level_scores``, ``uid`` and
``session_id``; on ``verl.workers.utils.padding.no_padding_2_padding`` for a model's output.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float32, Int64, Shaped
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core import identity

if TYPE_CHECKING:
    from tensordict import TensorDict
    from verl.workers.engine.base import BaseEngine

# float32 like its neighbours: verl pads and re-cuts every field of a micro-batch, and bool tensors do not survive all
# of it.
SELECTED_FIELD = "verl_cov_selected"
# 1 + each token's number among this rank's response slots, int64; 0 in what verl pads with.
SLOT_FIELD = "verl_cov_slot"


@dataclass(frozen=True)
class RankTokens:
    """The response tokens of one rank's batch, row by row, on the device that the collectives use.

    Args:
        data: verl's TensorDict, from which the other fields were read.
        lengths: response slots in each row.
        valid: True for response tokens, False for padding and for tokens that a tool wrote.
        old_log_prob, advantage: of each slot.
    """

    data: TensorDict
    lengths: Int64[Tensor, " rows"]
    valid: Bool[Tensor, " slots"]
    old_log_prob: Float32[Tensor, " slots"]
    advantage: Float32[Tensor, " slots"]

    @classmethod
    def read(cls, data: TensorDict) -> RankTokens:
        """Reads verl's batch. Raises RuntimeError if its fields have different numbers of slots."""
        mask = data["response_mask"]
        if mask.is_nested:
            lengths = mask.offsets().diff()
        else:
            lengths = torch.full((mask.shape[0],), mask.shape[1], dtype=torch.int64, device=mask.device)
        # values() of a jagged tensor and a flattened dense one list the same slots as the mask does.
        flat = {}
        for name in ("response_mask", "old_log_probs", "advantages"):
            flat[name] = _flat(data[name])
            if flat[name].numel() != flat["response_mask"].numel():
                raise RuntimeError(
                    f"verl-cov: {name} has {flat[name].numel()} response slots, response_mask "
                    f"{flat['response_mask'].numel()}: verl-cov does not know this trainer's batch layout"
                )
        on = device()
        return cls(
            data=data,
            lengths=lengths.to(on),
            valid=flat["response_mask"].to(on).bool(),
            old_log_prob=flat["old_log_probs"].to(on).float(),
            advantage=flat["advantages"].to(on).float(),
        )

    def entropy(self) -> Float32[Tensor, " slots"] | None:
        """Returns the entropy of the next-token distribution at each response slot, in nats, if the batch has it."""
        if "entropy" not in self.data:
            return None
        entropy = _flat(self.data["entropy"])
        return entropy.to(self.valid.device).float() if entropy.numel() == self.valid.numel() else None

    def score(self) -> Float32[Tensor, " rows"] | None:
        """Returns the reward of each response before any baseline, if the batch has it."""
        name = next((name for name in ("rm_scores", "token_level_scores") if name in self.data), None)
        if name is None:
            return None
        token_scores = _flat(self.data[name])
        if token_scores.numel() != self.valid.numel():
            return None
        rows, _ = identity.slots(self.lengths, self.valid.numel())
        score = torch.zeros(self.lengths.numel(), device=rows.device)
        return score.index_add_(0, rows, token_scores.to(rows.device).float())

    def prompt(self) -> Int64[Tensor, " rows"] | None:
        """Returns a hash of each row's prompt (of verl's ``uid``), if the batch has it."""
        return self._hashes(prompt_uids(self.data))

    def response(self) -> Int64[Tensor, " rows"] | None:
        """Returns a hash of the response that each row belongs to; None if each row is a response.

        An agent loop of the V1 trainer may give several outputs in a session, which are rows of one response: of one
        ``uid`` and ``session_id``.
        """
        uids = prompt_uids(self.data)
        if uids is None or "session_id" not in self.data:
            return None
        from verl.utils import tensordict_utils as tu

        sessions = tu.get(self.data, "session_id")
        return self._hashes([f"{uid}_{int(session)}" for uid, session in zip(uids, sessions, strict=True)])

    def _hashes(self, names: list[str] | None) -> Int64[Tensor, " rows"] | None:
        if names is None:
            return None
        digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
        hashes = [int.from_bytes(digest, "big", signed=True) for digest in digests]
        return torch.tensor(hashes, dtype=torch.int64, device=self.lengths.device)

    def identity(self, group: ProcessGroup | None) -> Callable[[Tensor], Tensor]:
        """Returns a function from slots to their int64 identities; its first call uses collectives over ``group``."""

        @functools.cache
        def row_ids() -> Tensor:
            return self._row_ids(group)

        def identities(at: Tensor) -> Tensor:
            ids, ends = row_ids(), self.lengths.cumsum(0)
            row = torch.searchsorted(ends, at, right=True)
            return identity.token_identity(ids[row], at - (ends - self.lengths)[row])

        return identities

    def _row_ids(self, group: ProcessGroup | None) -> Tensor:
        ids = self.data["input_ids"] if "input_ids" in self.data else self.data["responses"]
        if ids.is_nested:
            values, lengths = ids.values(), ids.offsets().diff()
        else:
            values, lengths = ids.flatten(), torch.full((ids.shape[0],), ids.shape[1], dtype=torch.int64)
        rows, _ = identity.slots(self.lengths, self.valid.numel())
        response_lengths = torch.zeros_like(self.lengths).index_add_(0, rows, self.valid.long())
        return identity.row_identity(
            values.to(self.lengths.device),
            lengths.to(self.lengths.device),
            response_lengths,
            response_lengths > 0,
            identity.row_values(self.lengths, self.valid, self.old_log_prob, self.advantage),
            group,
        )

    def pick_responses(self, log_probs: Tensor) -> Float32[Tensor, " slots"]:
        """Picks the responses out of a model's log-probs of whole sequences (jagged [rows, prompt + response])."""
        from verl.workers.utils.padding import no_padding_2_padding

        padded = no_padding_2_padding(log_probs, self.data)
        rows, positions = identity.slots(self.lengths, self.valid.numel())
        return padded.to(rows.device)[rows, positions].float()

    def write_selection(self, selected: Bool[Tensor, " slots"]) -> None:
        """Stores the selection in the batch as :data:`SELECTED_FIELD`, on the batch's own device."""
        self._write(SELECTED_FIELD, selected.float())

    def write_advantages(self, advantages: Float32[Tensor, " slots"]) -> None:
        """Stores other advantages in the batch than it came with, in the same type."""
        self._write("advantages", advantages.to(self.data["advantages"].dtype))

    def write_slots(self) -> None:
        """Numbers the response slots in the batch, as :data:`SLOT_FIELD`."""
        self._write(SLOT_FIELD, torch.arange(1, self.valid.numel() + 1))

    def _write(self, name: str, values: Shaped[Tensor, " slots"]) -> None:
        mask = self.data["response_mask"]
        values = values.to(mask.device)
        if mask.is_nested:
            # Not nested_tensor_from_jagged: without a maximal length it pads to the sum of all lengths later on.
            parts = values.split(mask.offsets().diff().tolist())
            self.data[name] = torch.nested.as_nested_tensor(list(parts), layout=torch.jagged)
        else:
            self.data[name] = values.view(mask.shape)


def prompt_uids(data: TensorDict) -> list[str] | None:
    """Returns verl's ``uid`` of each row's prompt, if the batch has it."""
    if "uid" not in data:
        return None
    from verl.utils import tensordict_utils as tu

    return [str(uid) for uid in tu.get(data, "uid")]


def _flat(field: Tensor) -> Tensor:
    return field.values() if field.is_nested else field.flatten()


def data_parallel_group(engine: BaseEngine) -> ProcessGroup | None:
    """Returns the engine's data-parallel group; None if it has one rank (a gloo collective would take 0.1 ms)."""
    group = engine.get_data_parallel_group()
    return None if group is None or dist.get_world_size(group) == 1 else group


def device() -> torch.device:
    """Returns the device of this process's collectives: the process groups of some engines are NCCL-only."""
    from verl.utils.device import get_device_id, get_device_name

    name = get_device_name()
    return torch.device("cpu") if name == "cpu" else torch.device(name, get_device_id())
