"""Which numbers of a run move from rollout to rollout: those that follow a schedule, and the knob of its target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from verl_cov.core.controls.weight import Weight
from verl_cov.core.target.path import Path, read_schedule
from verl_cov.core.target.settings import NODE, Knob
from verl_cov.hooks.loss_modes import ENTROPY_BONUS, KNOBS_OF, NUMBERS_OF, POLICY_LOSS, WEIGHT_KNOBS
from verl_cov.hooks.policy_loss_values import MAX_RATIO, NUMBERS, RATIOS, check_ratio
from verl_cov.suggestions import did_you_mean


class Moving(Protocol):
    """What is needed of :class:`verl_cov.hooks.config.CovPolicyLossConfig`."""

    loss_mode: str
    cov_target: Any
    schedules: dict[str, Path]

    @property
    def controls(self) -> bool: ...
    @property
    def ratio_field(self) -> str: ...
    @property
    def weights(self) -> dict[str, Weight]: ...


def read_schedules(cov: Moving) -> None:
    """Puts each number that is a schedule into ``cov.schedules``, and its start in its place. Raises ValueError."""
    for name in NUMBERS:
        value = getattr(cov, name)
        if not isinstance(value, Mapping):
            continue
        known = NUMBERS_OF.get(cov.loss_mode, ())
        if name not in known:
            can = f"{cov.loss_mode} has {', '.join(known) or 'none of ours (+verl_cov=kl_cov or clip_cov)'}"
            raise ValueError(f"{POLICY_LOSS}.{name} is a schedule, and no number of the run's control: {can}")
        if name in RATIOS:
            check_ratio(name, value)
        cov.schedules[name] = read_schedule(f"{POLICY_LOSS}.{name}", value)
        object.__setattr__(cov, name, cov.schedules[name].at(0))


def name_of(cov: Moving) -> str:
    """Returns the name of the number that the target moves; of a control by weight: ``repo.zeta``."""
    return cov.ratio_field if cov.controls and cov.cov_target.knob == "ratio" else cov.cov_target.knob


def find(cov: Moving, entropy_coeff: float = 0.0) -> Knob:
    """Returns what the target moves; ``entropy_coeff`` is the actor's. Raises ValueError for impossible ends."""
    name = name_of(cov)
    control, _, number = name.rpartition(".")
    owner = cov.weights[control] if control else cov
    configured = entropy_coeff if name == ENTROPY_BONUS else getattr(owner, number)
    return cov.cov_target.knob_of(name, configured, MAX_RATIO if name in RATIOS else WEIGHT_KNOBS.get(name))


def check(cov: Moving) -> None:
    """Raises ValueError for a knob that the run has not, or that cannot move as ``target`` says."""
    name, by_weight = name_of(cov), [knob for knob in WEIGHT_KNOBS if knob.partition(".")[0] in cov.weights]
    own = (*KNOBS_OF.get(cov.loss_mode, ()), *by_weight)
    if name not in (*own, ENTROPY_BONUS):
        owners = {knob: mode for mode, knobs in KNOBS_OF.items() for knob in knobs}
        owners |= {knob: knob.partition(".")[0] for knob in WEIGHT_KNOBS}
        if name in owners:
            whose = f"a number of {owners[name]}, which this run has not (loss_mode={cov.loss_mode})"
            raise ValueError(f"{NODE}.knob={name} is {whose}: use {' or '.join((*own, ENTROPY_BONUS))}")
        raise ValueError(f"{NODE}.knob={name} is unknown{did_you_mean(str(name), (*own, 'ratio', ENTROPY_BONUS))}")
    if name in cov.schedules:
        raise ValueError(f"{POLICY_LOSS}.{name} is a schedule, and {NODE}.knob={name} moves it too: give it a number")
    if name != ENTROPY_BONUS:
        find(cov)
