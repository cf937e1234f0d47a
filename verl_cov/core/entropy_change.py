"""Compares the entropy change that the theorems predict for a rollout's updates with the change measured afterwards.

First trap, timing: the predictors of rollout k are computed from its tokens and describe the updates made with it. What
these updates did is H of rollout k+1 minus H of rollout k, known one rollout later. So at rollout k the reported
``entropy_change`` is what the updates of rollout k-1 did, and the correlation pairs it with predictor k-1.

Second trap, shared noise: predictor k-1 and H of rollout k-1 come from the same responses. Which prompts happened to be
drawn shifts both, so the two would correlate even if nothing were learned. That covariance is estimated within each
batch (:attr:`verl_cov.core.rollout.Theorem.shared_noise`) and subtracted.

Knows nothing about verl or ranks: plain numbers, the same on every rank.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from verl_cov.core.rollout import Theorem

WINDOW = 50  # rollouts that the correlation and the step size are computed over
MIN_PAIRS = 5  # with fewer pairs they would be noise


class _Rollout(NamedTuple):
    entropy: float
    exact: bool
    theorems: dict[str, tuple[float, float]]  # change and shared noise, scaled by the step's size


class EntropyChange:
    """Keeps the last :data:`WINDOW` pairs of (theorems at rollout k, H of rollout k+1 minus H of rollout k)."""

    def __init__(self) -> None:
        self._last: _Rollout | None = None
        self._pairs: deque[tuple[dict[str, tuple[float, float]], float]] = deque(maxlen=WINDOW)

    def after_rollout(
        self, entropy: float, theorems: Mapping[str, Theorem], scale: float = 1.0, exact: bool = True
    ) -> dict[str, float]:
        """Takes in one rollout and returns the metrics of the comparison.

        Args:
            entropy: H of this rollout, nats per token.
            theorems: see :func:`verl_cov.core.rollout.theorems`.
            scale: size of this rollout's steps relative to the others' (what gradient clipping left of them).
            exact: False if ``entropy`` was estimated from the sampled tokens. No change is reported when one entropy is
                exact and the other estimated.

        Returns:
            ``entropy_change`` from the second rollout on. From :data:`MIN_PAIRS` pairs on also ``entropy_falls``, the
            share of the window's changes that are negative, and for each theorem:

            - ``{name}_correlation`` of predicted and measured changes in the window;
            - ``{name}_agreement``, the share of them with the same sign; a constant guess would reach the larger of
              entropy_falls and 1 - entropy_falls;
            - ``{name}_predicted``, the change in nats per token that this rollout's updates should cause: the theorem's
              times the step size that fits the window best (least squares through zero).
        """
        metrics: dict[str, float] = {}
        if self._last is not None and self._last.exact == exact:
            metrics["entropy_change"] = entropy - self._last.entropy
            self._pairs.append((self._last.theorems, metrics["entropy_change"]))
        scaled = {name: (scale * theorem.change, scale * theorem.shared_noise) for name, theorem in theorems.items()}
        self._last = _Rollout(entropy, exact, scaled)
        if len(self._pairs) >= MIN_PAIRS:
            metrics["entropy_falls"] = float(np.mean([change < 0 for _, change in self._pairs]))
        for name, (change, _) in scaled.items():
            pairs = [(*before[name], after) for before, after in self._pairs if name in before]
            if len(pairs) >= MIN_PAIRS:
                metrics |= {f"{name}_{key}": value for key, value in _compare(np.array(pairs), change).items()}
        return metrics

    def state_dict(self) -> dict[str, object]:
        """Returns what a resumed run needs, ready for JSON."""
        return {"last": self._last, "pairs": list(self._pairs)}

    def load_state_dict(self, state: Any) -> None:
        """Restores what :meth:`state_dict` returned. Raises ValueError for anything else."""
        try:
            last = state["last"]
            last = None if last is None else _Rollout(_number(last[0]), bool(last[1]), _theorems(last[2]))
            pairs = [(_theorems(before), _number(change)) for before, change in state["pairs"]]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"not the state of an EntropyChange: {error!r}") from error
        self._last, self._pairs = last, deque(pairs, maxlen=WINDOW)


def _compare(pairs: Float64[np.ndarray, "pairs 3"], now: float) -> dict[str, float]:
    """Compares rows of (predicted, shared noise, measured); ``now`` is the theorem's change for the new rollout."""
    predicted, shared, measured = pairs.T
    metrics = {"agreement": float((np.sign(predicted) == np.sign(measured)).mean())}
    # The measured change contains, negated, the noise of the batch that the prediction comes from.
    spurious = -shared.mean()
    spread = predicted.std() * measured.std()
    if spread > 0:
        covariance = np.mean((predicted - predicted.mean()) * (measured - measured.mean())) - spurious
        metrics["correlation"] = float(np.clip(covariance / spread, -1, 1))
    if predicted.any():
        metrics["predicted"] = float(now * (np.mean(predicted * measured) - spurious) / np.mean(predicted**2))
    return metrics


def _theorems(values: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {str(name): (_number(change), _number(noise)) for name, (change, noise) in values.items()}


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
