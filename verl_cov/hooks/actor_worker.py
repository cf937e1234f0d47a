"""What the mini-batch hook needs from a worker that trains an actor.

:mod:`.train_batch` provides it for verl's engines, :mod:`.legacy_actor` for the legacy actor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor
from torch.distributed import ProcessGroup

if TYPE_CHECKING:
    from tensordict import TensorDict
    from transformers import PreTrainedTokenizerBase
    from verl.workers.actor.dp_actor import DataParallelPPOActor
    from verl.workers.engine_workers import TrainingWorker

    from verl_cov.hooks.batch import RankTokens


class ActorWorkerAdapter(Protocol):
    """What the hook needs from a worker that trains an actor, for one mini-batch.

    Args:
        worker: verl's.
        data: this rank's rows, as :class:`~verl_cov.hooks.batch.RankTokens` reads them.
        group: data-parallel, None if it has one rank.
        tokenizer: for the dump of tokens, or None.
    """

    worker: TrainingWorker | DataParallelPPOActor
    data: TensorDict
    group: ProcessGroup | None
    tokenizer: PreTrainedTokenizerBase | None

    def step(self) -> int:
        """Counts this optimizer step and returns its number: equal on every rank, and continued by a resumed run."""
        ...

    def log_probs(self, tokens: RankTokens) -> Tensor:
        """Computes [slots] float32 log-probs of the present policy, by a forward (``cov_log_prob=current``)."""
        ...

    def has_policy_loss(self, micro_batch: TensorDict) -> bool:
        """Returns True for a micro-batch on which verl computes the policy loss."""
        ...

    def prepare(self, micro_batch: TensorDict) -> None:
        """Repairs what verl's loss would fail on in this micro-batch."""
        ...

    def padded(self, micro_batch: TensorDict, name: str) -> Tensor:
        """Returns a field of a micro-batch as [sequences, length], padded as for its loss."""
        ...

    def divides_by_width(self) -> bool:
        """Returns True if verl divides the loss by the width to which it padded the micro-batch."""
        ...
