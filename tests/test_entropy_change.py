"""Predicted against measured entropy change: what is paired with what, the window, and resuming."""

from __future__ import annotations

import json

import numpy as np
import pytest

from verl_cov.entropy_change import LEAST, WINDOW, EntropyChange


def run(rollouts, change=None):
    """after_rollout for each (entropy, predictors)."""
    change = change or EntropyChange()
    return [change.after_rollout(entropy, predictors) for entropy, predictors in rollouts]


def obeying(count, step_size=0.3, noise=0.0, seed=0):
    """Rollouts whose entropy changes by step_size times the predictor of the rollout before."""
    random = np.random.default_rng(seed)
    entropy, rollouts = 2.0, []
    for _ in range(count):
        predictor = random.normal(-0.1, 0.1)
        rollouts.append((entropy, {"theorem2": predictor}))
        entropy += step_size * predictor + random.normal(0, noise) if noise else step_size * predictor
    return rollouts


def test_a_predictor_is_paired_with_the_change_seen_one_rollout_later():
    rollouts = obeying(12)
    found = run(rollouts)
    assert found[0] == {}
    for before, (entropy, _), now in zip(rollouts, rollouts[1:], found[1:], strict=False):
        assert now["entropy_change"] == pytest.approx(entropy - before[0])
    assert "theorem2_correlation" not in found[LEAST - 1]
    for at in range(LEAST, len(rollouts)):
        assert found[at]["theorem2_correlation"] == pytest.approx(1)
        assert found[at]["theorem2_agreement"] == 1
        if at + 1 < len(rollouts):  # a forecast: made before the change it is compared with
            assert found[at]["theorem2_predicted"] == pytest.approx(found[at + 1]["entropy_change"])


def test_a_predictor_with_the_wrong_sign_is_found_out():
    rollouts = [(entropy, {"wrong": -predictors["theorem2"]}) for entropy, predictors in obeying(20)]
    last = run(rollouts)[-1]
    assert last["wrong_correlation"] == pytest.approx(-1)
    assert last["wrong_agreement"] == 0


def test_correlation_is_numpys_over_the_window():
    rollouts = obeying(WINDOW + 30, noise=0.05)
    found = run(rollouts)[-1]
    entropy = np.array([entropy for entropy, _ in rollouts])
    predictor = np.array([predictors["theorem2"] for _, predictors in rollouts])
    x, y = predictor[:-1][-WINDOW:], np.diff(entropy)[-WINDOW:]
    assert found["theorem2_correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found["theorem2_agreement"] == pytest.approx((np.sign(x) == np.sign(y)).mean())
    assert found["theorem2_predicted"] == pytest.approx(predictor[-1] * (x @ y) / (x @ x))


def test_nothing_moves_nothing_breaks():
    last = run([(1.0, {"theorem2": 0.0})] * 8)[-1]
    assert last == {"entropy_change": 0.0, "theorem2_agreement": 1.0}


def test_a_resumed_run_goes_on_as_the_uninterrupted_one():
    rollouts = obeying(30, noise=0.05)
    whole = run(rollouts)
    change = EntropyChange()
    run(rollouts[:17], change)
    resumed = EntropyChange()
    resumed.load_state_dict(json.loads(json.dumps(change.state_dict())))
    assert run(rollouts[17:], resumed) == whole[17:]
    fresh = EntropyChange()
    fresh.load_state_dict(EntropyChange().state_dict())
    assert run(rollouts, fresh) == whole
