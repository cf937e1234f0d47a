"""The configuration of a target, which is the node ``target`` of a trainer's configuration, and its validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from verl_cov.core.target.path import Path, is_number, is_whole
from verl_cov.suggestions import did_you_mean

NODE = "target"
RULES = ("pi", "double_half", "delta")
MEASURES = ("exact", "sampled")
_NUMBERS = ("target_entropy", "hold", "fraction", "start", "min", "max", "gain", "integral", "approach", "delta")
_NO_ROLLOUT = f"{NODE}.hold={{}} must be a whole number of rollouts, at least 1"
_NO_APPROACH = f"{NODE}.approach={{}} must be a whole number of rollouts, 0 for at once"
_WORDS = ("shape", "knob", "rule", "measure")
GOALS = ("target_entropy", "path", "hold", "fraction")
BAND = 0.1  # of the target: what counts as held
# Where a user gives no ends: the knob may go so many times up and down from its start.
_REACH = 100.0
_LARGEST_FRACTION = 2.0


class Knob(NamedTuple):
    """The number that is moved: the name of its field, where it starts, its ends, and the step of ``delta``."""

    name: str
    start: float
    low: float
    high: float
    delta: float


@dataclass(frozen=True)
class TargetSettings:
    """Which entropy a run shall have, and the number that is moved for it, once a rollout.

    Exactly one of the first four says which entropy, in nats per token: the mean over each response's tokens, then over
    responses, at the rollout's temperature.

    Args:
        target_entropy: this one.
        path: points ``[[rollout, entropy], ...]`` over rollouts, the first at 0.
        hold: the one that is measured at the so many-th rollout; the knob stays where it starts until then.
        fraction: this share of the first rollout's.
        shape: of ``path`` between its points: ``linear``, ``cosine`` or ``steps``.
        knob: the number that is moved: a number of the active control, ``ratio`` for its ratio, or ``entropy_coeff``.
        start, min, max: of the knob. Default: start where the configuration has it; a hundred times up and down.
        rule: ``pi``: proportional and integral, in the logarithm of the knob. ``double_half``: twice or half at each
            rollout (REPO-R, arXiv 2603.11682). ``delta``: a step up or down, and ``min`` at once while the entropy is
            not below the target (the gate of Skywork-OR1, arXiv 2505.22312, and TRL).
        gain, integral: of ``pi``: change of the logarithm of the knob by ln(target / entropy), and a rollout; the
            latter is a quarter downwards while the target is approached.
        approach: of ``pi``: rollouts in which the entropy shall come from where it is to the target; 0: at once.
        delta: the step of ``delta``. Default: 2 % of ``max``, as Skywork-OR1's 1e-4 of 0.005.
        measure: ``exact``: the entropy over the vocabulary at each token; ``sampled``: -log pi of the sampled tokens,
            for runs in which verl computes no entropy.

    Raises:
        ValueError: a value is out of range; the message names the field and the fix.
    """

    target_entropy: float | None = None
    path: Any = None
    hold: int | None = None
    fraction: float | None = None
    shape: str = "linear"
    knob: str = "ppo_kl_coef"
    start: float | None = None
    min: float | None = None
    max: float | None = None
    rule: str = "pi"
    gain: float = 6.0
    integral: float = 3.0
    approach: int = 15
    delta: float | None = None
    measure: str = "exact"
    points: Path | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, known in (("rule", RULES), ("measure", MEASURES)):
            given = getattr(self, name)
            if given not in known:
                raise ValueError(f"{NODE}.{name}={given!r} is unknown{did_you_mean(given, known)}")
        self._check_goal()
        for name in ("start", "min", "max", "delta"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value >= 0):
                raise ValueError(f"{NODE}.{name}={value!r} must be a number of at least 0")
        for name in ("gain", "integral"):
            if not (is_number(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{NODE}.{name}={getattr(self, name)!r} must be a number of at least 0")
        if self.approach < 0:
            raise ValueError(_NO_APPROACH.format(self.approach))
        if self.gain == self.integral == 0:
            raise ValueError(f"{NODE}.gain and {NODE}.integral are both 0: the knob would never move. Raise gain (6)")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"{NODE}.min={self.min:g} is above {NODE}.max={self.max:g}: swap them")

    def _check_goal(self) -> None:
        given = [name for name in GOALS if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join(f"{NODE}.{name}" for name in (given or GOALS))
            which = f"{len(given)} are set: {names}" if given else f"none of {names} is set"
            raise ValueError(
                f"say which entropy in one way, and {which}: e.g. {NODE}.target_entropy=0.3 (nats per token)"
            )
        value = getattr(self, given[0])
        if self.path is not None:
            points = Path.read(f"{NODE}.path", self.path, self.shape)
            lowest = min(entropy for _, entropy in points.points)
            if lowest <= 0:
                raise ValueError(f"{NODE}.path has {lowest:g}, and entropies are above 0 nats per token: raise it")
            object.__setattr__(self, "points", points)
        elif self.hold is not None:
            if value < 1:
                raise ValueError(_NO_ROLLOUT.format(value))
        elif not (is_number(value) and value > 0):
            unit = "nats per token" if self.fraction is None else "a fraction of the first rollout's entropy"
            raise ValueError(f"{NODE}.{given[0]}={value!r} must be a number above 0, {unit}")
        elif self.fraction is not None and self.fraction > _LARGEST_FRACTION:
            raise ValueError(
                f"{NODE}.fraction={value:g} must be a fraction of the first rollout's entropy, not a percentage: for "
                f"{value:g} % write {value / 100:g}"
            )

    @property
    def largest(self) -> float | None:
        """The largest entropy that is asked for in nats, as far as the configuration alone tells."""
        if self.points is not None:
            return max(value for _, value in self.points.points)
        return self.target_entropy

    @property
    def largest_field(self) -> str:
        """The name of the field that :attr:`largest` comes from."""
        return f"{NODE}.{'path' if self.points is not None else 'target_entropy'}"

    @classmethod
    def from_node(cls, values: Mapping[str, Any]) -> TargetSettings:
        """Builds the settings from the node's values, leaving out Hydra's (``_target_``).

        Raises ValueError for an unknown field or a value out of range.
        """
        known = [each.name for each in fields(cls) if each.init]
        values = {name: value for name, value in values.items() if not name.startswith("_")}
        for name in values:
            if name not in known:
                raise ValueError(f"{NODE}.{name} is unknown{did_you_mean(name, known)}")
        for name in _NUMBERS:
            value = values.get(name)
            if value is not None and not is_number(value):
                raise ValueError(f"{NODE}.{name}={value!r} must be a number{_percent(value)}")
        if not is_whole(values.get("hold") or 0):
            raise ValueError(_NO_ROLLOUT.format(values["hold"]))
        if not is_whole(values.get("approach", 0)):
            raise ValueError(_NO_APPROACH.format(values["approach"]))
        for name in _WORDS:
            if not isinstance(values.get(name, ""), str):
                raise ValueError(f"{NODE}.{name}={values[name]!r} must be a word, without which it has its default")
        return cls(**values)

    def describe(self) -> str:
        """Says the target in a few words."""
        if self.points is not None:
            return f"entropy {self.points.describe()}"
        if self.hold is not None:
            return f"the entropy of rollout {self.hold}"
        if self.fraction is not None:
            return f"{self.fraction:g} of the first entropy"
        return f"entropy {self.target_entropy:g}"

    def knob_of(self, name: str, configured: float, most: float | None = None) -> Knob:
        """Returns the knob with numbers for its start and its ends.

        Args:
            name: of the field that is moved.
            configured: the value that the run's configuration has for it.
            most: the largest value that it can have, None if there is none.

        Raises:
            ValueError: the start is outside of the ends, or an end is one that the rule or the knob cannot have.
        """
        start = configured if self.start is None else self.start
        low = start / _REACH if self.min is None else self.min
        high = self.max
        if high is None:
            high = start * _REACH if most is None else min(start * _REACH, most)
        if most is not None and high > most:
            raise ValueError(f"{NODE}.max={high:g}: {name} is at most {most:g}: lower it")
        if self.rule != "delta" and not low > 0:
            which = "start" if self.min is None else "min"
            raise ValueError(
                f"{NODE}.{which}=0: rule={self.rule} multiplies the knob, which never leaves 0: set {NODE}.start and "
                f"{NODE}.min above 0"
            )
        if not low <= start <= high:
            whose = name if self.start is None else f"{NODE}.start"
            end = f"below {NODE}.min={low:g}" if start < low else f"above {NODE}.max={high:g}"
            raise ValueError(f"{whose}={start:g} is {end}: set {NODE}.start between {NODE}.min and {NODE}.max")
        if low == high:
            raise ValueError(f"{NODE}.min and {NODE}.max are both {low:g}, and {name} could not move: set them apart")
        return Knob(name, start, low, high, 0.02 * high if self.delta is None else self.delta)


def _percent(value: object) -> str:
    text = str(value).strip()
    try:
        number = float(text.rstrip("% "))
    except ValueError:
        return ""
    if text.endswith("%"):
        return f", not a percentage: {number:g} % of the first entropy is {NODE}.fraction={number / 100:g}"
    return f": write {number:g}, without quotes" if isinstance(value, str) else ""
