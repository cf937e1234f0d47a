"""The fields that verl-cov adds to verl's ``policy_loss``, and their validation.

``CovPolicyLossConfig`` extends verl's ``PolicyLossConfig`` and is selected by ``_target_`` (what ``+verl_cov=kl_cov``
does), so a process without a working plugin fails when the configuration is built, not later with another loss.
Field names that verl has keep verl's meaning. Leans on ``verl.workers.config.PolicyLossConfig``. It takes a second to
import: :mod:`.asks` does so in the runs that need it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from verl.workers.config import PolicyLossConfig

from verl_cov.core.controls.ce_gppo import BETAS
from verl_cov.core.controls.selective import ClipCov, KlCov
from verl_cov.core.controls.weight import Weight
from verl_cov.core.target.path import Path
from verl_cov.core.target.settings import TargetSettings
from verl_cov.hooks import knobs, versions
from verl_cov.hooks.loss_modes import CE_GPPO, CLIP_COV, LOSS_MODES, POLICY_LOSS
from verl_cov.hooks.policy_loss_values import NUMBERS, OFF, check_ratio, check_value
from verl_cov.hooks.status import require_working_plugin
from verl_cov.hooks.weight_values import make_weights


@dataclass
class CovPolicyLossConfig(PolicyLossConfig):
    """Clip-Cov and KL-Cov as fields of verl's ``actor_rollout_ref.actor.policy_loss``.

    Args:
        loss_mode: ``verl_cov.clip_cov`` or ``verl_cov.kl_cov`` (any of verl's own modes is accepted and left alone).
        clip_cov_ratio: r, share of the mini-batch's valid response tokens that lose their gradient (Eq. 11). A
            fraction.
        clip_cov_lb, clip_cov_ub: omega_low, omega_high: open covariance band the tokens are drawn from (Eq. 11).
        kl_cov_ratio: k, share of the tokens, largest covariance first, that get the penalty (Eq. 13). A fraction.
        ppo_kl_coef: beta, coefficient of the penalty (Eq. 14).
        cov_kl: estimator of the penalty: ``abs`` = abs(log-ratio) (the released code), ``k2`` = log-ratio^2 / 2,
            ``k3`` = exp(-log-ratio) - 1 + log-ratio.
        cov_kl_dead_zone: for ``cov_kl=abs``: nats that a log-prob must have moved before the penalty acts on it.
            ``auto``: what rounding alone moves it, measured in the first update of each rollout, in which the penalty
            rests (:mod:`verl_cov.core.dead_zone`). 0: the released code, in which rounding decides the sign.
        cov_base_loss: policy loss the control wraps: ``ratio`` (the unclipped surrogate -ratio * A) or any name in
            verl's registry, which :mod:`.base_losses` checks. None: ``vanilla`` for Clip-Cov, ``ratio`` for KL-Cov, as
            in the paper's code.
        cov_scope: ``mini_batch`` selects over the whole optimizer mini-batch of all ranks; ``micro_batch`` within each
            micro-batch, as verl's own ``clip_cov`` and ``kl_cov`` do (for comparison: the update then depends on the
            micro-batch size).
        cov_log_prob: log-probs that the covariance is taken with: ``old`` the rollout policy's, which the batch
            carries; ``current`` the present policy's, at the cost of a forward per optimizer step (in scope
            ``micro_batch`` the loss has them already). None: ``old`` for ``mini_batch``, ``current`` for
            ``micro_batch``, as in the released code.
        cov_seed: seed of Clip-Cov's draw and of the cut between equal covariances.
        cov_metrics: what is logged under ``actor/cov/``, for any ``loss_mode``: ``full``, ``basic`` (without the
            ladder and without what is computed once per rollout) or ``off`` (the selection's own counts only).
        cov_dump_every: at the first optimizer step of every so many rollouts, write the tokens with the highest
            covariance, decoded and with context, to ``cov_dump_dir``/tokens.jsonl, which ``verl-cov tokens`` reads.
            0: never.
        cov_dump_tokens: number of tokens written each time.
        cov_dump_dir: folder of that file.
        cov_val_entropy: number of a validation's generations whose entropy is measured, by one forward over them:
            ``off``, ``all`` or a number.
        cov_val_pass_at: the k whose pass@k is estimated from a validation's ``val_kwargs.n`` samples a prompt
            (:mod:`.validation.pass_at_k`): ``auto`` (those of 1, 4, 16, 64 that n allows), ``off`` or a list.
        cov_val_greedy: whether each validation prompt is answered once more, greedily (:mod:`.validation.greedy`).
        cov_val_success: the lowest ``acc`` (or score, where there is none) that counts as a success in both. None: 1
            does and 0 does not, and a validation set with other values has neither.
        cov_target: the node ``target``: which entropy to hold, and by which number; None: no target.
        cov_gppo_beta1, cov_gppo_beta2: of ``verl_cov.ce_gppo`` (:mod:`verl_cov.core.controls.ce_gppo`): how much of the
            gradient stays where the ratio is below, or above, PPO's clip.
        cov_weights: controls that weigh the advantages, with any loss that is homogeneous in them: {name: its numbers},
            of :mod:`verl_cov.core.controls.catalogue` or the user's own. Several multiply. With ``cov_scope`` and
            ``cov_log_prob`` as for a selection (in micro-batch scope always ``old``).

    A number of the control may be a schedule, ``{start, end, over, shape}``: it goes from start to end in so many
    rollouts (:func:`verl_cov.core.target.path.read_schedule`). The field then has its start, :attr:`schedules` all.

    Raises:
        ValueError: a field is out of range; the message names the field and the fix.
        RuntimeError: the plugin could not register itself in this process.
    """

    cov_kl: str = "abs"
    cov_kl_dead_zone: str | float = "auto"
    cov_base_loss: str | None = None
    cov_scope: str = "mini_batch"
    cov_log_prob: str | None = None
    cov_seed: int = 0
    cov_metrics: str = "full"
    cov_dump_every: int = 0
    cov_dump_tokens: int = 64
    cov_dump_dir: str | None = None
    cov_val_entropy: str | int = "off"
    cov_val_pass_at: Any = "auto"  # str | list[int], of which OmegaConf can make no structured configuration
    cov_val_greedy: bool = False
    cov_val_success: float | None = None
    cov_target: Any = None
    cov_gppo_beta1: float = BETAS[0]
    cov_gppo_beta2: float = BETAS[1]
    cov_weights: dict[str, Any] | None = None
    schedules: dict[str, Path] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def extend(cls, policy_loss: PolicyLossConfig) -> CovPolicyLossConfig:
        """Takes over the fields of verl's configuration; the fields that verl-cov adds get their defaults."""
        return cls(**{each.name: getattr(policy_loss, each.name) for each in fields(PolicyLossConfig)})

    def __post_init__(self) -> None:
        require_working_plugin()
        for name in OFF:
            if getattr(self, name) is False:  # what YAML makes of a bare "off"
                object.__setattr__(self, name, "off")
        for each in fields(self):
            if self.controls or each.name not in (*NUMBERS, "cov_seed"):  # verl's own losses' are verl's business
                check_value(each.name, getattr(self, each.name))
        knobs.read_schedules(self)
        if self.controls:
            self._check_control()
        if self.cov_weights:
            self._check_weights()
        _check_dump(self)
        _check_validation(self)
        if isinstance(self.cov_target, Mapping):
            object.__setattr__(self, "cov_target", TargetSettings.from_node(self.cov_target))
        if self.cov_target is not None:
            knobs.check(self)

    def _check_control(self) -> None:
        check_ratio(self.ratio_field, self.ratio)
        if not self.clip_cov_lb < self.clip_cov_ub:
            raise ValueError(
                f"{POLICY_LOSS}.clip_cov_lb={self.clip_cov_lb} must be below clip_cov_ub={self.clip_cov_ub}: "
                "no token can have a covariance between them"
            )

    def _check_weights(self) -> None:
        check_value("cov_seed", self.cov_seed)
        if self.weights and self.cov_scope == "micro_batch" and self.cov_log_prob == "current":
            raise ValueError(f"{POLICY_LOSS}.cov_log_prob=current: micro-batch weights go by old: leave it out")

    @property
    def controls(self) -> bool:
        """True if the loss is one of verl-cov's; otherwise the configuration only asks for metrics."""
        return self.loss_mode in LOSS_MODES

    @property
    def control(self) -> ClipCov | KlCov:
        """The control of ``loss_mode``; made anew from the fields at each call, so that a number may move."""
        if self.loss_mode == CLIP_COV:
            return ClipCov(self.clip_cov_ratio, self.clip_cov_lb, self.clip_cov_ub)
        return KlCov(self.kl_cov_ratio, self.ppo_kl_coef, self.cov_kl)

    @property
    def weights(self) -> dict[str, Weight]:
        """The controls by weight; made anew from :attr:`cov_weights` at each call, so that a number may move."""
        return make_weights(self.cov_weights)

    @property
    def acts(self) -> bool:
        """True if the run has a control, of either kind."""
        return self.controls or bool(self.weights)

    @property
    def needs(self) -> set[str]:
        """What the controls by weight need of the batch, see :class:`verl_cov.core.controls.weight.Weight`."""
        return {need for weight in self.weights.values() for need in weight.needs}

    @property
    def base_loss(self) -> str:
        """Name of the policy loss that is wrapped."""
        return self.cov_base_loss or (self.control.base_loss if self.controls else "vanilla")

    @property
    def log_prob(self) -> str:
        """``old`` or ``current``: log-probs that the covariance is taken with."""
        return self.cov_log_prob or ("old" if self.cov_scope == "mini_batch" else "current")

    @property
    def ratio(self) -> float:
        """Share of the tokens that the active control selects."""
        return self.control.ratio

    @property
    def ratio_field(self) -> str:
        """Name of the field that :attr:`ratio` comes from."""
        return self.control.ratio_field

    @property
    def moves(self) -> bool:
        """True if a number changes from rollout to rollout."""
        return self.cov_target is not None or bool(self.schedules)

    def dead_zone(self, measured: float) -> float:
        """Returns the dead zone of the absolute penalty in nats: ``measured``, unless the field has a number."""
        return measured if self.cov_kl_dead_zone == "auto" else float(self.cov_kl_dead_zone)

    def describe(self, entropy_coeff: float = 0.0) -> str:
        """Describes the active control and its settings in one line. entropy_coeff: the actor's."""
        metrics = f"cov_metrics={self.cov_metrics}"
        metrics += "".join(f", {name} {path.describe()}" for name, path in self.schedules.items())
        if self.cov_target is not None:
            knob = knobs.find(self, entropy_coeff)
            metrics += f", target: {self.cov_target.describe()} by {knob.name} ({self.cov_target.rule})"
            metrics += f" from {knob.start:g} within {knob.low:g} to {knob.high:g}"
        if self.weights:
            told = {name: self._without_knob(weight.describe(), f"{name}.") for name, weight in self.weights.items()}
            weights = " x ".join(f"{name} ({numbers})" for name, numbers in told.items())
            where = {"mini_batch": "whole mini-batch of all ranks", "micro_batch": "single MICRO-BATCH"}[self.cov_scope]
            metrics = f"advantages of the {where} weighed by {weights}, {metrics}"
        if self.loss_mode == CE_GPPO:
            metrics = f"beta1={self.cov_gppo_beta1:g}, beta2={self.cov_gppo_beta2:g}, {metrics}"
        if not self.controls and (self.weights or self.loss_mode == CE_GPPO):
            return f"loss_mode={self.loss_mode}, {metrics}"
        if not self.controls:
            return f"{metrics} on loss_mode={self.loss_mode}, which is verl's own (ours: +verl_cov=kl_cov or clip_cov)"
        return (
            f"loss_mode={self.loss_mode} on {self.base_loss} "
            f"({self._without_knob(self.control.describe())}, seed {self.cov_seed}), "
            + {
                "mini_batch": "selection over the whole mini-batch of all ranks",
                "micro_batch": "selection within each MICRO-BATCH, as verl's own: it changes with the micro-batch size",
            }[self.cov_scope]
            + f", by {self.log_prob} log-probs, {metrics}"
        )

    def _without_knob(self, numbers: str, owner: str = "") -> str:
        """``numbers`` with the one that the target moves named as such: its own value is not used, or is its start."""
        control, dot, number = ("" if self.cov_target is None else knobs.name_of(self)).rpartition(".")
        return (
            re.sub(rf"\b{number}=[^,]*", f"{number} by the target", numbers)
            if number and control + dot == owner
            else numbers
        )


def known_fields() -> list[str]:
    """Returns the names of all fields of ``policy_loss``."""
    return [each.name for each in fields(CovPolicyLossConfig) if each.init]


def _check_dump(config: CovPolicyLossConfig) -> None:
    if config.cov_dump_every and not config.cov_dump_dir:
        raise ValueError(
            f"{POLICY_LOSS}.cov_dump_every={config.cov_dump_every} needs a folder: set {POLICY_LOSS}.cov_dump_dir"
        )
    if config.cov_dump_every and config.cov_metrics == "off":
        raise ValueError(
            f"{POLICY_LOSS}.cov_dump_every={config.cov_dump_every} needs cov_metrics=basic or full, not off"
        )


def _check_validation(config: CovPolicyLossConfig) -> None:
    asked = [(name, getattr(config, name)) for name in ("cov_val_entropy", "cov_val_pass_at", "cov_val_greedy")]
    for name, value in asked:
        off = {"cov_val_greedy": False}.get(name, "off")
        if value in (off, "auto"):
            continue
        if not versions.installed_release().v1:
            raise ValueError(f"{POLICY_LOSS}.{name}={value} needs verl 0.9 or later: set it to {off}")
        if config.cov_metrics == "off":
            raise ValueError(f"{POLICY_LOSS}.{name}={value} needs cov_metrics=basic or full, not off")
