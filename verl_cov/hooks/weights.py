"""Weighs the advantages of a mini-batch by the run's controls (``cov_weights``), before verl cuts it up.

With ``cov_scope=micro_batch`` those of each micro-batch alone, as the published implementations do, for comparison.
Leans on ``advantages`` of the batch, which every policy loss of verl's is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core import identity, metrics
from verl_cov.core.collectives import all_reduce
from verl_cov.core.controls.tokens import MissingInputError, Tokens
from verl_cov.core.controls.weight import NUMBERS, Weight, weigh, weight_metrics
from verl_cov.hooks.batch import RankTokens, device
from verl_cov.hooks.loss_modes import POLICY_LOSS
from verl_cov.hooks.worker_state import state_of

if TYPE_CHECKING:
    from tensordict import TensorDict

    from verl_cov.hooks.actor_worker import ActorWorkerAdapter
    from verl_cov.hooks.config import CovPolicyLossConfig


class Weighing:
    """The weighing of one optimizer step on one rank. Every data-parallel rank must create it.

    Args:
        log_prob: [slots], what the controls are to go by; None: the rollout policy's, or with
            ``cov_log_prob=current`` the present policy's, by a forward.
    """

    def __init__(
        self,
        adapter: ActorWorkerAdapter,
        cov: CovPolicyLossConfig,
        step: int,
        tokens: RankTokens,
        log_prob: Tensor | None = None,
    ) -> None:
        self._group, self._data, self._cov, self._step = adapter.group, adapter.data, cov, step
        self._controls = cov.weights
        self._mean_entropy = state_of(adapter.worker).rollout_entropy
        self._numbers = torch.zeros(len(self._controls), NUMBERS, dtype=torch.float64, device=device())
        self._advantages = self._data["advantages"]
        if self._cov.cov_scope == "mini_batch":
            if log_prob is None:
                log_prob = tokens.old_log_prob if cov.log_prob == "old" else adapter.log_probs(tokens)
            self._weigh(tokens, log_prob, self._group)

    def micro_batch(self, micro_batch: TensorDict) -> None:
        """Weighs the advantages of a micro-batch, in micro-batch scope, by the rollout policy's log-probs."""
        if self._cov.cov_scope == "micro_batch":
            tokens = RankTokens.read(micro_batch)
            self._weigh(tokens, tokens.old_log_prob, None)

    def finish(self) -> dict[str, float]:
        """Gives the batch its own advantages back, and returns the metrics. All ranks must call it, after the step."""
        self._data["advantages"] = self._advantages  # the batch may be trained on once more
        numbers = self._numbers
        if self._cov.cov_scope == "micro_batch":
            numbers = all_reduce(numbers, self._group)
        values: dict[str, float] = {}
        for name, each in zip(self._controls, numbers.tolist(), strict=True):
            values |= weight_metrics(name, each)
        return metrics.prefixed(values)

    def _weigh(self, batch: RankTokens, log_prob: Tensor, group: ProcessGroup | None) -> None:
        rows, _ = identity.slots(batch.lengths, batch.valid.numel())
        own = any("own" in control.needs for control in self._controls.values())
        prompt = batch.prompt() if own else None
        tokens = Tokens(
            log_prob=log_prob,
            old_log_prob=batch.old_log_prob,
            advantage=batch.advantage,
            valid=batch.valid,
            identity=batch.identity(group),
            entropies=batch.entropy(),
            mean_entropy=self._mean_entropy,
            row=rows,
            prompt=None if prompt is None else prompt[rows],
            seed=self._cov.cov_seed,
            step=self._step,
            group=group,
        )
        weights, numbers = _weigh(self._controls, tokens)
        self._numbers += numbers
        batch.write_advantages(batch.advantage * weights)


def _weigh(controls: dict[str, Weight], tokens: Tokens) -> tuple[Tensor, Tensor]:
    try:
        return weigh(controls, tokens)
    except MissingInputError as missing:
        raise RuntimeError(
            f"verl-cov: a control of {POLICY_LOSS}.cov_weights ({', '.join(controls)}) needs {missing}, which this "
            "batch does not carry: use verl's V1 trainer (trainer.use_v1=true), without "
            "algorithm.rollout_correction.bypass_mode"
        ) from None
