"""Whether the theorems' predictions came true: the entropy change a rollout later, against what was predicted.

Timing, the trap here: the predictors of rollout k are computed from its tokens and describe the updates made with it;
what these did is H of rollout k+1 minus H of rollout k, known one rollout later. So at rollout k the reported
``entropy_change`` is what the updates of rollout k-1 did, and the correlation pairs predictor k-1 with it.

The other trap: predictor k-1 and H of rollout k-1 come from the same responses. Which prompts happened to be drawn
moves both, and with H the change, so the two would correlate if nothing were learned. That covariance is estimated
within each batch (:attr:`verl_cov.core.rollout.Theorem.shared_noise`) and taken out.

Knows nothing about verl or ranks: plain numbers, the same on every rank.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from verl_cov.core.rollout import Theorem

WINDOW = 50  # rollouts that the correlation and the step size look back on
LEAST = 5  # pairs below which they would be noise


class _Rollout(NamedTuple):
    entropy: float
    exact: bool
    theorems: dict[str, tuple[float, float]]  # change and shared noise, of the step's size


class EntropyChange:
    """Keeps the last :data:`WINDOW` pairs of (theorems at rollout k, H of rollout k+1 minus H of rollout k)."""

    def __init__(self) -> None:
        self._last: _Rollout | None = None
        self._pairs: deque[tuple[dict[str, tuple[float, float]], float]] = deque(maxlen=WINDOW)

    def after_rollout(
        self, entropy: float, theorems: Mapping[str, Theorem], scale: float = 1.0, exact: bool = True
    ) -> dict[str, float]:
        """Take in one rollout.

        Args:
            entropy: H of this rollout, nats per token; exact: False if it was estimated from the sampled tokens. A
                change between the two kinds is none.
            theorems: see :func:`verl_cov.core.rollout.theorems`.
            scale: of this rollout's steps, relative to the others' (what gradient clipping left of them).

        Returns:
            ``entropy_change`` (from the second rollout on), and from :data:`LEAST` pairs on ``entropy_falls``, the
            share of the window's changes that are negative, and for each theorem ``{name}_correlation`` of predicted
            and measured changes in the window, ``{name}_agreement``, the share of them with the same sign (to be held
            against the larger of entropy_falls and 1 - entropy_falls, what a constant would reach), and
            ``{name}_predicted``, the change that this rollout's updates should cause in nats per token: the theorem's
            times the step size that fits the window best (least squares through zero).
        """
        found: dict[str, float] = {}
        if self._last is not None and self._last.exact == exact:
            found["entropy_change"] = entropy - self._last.entropy
            self._pairs.append((self._last.theorems, found["entropy_change"]))
        scaled = {name: (scale * said.change, scale * said.shared_noise) for name, said in theorems.items()}
        self._last = _Rollout(entropy, exact, scaled)
        if len(self._pairs) >= LEAST:
            found["entropy_falls"] = float(np.mean([change < 0 for _, change in self._pairs]))
        for name, (change, _) in scaled.items():
            pairs = [(*before[name], after) for before, after in self._pairs if name in before]
            if len(pairs) >= LEAST:
                found |= {f"{name}_{key}": value for key, value in _compare(np.array(pairs), change).items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on, as JSON."""
        return {"last": self._last, "pairs": list(self._pairs)}

    def load_state_dict(self, state: Any) -> None:
        """Go on where :meth:`state_dict` was taken. Raises ValueError if it is not one."""
        try:
            last = state["last"]
            last = None if last is None else _Rollout(_number(last[0]), bool(last[1]), _theorems(last[2]))
            pairs = [(_theorems(before), _number(change)) for before, change in state["pairs"]]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"not the state of an EntropyChange: {error!r}") from error
        self._last, self._pairs = last, deque(pairs, maxlen=WINDOW)


def _compare(pairs: np.ndarray, now: float) -> dict[str, float]:
    """pairs: [n, 3] of (predicted, shared noise, measured)."""
    predicted, shared, measured = pairs.T
    found = {"agreement": float((np.sign(predicted) == np.sign(measured)).mean())}
    # The measured change holds minus the noise of the batch that the prediction comes from.
    spurious = -shared.mean()
    spread = predicted.std() * measured.std()
    if spread > 0:
        covariance = np.mean((predicted - predicted.mean()) * (measured - measured.mean())) - spurious
        found["correlation"] = float(np.clip(covariance / spread, -1, 1))
    if predicted.any():
        found["predicted"] = float(now * (np.mean(predicted * measured) - spurious) / np.mean(predicted**2))
    return found


def _theorems(values: Any) -> dict[str, tuple[float, float]]:
    return {str(name): (_number(change), _number(noise)) for name, (change, noise) in values.items()}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
