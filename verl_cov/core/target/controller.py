"""Moves the knob of a run towards its target, once a rollout: a pure function of the state and the measured entropy.

All arithmetic is on plain numbers that every rank has, and the knob is rounded to nine digits, so that ranks and
resumed runs on other machines, whose exp and log may differ in the last bit, have the same knob bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

from verl_cov.core.target.settings import BAND, NODE, Knob, TargetSettings

WINDOW = 50  # rollouts over which it is counted how often the target was held
CLAMPED_ROLLOUTS = 20  # in a row at an end of the knob before the user is told
# So many times from one side of the target to the other, within so many rollouts, is an oscillation.
SWINGS, SWING_ROLLOUTS = 3, 20
SWING_NOISE = 1.5  # standard errors that a swing must exceed, where that is more than the band
# ln(target / entropy) that counts at most: for the proportional part, and for the integral, which otherwise would wind
# up while a far target is approached.
_FAR, _NEAR = 1.0, 0.2
# While a target is approached the integral comes down so much more slowly than it goes up: entropy is lost more quickly
# than it is regained.
_DOWN = 0.25
_SMALLEST = 1e-9  # nats; the logarithm of 0 would be infinite


@dataclass(frozen=True)
class TargetState:
    """What the controller remembers; it goes into checkpoints.

    Args:
        rollouts: so far.
        first: entropy of the first rollout; held: that of the rollout which ``hold`` names.
        knob: its value in the last rollout.
        level: what the rule moves. ``pi``: logarithm of the knob without the proportional part; otherwise the knob.
        gap: ln(entropy / target) where the target began; since: that rollout. ``pi`` closes it by and by.
        goal, moved, rule: the target, the knob's name and the rule that all this belongs to.
        scale: of the gains, halved at each oscillation.
        side: of the target, at which the entropy was last seen: -1 below, 1 above, 0 neither so far.
        swings: the last rollouts at which it came to the other side.
        within: of the last :data:`WINDOW` rollouts, whether the target was held.
        clamped: rollouts in a row at an end of the knob.
        said: warnings that were given.
    """

    rollouts: int = 0
    first: float | None = None
    held: float | None = None
    knob: float | None = None
    level: float | None = None
    gap: float | None = None
    since: int = 0
    goal: str = ""
    moved: str = ""
    rule: str = ""
    scale: float = 1.0
    side: int = 0
    swings: tuple[int, ...] = ()
    within: tuple[bool, ...] = ()
    clamped: int = 0
    said: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, ready for JSON, which keeps every bit of a float."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, values: Any) -> TargetState:
        """Restores what :meth:`state_dict` returned. Raises ValueError for anything else."""
        names = {each.name for each in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            raise ValueError("not the state of a target")
        kept: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**kept)


class Moved(NamedTuple):
    """What a rule gives: its level (:attr:`TargetState.level`), the knob, whether it wanted to go beyond an end."""

    level: float
    value: float
    clamped: bool


@dataclass(frozen=True)
class Step:
    """What one rollout gives. ``target`` and ``measured`` are in nats; None where there is none.

    Args:
        knob: for this rollout's updates.
        clamped: True if the rule wanted to go beyond an end of the knob.
        warnings: for the user; each is given once in a run.
    """

    state: TargetState
    knob: float
    target: float | None = None
    measured: float | None = None
    clamped: bool = False
    warnings: tuple[str, ...] = ()

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of this rollout, without their prefix."""
        values = {"knob": self.knob, "knob_clamped": float(self.clamped)}
        if self.measured is not None:
            values["target_measured"] = self.measured
        if self.target is not None:
            values["target"] = self.target
        if self.target is not None and self.measured is not None:
            values["target_error"] = self.measured - self.target
        if self.state.within:
            values["target_held"] = sum(self.state.within) / len(self.state.within)
        return values


def resumed(settings: TargetSettings, knob: Knob, state: TargetState) -> tuple[TargetState, str | None]:
    """Fits a checkpoint's state to settings that may have changed; returns it and what to tell the user, if anything.

    A new target goes on with the knob as it is. With a new knob or rule the knob starts anew.
    """
    notes = []
    if state.goal and state.goal != settings.describe():
        notes.append(f"the target was {state.goal} and is now {settings.describe()}")
        state = replace(state, held=None, gap=None, within=(), side=0, swings=(), clamped=0)
    if state.moved and (state.moved, state.rule) != (knob.name, settings.rule):
        notes.append(f"{state.moved} by {state.rule} is now {knob.name} by {settings.rule}, from its start")
        state = replace(state, knob=None, level=None, scale=1.0, side=0, swings=(), clamped=0)
    return replace(state, goal=settings.describe(), moved=knob.name, rule=settings.rule), "; ".join(notes) or None


def update(
    settings: TargetSettings, knob: Knob, state: TargetState, measured: float | None, noise: float | None = None
) -> Step:
    """Takes in the entropy of one rollout and returns the knob for its updates.

    Args:
        measured: in nats per token; None where this rollout gave none: the knob stays.
        noise: standard error of ``measured``, None if it is not known.
    """
    rollout, last = state.rollouts, min(max(knob.start if state.knob is None else state.knob, knob.low), knob.high)
    state = replace(state, rollouts=rollout + 1, knob=last)
    if measured is None:
        return Step(state, last)
    state = replace(state, first=measured if state.first is None else state.first)
    if settings.hold is not None and state.held is None and rollout + 1 >= settings.hold:
        state = replace(state, held=measured)
    target = _target(settings, state, rollout)
    if target is None:
        return Step(state, last, None, measured)
    error = math.log(max(target, _SMALLEST) / max(measured, _SMALLEST))
    if state.gap is None:
        state = replace(state, gap=-error, since=rollout)
    level, value, clamped = _RULES[settings.rule](settings, knob, state, error)
    state, swings = _watch_swings(settings, state, error, target, noise)
    within = (*state.within, abs(measured - target) <= BAND * target)[-WINDOW:]
    stuck = state.clamped + 1 if clamped and not within[-1] else 0
    state = replace(state, level=level, knob=value, within=within, clamped=stuck)
    cannot = _cannot(knob, measured, target) if stuck >= CLAMPED_ROLLOUTS else None
    found = {key: text for key, text in (("swings", swings), ("clamped", cannot)) if text and key not in state.said}
    state = replace(state, said=(*state.said, *found))
    return Step(state, value, target, measured, clamped, tuple(found.values()))


def _target(settings: TargetSettings, state: TargetState, rollout: int) -> float | None:
    if settings.points is not None:
        return settings.points.at(rollout)
    if settings.hold is not None:
        return state.held
    if settings.fraction is not None:
        return None if state.first is None else settings.fraction * state.first
    return settings.target_entropy


def _pi(settings: TargetSettings, knob: Knob, state: TargetState, error: float) -> Moved:
    """Moves the logarithm of the knob: the loop is then as strong whatever the knob's scale.

    What it follows is not the target at once but a way to it from where the entropy began, in the logarithm, quick at
    first and then ever slower: a rule that lowers the knob because the entropy is still far above the target lets it
    fall through the target, and few knobs lift it again.
    """
    left = 1 - (state.rollouts - 1 - state.since) / settings.approach if settings.approach else 0.0
    if left > 0 and state.gap is not None:
        error += state.gap * left * left
    low, high = math.log(knob.low), math.log(knob.high)
    level = min(max(math.log(knob.start) if state.level is None else state.level, low), high)
    push = state.scale * settings.gain * min(max(error, -_FAR), _FAR)
    pull = state.scale * settings.integral * min(max(error, -_NEAR), _NEAR)
    moved = level + (_DOWN * pull if left > 0 and pull < 0 else pull)
    above, below = moved + push > high, moved + push < low
    if not (above and error > 0) and not (below and error < 0):  # there the integral would wind up
        level = min(max(moved, low), high)
    wanted = level + push
    value = knob.low if wanted <= low else knob.high if wanted >= high else _rounded(math.exp(wanted))
    return Moved(level, value, above or below)


def _double_half(settings: TargetSettings, knob: Knob, state: TargetState, error: float) -> Moved:
    level = knob.start if state.level is None else state.level
    return _within_ends(knob, level * 2 if error > 0 else level / 2 if error < 0 else level)


def _delta(settings: TargetSettings, knob: Knob, state: TargetState, error: float) -> Moved:
    level = knob.start if state.level is None else state.level
    moved = _within_ends(knob, level + knob.delta if error > 0 else level - knob.delta)
    return moved if error > 0 else moved._replace(value=knob.low)


_RULES = {"pi": _pi, "double_half": _double_half, "delta": _delta}


def _within_ends(knob: Knob, wanted: float) -> Moved:
    value = _rounded(min(max(wanted, knob.low), knob.high))
    return Moved(value, value, not knob.low <= wanted <= knob.high)


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")


def _watch_swings(
    settings: TargetSettings, state: TargetState, error: float, target: float, noise: float | None
) -> tuple[TargetState, str | None]:
    """Notes when the entropy comes to the other side of the target by more than the band and its noise. Where it
    does so again and again, halves the gains and returns what to tell the user."""
    far = max(math.log1p(BAND), SWING_NOISE * (noise or 0.0) / max(target, _SMALLEST))
    side = 0 if abs(error) <= far else -1 if error > 0 else 1
    if side == 0:
        return state, None
    swings = state.swings
    if state.side == -side:
        swings = (*(at for at in swings if state.rollouts - at < SWING_ROLLOUTS), state.rollouts)
    if len(swings) < SWINGS:
        return replace(state, side=side, swings=swings), None
    if settings.rule == "pi":
        scale, fix = state.scale / 2, f"{NODE}.gain and {NODE}.integral are halved; start the next run with less"
    else:
        scale, fix = state.scale, f"set {NODE}.rule=pi"
    text = f"the entropy swings round the target, {SWINGS} times to the other side in {SWING_ROLLOUTS} rollouts: {fix}"
    return replace(state, side=side, swings=(), scale=scale), text


def _cannot(knob: Knob, measured: float, target: float) -> str:
    name, end, where, fix = "max", knob.high, "below", "raise it, lower the target"
    if measured > target:
        name, end, where, fix = "min", knob.low, "above", "lower it, raise the target"
    return (
        f"the target cannot be held: {knob.name} has been at {NODE}.{name}={end:g} for {CLAMPED_ROLLOUTS} rollouts, "
        f"and the entropy, {measured:.3g}, is {where} the target, {target:.3g}: {fix}, or take another knob"
    )
