"""Whether the theorems' predictions came true: the entropy change a rollout later, against what was predicted.

Timing, the trap here: the predictors of rollout k are computed from its tokens and describe the updates made with it;
what these did is H of rollout k+1 minus H of rollout k, known one rollout later. So at rollout k the reported
``entropy_change`` is what the updates of rollout k-1 did, and the correlation pairs predictor k-1 with it.

Knows nothing about verl or ranks: plain numbers, the same on every rank.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

WINDOW = 50  # rollouts that the correlation and the step size look back on
LEAST = 5  # pairs below which they would be noise


class EntropyChange:
    """Keeps the last :data:`WINDOW` pairs of (predictors of rollout k, H of rollout k+1 minus H of rollout k)."""

    def __init__(self) -> None:
        self._last: tuple[float, dict[str, float]] | None = None
        self._pairs: deque[tuple[dict[str, float], float]] = deque(maxlen=WINDOW)

    def after_rollout(self, entropy: float, predictors: Mapping[str, float]) -> dict[str, float]:
        """Take in one rollout.

        Args:
            entropy: H of this rollout, nats per token.
            predictors: {name: change that a step of size 1 would cause}, see :func:`verl_cov.rollout.theorems`.

        Returns:
            ``entropy_change`` (from the second rollout on), and from :data:`LEAST` pairs on for each predictor:
            ``{name}_correlation`` of predicted and measured changes in the window, ``{name}_agreement``, the share of
            them with the same sign, and ``{name}_predicted``, the change that this rollout's updates should cause in
            nats per token: the predictor times the step size that fits the window best (least squares through zero).
        """
        found: dict[str, float] = {}
        if self._last is not None:
            found["entropy_change"] = entropy - self._last[0]
            self._pairs.append((self._last[1], found["entropy_change"]))
        self._last = entropy, dict(predictors)
        for name, value in predictors.items():
            pairs = [(before[name], change) for before, change in self._pairs if name in before]
            if len(pairs) < LEAST:
                continue
            x, y = np.array(pairs).T
            found[f"{name}_agreement"] = float((np.sign(x) == np.sign(y)).mean())
            if x.std() > 0 and y.std() > 0:
                found[f"{name}_correlation"] = float(np.corrcoef(x, y)[0, 1])
            if x.any():
                found[f"{name}_predicted"] = value * float(x @ y / (x @ x))
        return found

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on, as JSON."""
        return {"last": self._last, "pairs": list(self._pairs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        last = state["last"]
        self._last = None if last is None else (float(last[0]), dict(last[1]))
        self._pairs = deque(((dict(before), float(change)) for before, change in state["pairs"]), maxlen=WINDOW)
