"""What a single field that verl-cov reads from ``policy_loss`` may hold. Imports nothing of verl.

So a bad value on a command line is refused before verl's imports (:mod:`verl_cov.hooks.checks.command_line`), by the
same words as in a configuration (:mod:`verl_cov.hooks.config`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeGuard

from verl_cov.core.target.path import read_schedule
from verl_cov.hooks.loss_modes import POLICY_LOSS

NUMBERS = ("clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef")
RATIOS = ("clip_cov_ratio", "kl_cov_ratio")
WHOLE_NUMBERS = {"cov_dump_every": 0, "cov_dump_tokens": 1}  # at least
CHOICES = {
    "cov_kl": ("abs", "k2", "k3"),
    "cov_scope": ("mini_batch", "micro_batch"),
    "cov_log_prob": (None, "old", "current"),
    "cov_metrics": ("off", "basic", "full"),
    "cov_val_greedy": (False, True),
}
OFF = ("cov_metrics", "cov_val_entropy", "cov_val_pass_at")  # may be off, of which YAML makes False
COEFFICIENTS = ("cov_gppo_beta1", "cov_gppo_beta2")
FIELDS = (*NUMBERS, *WHOLE_NUMBERS, *CHOICES, "cov_seed", "cov_kl_dead_zone", "cov_val_entropy", "cov_val_pass_at")
FIELDS += ("cov_val_success", *COEFFICIENTS)

# The paper takes 2e-4 and 2e-3. The authors' scripts write 0.2 *percent*; read as a fraction that is a hundred times
# more.
MAX_RATIO = 0.05


def check_value(name: str, value: object, field: str = "") -> None:
    """Raises ValueError if the field ``name`` cannot have this value in any run; of other fields nothing is known.

    Args:
        field: what the message calls it; default: its full name in verl's configuration.
    """
    field = field or f"{POLICY_LOSS}.{name}"
    if name in NUMBERS and isinstance(value, Mapping):
        for end, number in _ends(field, value):
            check_value(name, number, end)
    elif name in NUMBERS:
        if not _finite(value):
            raise ValueError(f"{field}={value!r} must be a finite number{_meant(name, value)}")
        if name == "ppo_kl_coef" and value < 0:
            raise ValueError(f"{field}={value} must not be negative: it would reward moving away")
    elif name in CHOICES and value not in CHOICES[name]:
        names = ", ".join("null" if each is None else str(each) for each in CHOICES[name])
        raise ValueError(f"{field}={value!r} is unknown: use one of {names}")
    elif name in WHOLE_NUMBERS and not _whole(value, WHOLE_NUMBERS[name]):
        raise ValueError(f"{field}={value!r} must be a whole number of at least {WHOLE_NUMBERS[name]}")
    elif name in COEFFICIENTS and not (_finite(value) and value >= 0):
        raise ValueError(f"{field}={value!r} must be a finite number of at least 0")
    elif name == "cov_seed" and not _whole(value, 1 - 2**63):
        raise ValueError(f"{field}={value!r} must be a whole number of 64 bits")
    elif name == "cov_kl_dead_zone" and not (value == "auto" or (_finite(value) and value >= 0)):
        raise ValueError(f"{field}={value!r} must be auto or a number of nats that is not negative")
    elif name == "cov_val_entropy" and not (value in ("off", "all") or _whole(value, 1)):
        raise ValueError(f"{field}={value!r} must be off, all or a positive number of generations")
    elif name == "cov_val_pass_at":
        _check_pass_at(value, field)
    elif name == "cov_val_success" and not (value is None or _finite(value)):
        raise ValueError(f"{field}={value!r} must be null or a finite number, the lowest acc or score of a success")


def check_ratio(name: str, value: float | Mapping[str, object], field: str = "") -> None:
    """Raises ValueError if the ratio of the control that is on is no fraction of the tokens, or a percentage."""
    field = field or f"{POLICY_LOSS}.{name}"
    if isinstance(value, Mapping):
        for end, number in _ends(field, value):
            check_ratio(name, number, end)
    elif not 0 < value <= MAX_RATIO:
        raise ValueError(
            f"{field}={value} must be a fraction of the tokens, above 0 and at most "
            f"{MAX_RATIO}, not a percentage{_for_percent(value)} (the paper takes 0.0002 to 0.002)"
        )


def _check_pass_at(value: object, field: str) -> None:
    if value in ("off", "auto"):
        return
    if not isinstance(value, list | tuple) or not value or not all(_whole(k, 1) for k in value):
        raise ValueError(f"{field}={value!r} must be off, auto or a list of whole numbers from 1 on, such as [1,4,16]")
    if double := next((k for k in value if value.count(k) > 1), None):
        raise ValueError(f"{field}={list(value)} has {double} twice: leave one out")


def _ends(field: str, schedule: Mapping[str, object]) -> list[tuple[str, float]]:
    """Returns the two numbers of a schedule, with their names."""
    (_, start), (_, end) = read_schedule(field, schedule).points
    return [(f"{field}.start", start), (f"{field}.end", end)]


def _finite(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _meant(name: str, value: object) -> str:
    """Which number a text was meant to be, such as "0.2%", or '0.002' in quotes."""
    bounds = f", a fraction above 0 and at most {MAX_RATIO}" if name in RATIOS else ""
    text = str(value).strip()
    try:
        number = float(text.rstrip("% "))
    except ValueError:
        return bounds
    if text.endswith("%"):
        return bounds + (_for_percent(number) if name in RATIOS else "")
    return bounds + (f": write {number:g}, without quotes" if isinstance(value, str) and math.isfinite(number) else "")


def _for_percent(value: float) -> str:
    return f": for {value:g} % write {value / 100:g}" if 0 < value / 100 <= MAX_RATIO else ""
