"""What ``cov_weights`` may hold, and the controls by weight that it makes. Imports nothing of verl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_cov.core.controls import catalogue
from verl_cov.core.controls.weight import Weight
from verl_cov.hooks.loss_modes import POLICY_LOSS


def make_weights(settings: Mapping[str, Any] | None) -> dict[str, Weight]:
    """Makes the controls of ``cov_weights``; one whose numbers are null is off. Raises ValueError, see there."""
    field, weights = f"{POLICY_LOSS}.cov_weights", {}
    if not isinstance(settings or {}, Mapping):
        raise ValueError(f"{field}={settings!r} must be {{NAME: {{NUMBER: VALUE}}}}")
    for name, numbers in (settings or {}).items():
        if numbers is None:
            continue
        if not isinstance(numbers, Mapping):
            raise ValueError(f"{field}.{name}={numbers!r} must be {{NUMBER: VALUE}}, or null for none")
        try:
            weights[str(name)] = catalogue.make(str(name), numbers)
        except catalogue.UnknownControlError as error:
            raise ValueError(f"{field}.{error}") from None
        except ValueError as error:
            raise ValueError(f"{field}.{name}.{error}") from None
    return weights
