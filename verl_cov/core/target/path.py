"""A number that follows a path over rollouts: a target, or the coefficient of a control that is annealed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl_cov.suggestions import did_you_mean

SHAPES = ("linear", "cosine", "steps")
_SCHEDULE = ("start", "end", "over", "shape")


@dataclass(frozen=True)
class Path:
    """A function of the number of rollouts so far, by points.

    Args:
        points: (rollout, value), the first at rollout 0, ascending. Before, between and after them there is no hole:
            the last value stays.
        shape: between two points: ``linear``, ``cosine`` (flat at both ends) or ``steps`` (the earlier value).
    """

    points: tuple[tuple[int, float], ...]
    shape: str = "linear"

    def at(self, rollout: int) -> float:
        """Returns the value at a rollout, which is counted from 0."""
        start, before = self.points[0]
        for end, after in self.points[1:]:
            if rollout < end:
                if self.shape == "steps":
                    return before
                share = (rollout - start) / (end - start)
                if self.shape == "cosine":
                    share = (1 - math.cos(math.pi * share)) / 2
                return before + (after - before) * share
            start, before = end, after
        return before

    def describe(self) -> str:
        """Says the path in a few words."""
        values = ", ".join(f"{value:g} at {rollout}" for rollout, value in self.points)
        return values if len(self.points) == 1 else f"{self.shape} from {values}"

    @classmethod
    def read(cls, field: str, points: Any, shape: str = "linear") -> Path:
        """Builds a path from ``[[rollout, value], ...]``. Raises ValueError that names ``field`` and the fix."""
        check_shape(field.rpartition(".")[0] + ".shape" if "." in field else "shape", shape)
        form = f"{field} must be a list of [rollout, value], such as [[0, 1.0], [20, 0.3]]"
        if isinstance(points, str) or not hasattr(points, "__iter__") or isinstance(points, Mapping):
            raise ValueError(f"{form}, not {points!r}")
        read: list[tuple[int, float]] = []
        for number, point in enumerate(points):
            pair = list(point) if hasattr(point, "__iter__") and not isinstance(point, str | Mapping) else []
            if len(pair) != 2 or not is_whole(pair[0]) or not is_number(pair[1]):
                raise ValueError(f"{form}: point {number + 1} is {point!r}, a hole in the path")
            read.append((pair[0], float(pair[1])))
        if not read or read[0][0] != 0:
            raise ValueError(f"{field} must begin at rollout 0: put a point [0, VALUE] first")
        for (before, _), (after, _) in itertools.pairwise(read):
            if after <= before:
                raise ValueError(f"{field} must ascend, and rollout {after} comes after {before}: sort the points")
        return cls(tuple(read), shape)


def read_schedule(field: str, node: Mapping[str, Any]) -> Path:
    """Reads ``{start, end, over, shape}``: a value that goes from ``start`` to ``end`` in ``over`` rollouts.

    ``shape`` may be left out: linear. Raises ValueError that names ``field`` and the fix.
    """
    for name in node:
        if name not in _SCHEDULE:
            raise ValueError(f"{field}.{name} is unknown{did_you_mean(str(name), _SCHEDULE)}")
    for name in ("start", "end"):
        if not is_number(node.get(name)):
            raise ValueError(f"{field}.{name}={node.get(name)!r} must be a finite number, where the schedule {name}s")
    over = node.get("over")
    if not isinstance(over, int) or not is_whole(over) or over < 1:
        raise ValueError(f"{field}.over={over!r} must be a whole number of rollouts, at least 1")
    shape = node.get("shape", "linear")
    check_shape(f"{field}.shape", shape)
    return Path(((0, float(node["start"])), (over, float(node["end"]))), shape)


def check_shape(field: str, shape: object) -> None:
    """Raises ValueError for a shape that no path has."""
    if shape not in SHAPES:
        raise ValueError(f"{field}={shape!r} is unknown{did_you_mean(str(shape), SHAPES)}")


def is_number(value: object) -> bool:
    """True for a finite number that is no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """True for a whole number of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
