"""What a user should be told about the selections of a run, each thing once, in the log of the actor's worker.

Knows nothing about verl. Every data-parallel rank must call :meth:`Advice.after_update`, since some advice takes a
collective; rank 0 speaks, and for values that are not finite the rank that holds them.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.covariance import LARGEST
from verl_cov.core.identity import slots
from verl_cov.core.selection import Selected, largest_values

logger = logging.getLogger(__name__)

# Optimizer steps without a token in the band before the quantiles are worth a look.
EMPTY_BAND_STEPS = 10
# Below half a token the floor of 1 at least doubles the ratio.
FLOOR_DOMINATES = 0.5
_SHARES = (0.0002, 0.002, 0.02, 0.2, 0.5)


class _Slots(Protocol):
    """One rank's response slots: :class:`verl_cov.hooks.batch.Tokens`."""

    @property
    def lengths(self) -> Tensor: ...
    @property
    def valid(self) -> Tensor: ...
    @property
    def old_log_prob(self) -> Tensor: ...
    @property
    def advantage(self) -> Tensor: ...


class Advice:
    """Watches the selections of one worker.

    Args:
        rank: of this process.
    """

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank
        self._said: set[str] = set()
        self._empty = 0

    def after_update(
        self, config: Any, chosen: Selected, log_prob: Tensor, tokens: _Slots, group: ProcessGroup | None
    ) -> None:
        """Look at one optimizer step.

        Args:
            config: :class:`verl_cov.hooks.config.CovPolicyLossConfig`.
            chosen: the selection; log_prob: [slots], what its covariance was taken with.
        """
        totals = chosen.totals
        self._band(config, chosen, group)
        if totals.tokens and config.ratio * totals.tokens < FLOOR_DOMINATES:
            field = config.ratio_field
            self._say(
                "floor",
                f"{field}={config.ratio:g} of {totals.tokens} tokens is {config.ratio * totals.tokens:.2g} of a token. "
                f"The floor of 1 makes it {1 / (config.ratio * totals.tokens):.3g} times the ratio you asked for: "
                f"raise {field}, or actor_rollout_ref.actor.ppo_mini_batch_size",
            )
        if totals.tied and "ties" not in self._said and _is_bfloat16(log_prob, chosen.covariance):
            self._say(
                "ties",
                f"log-probs have bfloat16 precision: {totals.tied} tokens share the covariance at the cut, and a hash "
                "decides between them. For entropy studies set "
                "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
            )
        if totals.non_finite and "finite" not in self._said:
            self._non_finite(totals.non_finite, log_prob, tokens)

    def _band(self, config: Any, chosen: Selected, group: ProcessGroup | None) -> None:
        if not config.loss_mode.endswith("clip_cov") or "band" in self._said:
            return
        self._empty = 0 if chosen.totals.candidates else self._empty + 1
        if self._empty < EMPTY_BAND_STEPS or not chosen.totals.tokens:
            return
        values = largest_values(chosen.covariance, _SHARES, group).tolist()
        ladder = ", ".join(f"top {100 * share:g} %: {value:.3g}" for share, value in zip(_SHARES, values, strict=True))
        self._say(
            "band",
            f"no token had a covariance between clip_cov_lb={config.clip_cov_lb:g} and "
            f"clip_cov_ub={config.clip_cov_ub:g} in {self._empty} optimizer steps, so Clip-Cov did nothing. The "
            f"largest covariances begin at ({ladder}): set clip_cov_lb to one of these",
        )

    def _non_finite(self, count: int, log_prob: Tensor, tokens: _Slots) -> None:
        rows, positions = slots(tokens.lengths, tokens.valid.numel())
        source = "old_log_probs" if log_prob is tokens.old_log_prob else "log_probs of the current policy"
        for name, values in (
            (source, log_prob),
            ("advantages", tokens.advantage),
        ):
            found = (tokens.valid & ~values.abs().lt(LARGEST)).nonzero()
            if found.numel():
                at = int(found[0])
                self._say(
                    "finite",
                    f"{count} tokens of the mini-batch have a log-prob or advantage that is not finite (or "
                    f"beyond 2^30); they take no part in the selection (verl's loss still sees them). "
                    f"The first here: {name} is "
                    f"{float(values[at])} in row {int(rows[at])}, response position {int(positions[at])} of rank "
                    f"{self._rank}",
                    everyone=True,
                )
                return

    def _say(self, key: str, message: str, everyone: bool = False) -> None:
        if key not in self._said and (everyone or self._rank == 0):
            logger.warning("verl-cov: %s", message)
        self._said.add(key)


def _is_bfloat16(log_prob: Tensor, cov: Tensor) -> bool:
    """True if a sample of the log-probs fits into bfloat16: the lower half of each float32 is empty."""
    sample = log_prob[:65536].float()
    sample = sample[torch.isfinite(cov[:65536]) & (sample != 0)]
    return sample.numel() >= 64 and not bool((sample.contiguous().view(torch.int32) & 0xFFFF).any())
