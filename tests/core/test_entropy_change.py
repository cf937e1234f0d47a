"""Predicted against measured entropy change: what is paired with what, the window, resuming, and no correlation where
nothing is learned."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from verl_cov.core import rollout
from verl_cov.core.entropy_change import MIN_PAIRS, WINDOW, EntropyChange
from verl_cov.core.rollout import Responses, Theorem, row_sums


def run(rollouts, change=None):
    """after_rollout for each (entropy, {name: predicted change})."""
    change = change or EntropyChange()
    return [
        change.after_rollout(entropy, {name: Theorem(value, 0.0) for name, value in predicted.items()})
        for entropy, predicted in rollouts
    ]


def obeying(count, step_size=0.3, noise=0.0, seed=0):
    """Rollouts whose entropy changes by step_size times the predictor of the rollout before."""
    random = np.random.default_rng(seed)
    entropy, rollouts = 2.0, []
    for _ in range(count):
        predictor = random.normal(-0.1, 0.1)
        rollouts.append((entropy, {"theorem2": predictor}))
        entropy += step_size * predictor + random.normal(0, 1) * noise
    return rollouts


def test_a_predictor_is_paired_with_the_change_seen_one_rollout_later():
    rollouts = obeying(12)
    found = run(rollouts)
    assert found[0] == {}
    for before, (entropy, _), now in zip(rollouts, rollouts[1:], found[1:], strict=False):
        assert now["entropy_change"] == pytest.approx(entropy - before[0])
    assert "theorem2_correlation" not in found[MIN_PAIRS - 1]
    for at in range(MIN_PAIRS, len(rollouts)):
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
    assert found["entropy_falls"] == pytest.approx((y < 0).mean())


def test_the_size_of_the_steps_counts():
    """Rollouts whose steps gradient clipping shortened, each by another factor: only then does the law hold."""
    random = np.random.default_rng(1)
    change, entropy, found = EntropyChange(), 2.0, {}
    for _ in range(20):
        predicted, scale = random.normal(-0.1, 0.1), random.uniform(0.1, 1)
        found = change.after_rollout(entropy, {"theorem2": Theorem(predicted, 0.0)}, scale)
        entropy += 0.3 * scale * predicted
    assert found["theorem2_correlation"] == pytest.approx(1)


def test_entropies_of_two_kinds_have_no_change_between_them():
    change = EntropyChange()
    kinds = [True, True, False, False, True]
    found = [change.after_rollout(float(at), {}, exact=exact) for at, exact in enumerate(kinds)]
    assert ["entropy_change" in one for one in found] == [False, True, False, True, False]


def test_nothing_moves_nothing_breaks():
    last = run([(1.0, {"theorem2": 0.0})] * 8)[-1]
    assert last == {"entropy_change": 0.0, "theorem2_agreement": 1.0, "entropy_falls": 0.0}


# --- where nothing is learned, nothing may correlate ------------------------------------------------------------------


def placebo_batch(random, prompts=32, responses=8, length=5):
    """A policy that never changes, other prompts at every step. Prompts differ in entropy, and likelier responses are
    better, so a batch of high-entropy prompts shifts both the entropy and the prediction."""
    rows = prompts * responses
    of_prompt = np.repeat(random.exponential(0.5, prompts), responses)
    entropy = np.repeat(of_prompt, length) * random.uniform(0.8, 1.2, rows * length)
    log_prob = -random.exponential(entropy)
    score = log_prob.reshape(rows, length).mean(1) + random.normal(0, 0.3, rows) > -of_prompt
    score = score.astype(float).reshape(prompts, responses)
    advantage = (score - score.mean(1, keepdims=True)) / (score.std(1, keepdims=True) + 1e-6)
    flat = [torch.tensor(x, dtype=torch.float32) for x in (log_prob, np.repeat(advantage.flatten(), length), entropy)]
    prompt = torch.tensor(np.repeat(np.arange(prompts) + 1, responses))
    every_slot = torch.ones(rows * length, dtype=torch.bool)
    return Responses.gather(row_sums(torch.full((rows,), length), every_slot, *flat, None, prompt))


def test_a_policy_that_stands_still_shows_no_correlation():
    corrected, raw = [], []
    for seed in range(8):
        random, change = np.random.default_rng(seed), EntropyChange()
        entropies, predicted, found = [], [], {}
        for _ in range(WINDOW + 1):
            batch = placebo_batch(random)
            entropy, theorems = rollout.entropies(batch)["entropy"], rollout.theorems(batch)
            found = change.after_rollout(entropy, theorems)
            entropies.append(entropy)
            predicted.append(theorems["theorem2"].change)
        corrected.append(found["theorem2_correlation"])
        raw.append(np.corrcoef(predicted[:-1], np.diff(entropies))[0, 1])
    assert np.mean(raw) > 0.4  # the trap: what one would report
    assert abs(np.mean(corrected)) < 3 * np.std(corrected) / math.sqrt(len(corrected)) + 0.05


# --- resuming -----------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_as_the_uninterrupted_one():
    rollouts = obeying(30, noise=0.05)
    whole = run(rollouts)
    change = EntropyChange()
    run(rollouts[:17], change)
    resumed = EntropyChange()
    resumed.load_state_dict(json.loads(json.dumps(change.state_dict())))
    assert run(rollouts[17:], resumed) == whole[17:]
    fresh = EntropyChange()
    fresh.load_state_dict(json.loads(json.dumps(EntropyChange().state_dict())))
    assert run(rollouts, fresh) == whole


@pytest.mark.parametrize(
    "state",
    [
        {},
        [],
        None,
        {"last": [], "pairs": []},
        {"last": None, "pairs": [[{"theorem2": "0.1"}, 0.2]]},
        {"last": [1e999, True, {}], "pairs": []},
        {"last": [1.0, True, {"theorem2": 0.5}], "pairs": []},
        {"last": None, "pairs": [1]},
    ],
)
def test_a_damaged_state_is_refused_whole(state):
    change = EntropyChange()
    run(obeying(3), change)
    before = change.state_dict()
    with pytest.raises(ValueError, match=r"state|finite|unpack"):
        change.load_state_dict(state)
    assert change.state_dict() == before
