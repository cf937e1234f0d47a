"""Warns, once per problem, in the log of the actor's worker when a run's selections cannot work as configured.

Every data-parallel rank must call :meth:`Advice.after_update`, because some advice takes a collective. Rank 0 logs, or,
for values that are not finite, each rank that holds some. Knows nothing about verl.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.covariance import LARGEST
from verl_cov.core.identity import slots
from verl_cov.core.selection import Selected, largest_values

logger = logging.getLogger(__name__)

# Optimizer steps in a row without a token in the band before the user is told.
EMPTY_BAND_STEPS = 10
# Below half a token the floor of 1 at least doubles the ratio.
FLOOR_DOMINATES = 0.5
# Rollouts in a row in which a control changed less than this share of the policy loss's gradient.
IDLE_ROLLOUTS = 10
NO_CHANGE = 1e-6
# Below this share in common, over so many updates with at least so many tokens, `old` and `current` are two controls.
APART, APART_UPDATES, APART_TOKENS = 0.8, 10, 20
_SHARES = (0.0002, 0.002, 0.02, 0.2, 0.5)


@runtime_checkable
class ResponseSlots(Protocol):
    """One rank's response slots: :class:`verl_cov.hooks.batch.RankTokens`."""

    @property
    def lengths(self) -> Int64[Tensor, " rows"]: ...
    @property
    def valid(self) -> Bool[Tensor, " slots"]: ...
    @property
    def old_log_prob(self) -> Float32[Tensor, " slots"]: ...
    @property
    def advantage(self) -> Float32[Tensor, " slots"]: ...


@runtime_checkable
class ControlConfig(Protocol):
    """The configuration of a control: :class:`verl_cov.hooks.config.CovPolicyLossConfig`."""

    loss_mode: str
    clip_cov_lb: float
    clip_cov_ub: float

    @property
    def ratio(self) -> float: ...
    @property
    def ratio_field(self) -> str: ...


class Advice:
    """Watches the selections of one worker, whose global rank is ``rank``."""

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank
        self._logged: set[str] = set()
        self._empty_steps = 0
        self._idle_rollouts: set[int] = set()
        self._overlaps: deque[tuple[int, int]] = deque(maxlen=APART_UPDATES)

    def after_update(
        self,
        config: ControlConfig,
        chosen: Selected,
        log_prob: Float[Tensor, " slots"],
        tokens: ResponseSlots,
        group: ProcessGroup | None,
    ) -> None:
        """Checks the selection of one optimizer step and logs what the user should change.

        log_prob: what the covariances of ``chosen`` were computed from.
        """
        totals = chosen.totals
        self._band(config, chosen, group)
        if totals.tokens and config.ratio * totals.tokens < FLOOR_DOMINATES:
            field = config.ratio_field
            self._log(
                "floor",
                f"{field}={config.ratio:g} of {totals.tokens} tokens is {config.ratio * totals.tokens:.2g} of a token. "
                f"The floor of 1 makes it {1 / (config.ratio * totals.tokens):.3g} times the ratio you set: "
                f"raise {field}, or actor_rollout_ref.actor.ppo_mini_batch_size",
            )
        if totals.tied and "ties" not in self._logged and _is_bfloat16(log_prob, chosen.covariance):
            self._log(
                "ties",
                f"log-probs have bfloat16 precision: {totals.tied} tokens share the covariance at the cut, and a hash "
                "decides between them. For entropy studies set "
                "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
            )
        if totals.non_finite and "finite" not in self._logged:
            self._non_finite(totals.non_finite, log_prob, tokens)

    def on_effect(self, config: ControlConfig, changed: float, rollout_step: int) -> None:
        """Checks that the control acts; ``changed`` is its share in the gradient of an update's policy loss."""
        if changed > NO_CHANGE:
            self._idle_rollouts.clear()
            return
        self._idle_rollouts.add(rollout_step)
        if len(self._idle_rollouts) >= IDLE_ROLLOUTS and "band" not in self._logged:
            self._log(
                "idle",
                f"{config.loss_mode} changed nothing in the gradient of the policy loss for {IDLE_ROLLOUTS} rollouts: "
                "its penalty needs more than one update a rollout (lower ppo_mini_batch_size) and a coefficient above "
                "0, its band tokens, and the policy loss must be part of what is trained on",
            )

    def on_overlap(self, shared: int, selected: int) -> None:
        """Checks that the selection by the rollout's log-probs is nearly that by the present policy's.

        Args:
            shared: tokens of one optimizer step that both select.
            selected: tokens that the rollout's log-probs select.
        """
        self._overlaps.append((shared, selected))
        both, all_selected = (sum(counts) for counts in zip(*self._overlaps, strict=True))
        if all_selected >= APART_TOKENS and both < APART * all_selected:
            self._log(
                "apart",
                f"the rollout's log-probs (cov_log_prob=old) and the present policy's select the same tokens only to "
                f"{100 * both / all_selected:.0f} % ({len(self._overlaps)} updates): the policy moves far within a "
                "rollout. Set cov_log_prob=current for the paper's selection, at the cost of a forward an update",
            )

    def _band(self, config: ControlConfig, chosen: Selected, group: ProcessGroup | None) -> None:
        if not config.loss_mode.endswith("clip_cov") or "band" in self._logged:
            return
        self._empty_steps = 0 if chosen.totals.candidates else self._empty_steps + 1
        if self._empty_steps < EMPTY_BAND_STEPS or not chosen.totals.tokens:
            return
        values = largest_values(chosen.covariance, _SHARES, group).tolist()
        ladder = ", ".join(f"top {100 * share:g} %: {value:.3g}" for share, value in zip(_SHARES, values, strict=True))
        self._log(
            "band",
            f"no token had a covariance between clip_cov_lb={config.clip_cov_lb:g} and "
            f"clip_cov_ub={config.clip_cov_ub:g} in {self._empty_steps} optimizer steps, so Clip-Cov did nothing. The "
            f"largest covariances begin at ({ladder}): set clip_cov_lb to one of these",
        )

    def _non_finite(self, count: int, log_prob: Float[Tensor, " slots"], tokens: ResponseSlots) -> None:
        rows, positions = slots(tokens.lengths, tokens.valid.numel())
        source = "old_log_probs" if log_prob is tokens.old_log_prob else "log_probs of the current policy"
        for name, values in (
            (source, log_prob),
            ("advantages", tokens.advantage),
        ):
            non_finite = (tokens.valid & ~values.abs().lt(LARGEST)).nonzero()
            if non_finite.numel():
                slot = int(non_finite[0])
                self._log(
                    "finite",
                    f"tokens of the mini-batch with a log-prob or advantage that is not finite (or beyond 2^30): "
                    f"{count}. They are left out of the selection (verl's loss still sees them). "
                    f"The first on this rank: {name} is "
                    f"{float(values[slot])} in row {int(rows[slot])}, response position {int(positions[slot])} of rank "
                    f"{self._rank}",
                    every_rank=True,
                )
                return

    def _log(self, key: str, message: str, every_rank: bool = False) -> None:
        if key not in self._logged and (every_rank or self._rank == 0):
            logger.warning("verl-cov: %s", message)
        self._logged.add(key)


def _is_bfloat16(log_prob: Float[Tensor, " slots"], cov: Float32[Tensor, " slots"]) -> bool:
    """Returns True if a sample of the log-probs fits into bfloat16: the lower half of each float32 is zero."""
    sample = log_prob[:65536].float()
    sample = sample[torch.isfinite(cov[:65536]) & (sample != 0)]
    return sample.numel() >= 64 and not bool((sample.contiguous().view(torch.int32) & 0xFFFF).any())
