"""What a control may use of one rank's response tokens. Knows nothing about verl."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.covariance import LARGEST


class MissingInputError(RuntimeError):
    """A control needs a number that the batch does not carry."""


@dataclass(frozen=True)
class Tokens:
    """One rank's response slots of an optimizer mini-batch, flat, and what the rules need to look over all ranks.

    Args:
        log_prob: in nats: the rollout policy's or, with ``cov_log_prob=current``, the present policy's.
        old_log_prob: the rollout policy's.
        advantage: not yet weighted by any control.
        valid: the slots that hold a response token.
        identity: gives the int64 identities (:mod:`verl_cov.core.identity`) of slots; it may use collectives.
        entropies: of the next-token distribution of the rollout policy at each slot, in nats; None if the batch carries
            none. Read :attr:`entropy`, which says so.
        mean_entropy: of the rollout, exact, over all ranks; None if unknown. Read :attr:`rollout_entropy`.
        row: of each slot: a number of its response, on this rank; None if unknown.
        prompt: of each slot: equal for the responses to one prompt, on whatever rank; None if unknown.
        seed, step: of the draws; each optimizer step draws anew.
        group: data-parallel process group; None for a single rank.
    """

    log_prob: Float32[Tensor, " slots"]
    old_log_prob: Float32[Tensor, " slots"]
    advantage: Float32[Tensor, " slots"]
    valid: Bool[Tensor, " slots"]
    identity: Callable[[Tensor], Tensor]
    entropies: Float32[Tensor, " slots"] | None = None
    mean_entropy: float | None = None
    row: Int64[Tensor, " slots"] | None = None
    prompt: Int64[Tensor, " slots"] | None = None
    seed: int = 0
    step: int = 0
    group: ProcessGroup | None = None

    @property
    def entropy(self) -> Float32[Tensor, " slots"]:
        """Entropy of the next-token distribution of the rollout policy at each slot, in nats.

        Raises MissingInputError if the batch carries none.
        """
        if self.entropies is None:
            raise MissingInputError("the entropy at each token")
        return self.entropies

    @property
    def rollout_entropy(self) -> float:
        """Mean entropy of the rollout that the mini-batch is of, in nats: over each response, then over responses.

        Raises MissingInputError if it is unknown.
        """
        if self.mean_entropy is None:
            raise MissingInputError("the rollout's mean entropy")
        return self.mean_entropy

    @property
    def counted(self) -> Bool[Tensor, " slots"]:
        """The tokens that a rule looks at: valid, with finite log-probs and advantage. All others have weight 1."""
        finite = self.valid
        for values in (self.log_prob, self.old_log_prob, self.advantage):
            finite = finite & values.abs().lt(LARGEST)  # false for NaN and infinity
        return finite
