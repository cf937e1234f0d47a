"""The configuration of PRIME, which is the node ``prime`` of a trainer's configuration, and its validation.

Equations are those of Cui et al. 2025 (arXiv 2502.01456v2). Where their released code differs, there is an option.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from verl_cov.suggestions import unknown

TRAINER_MODE = "verl_cov.prime"  # of trainer.v1.trainer_mode

UPDATES = ("after", "before", "reverse", "none")
LOSSES = ("ce", "dpo")
RLOO = ("paper", "released")
NORMS = ("max_return", "none")
REFERENCES = ("frozen", "policy")
REWARD = "reward"


@dataclass(frozen=True)
class PrimeConfig:
    """What PRIME adds to a run. The advantage is verl's ``algorithm.adv_estimator`` (rloo: Eq. 5, grpo: Eq. 7,
    reinforce_plus_plus: Eq. 8), the discount ``algorithm.gamma``, the filter's switch, metric and bound
    ``algorithm.filter_groups``.

    Args:
        beta: coefficient of the log-ratio: r_t = beta (log pi_phi - log pi_ref), Eq. 3.
        update: when the PRM learns from a rollout. ``after``: the rewards come from the one forward that its update
            makes anyway (with several mini-batches, later rewards come from a PRM that has learnt from the earlier
            mini-batches, as in the released code). ``before``: it is updated, then scores. ``reverse``: it scores, then
            is updated. ``none``: it scores and never learns.
        loss: ``ce``: cross-entropy of sigmoid(sum_t r_t) with the outcome, which may be soft (Sec. 3.2); ``dpo``: each
            response against the mean of those to its prompt that did worse, or better (Table 8).
        epochs: of the PRM's update on a rollout.
        mini_batch_size: of the PRM's update, in prompts; None: the policy's, as in the released code.
        micro_batch_size_per_gpu: responses per forward of the PRM and of the reference; None: the policy's.
        max_token_len_per_gpu: tokens per forward with ``use_dynamic_bsz``; None: the policy's.
        reward_last_token: False gives the last token of each response no process reward, as verl's recipe does.
        reward_norm: ``max_return`` divides all process rewards of the batch by its largest absolute return (the
            released code does so on each data-parallel rank separately); ``none``: Eq. 3 as it is.
        rloo: ``paper``: Eq. 5; ``released``: the released code's baseline, r_t K/(K-1) - sum_j mean(r^j)/(K-1).
        process_coef, outcome_coef: weights of the two advantages; the paper's are 1 and 1.
        whiten: scale the advantages of the batch to mean 0 and variance 1, as in the released code.
        outcome: what counts as the outcome, in [0, 1]: ``reward`` (the reward function's score) or a key of the
            dictionary that it returns.
        accuracy_low, accuracy_high: prompts whose mean ``algorithm.filter_groups.metric`` is outside are dropped.
        reference: ``frozen``: a copy that never learns; ``policy``: the policy's own log-probs before its update.
        reference_path: the frozen reference's model; None: the policy's, ``actor_rollout_ref.model.path``.
        model: fields of ``actor_rollout_ref.model`` that differ for the PRM, above all its ``path``.
        optim, engine: fields of the policy's optimizer and engine that differ for the PRM.

    Raises:
        ValueError: a value is out of range; the message names the field and the allowed values.
    """

    beta: float = 0.05
    update: str = "after"
    loss: str = "ce"
    epochs: int = 1
    mini_batch_size: int | None = None
    micro_batch_size_per_gpu: int | None = None
    max_token_len_per_gpu: int | None = None
    reward_last_token: bool = True
    reward_norm: str = "max_return"
    rloo: str = "paper"
    process_coef: float = 1.0
    outcome_coef: float = 1.0
    whiten: bool = True
    outcome: str = REWARD
    accuracy_low: float = 0.2
    accuracy_high: float = 0.8
    reference: str = "frozen"
    reference_path: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    optim: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (
            ("update", UPDATES),
            ("loss", LOSSES),
            ("rloo", RLOO),
            ("reward_norm", NORMS),
            ("reference", REFERENCES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"prime.{name}: {unknown('value', str(getattr(self, name)), known)}")
        for name in ("process_coef", "outcome_coef"):
            if not (_is_number(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"prime.{name}={getattr(self, name)} must be a number of at least 0")
        if self.process_coef == self.outcome_coef == 0:
            raise ValueError(
                "prime.process_coef and prime.outcome_coef are both 0: nothing to learn from. Set one of them above 0"
            )
        if not (_is_number(self.beta) and self.beta > 0):
            raise ValueError(f"prime.beta={self.beta} must be a number above 0")
        for name in ("epochs", "mini_batch_size", "micro_batch_size_per_gpu", "max_token_len_per_gpu"):
            value = getattr(self, name)
            if not (value is None and name != "epochs") and (type(value) is not int or value < 1):
                raise ValueError(f"prime.{name}={value} must be a whole number of at least 1")
        for name in ("reward_last_token", "whiten"):
            value = getattr(self, name)
            if not isinstance(value, bool):  # "no" and "off" on a command line are strings, which would count as true
                raise ValueError(f"prime.{name}={value} must be true or false")
        for name in ("model", "optim", "engine"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                path = f", or prime.model.path={value} for a model" if name == "model" and value else ""
                raise ValueError(f"prime.{name}={value} must be a mapping of fields: {{}} for none{path}")
        low, high = self.accuracy_low, self.accuracy_high
        if not (_is_number(low) and _is_number(high) and 0 <= low <= high <= 1):
            raise ValueError(
                f"prime.accuracy_low={low}, prime.accuracy_high={high}: need 0 <= accuracy_low <= accuracy_high <= 1"
            )
        if not self.outcome or not isinstance(self.outcome, str):
            raise ValueError(f"prime.outcome={self.outcome} must be {REWARD} or a key that the reward function returns")
        if self.reference == "policy" and self.reference_path is not None:
            raise ValueError(
                "prime.reference_path is the model of a frozen reference, and prime.reference=policy has none: set "
                "prime.reference=frozen, or remove prime.reference_path"
            )

    @classmethod
    def from_node(cls, values: Mapping[str, Any]) -> PrimeConfig:
        """Builds the configuration from the node's values, leaving out Hydra's (``_target_``).

        Raises ValueError for an unknown field or a value out of range.
        """
        values = {name: value for name, value in values.items() if not name.startswith("_")}
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"prime.{name}: {unknown('field', str(name), known)}")
        return cls(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
