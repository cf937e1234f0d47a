"""The PRM's losses and its ranking against numpy and plain loops over pairs of responses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.core.prime.test_advantage import batches
from verl_cov.core.prime import prm
from verl_cov.core.prime.groups import Groups

LOGITS = st.floats(-60, 60, width=32)
OUTCOMES = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32)
RESPONSES = st.lists(st.tuples(LOGITS, OUTCOMES), min_size=1, max_size=8)


def sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -np.asarray(x, dtype=np.float64)))


def scored(batch, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Groups]:
    """A Q for each response of the batch, with ties and zeros among them."""
    q = np.random.default_rng(seed).integers(-3, 4, len(batch.prompts)) / 2
    return (
        torch.from_numpy(q),
        torch.from_numpy(batch.outcome),
        Groups.from_prompts(batch.prompts, torch.from_numpy(batch.mask)),
    )


# --- cross-entropy ----------------------------------------------------------------------------------------------------


@given(RESPONSES)
def test_cross_entropy_and_its_gradient_also_with_soft_outcomes(responses):
    values, outcomes = (np.array(part, dtype=np.float64) for part in zip(*responses, strict=True))
    q = torch.tensor(values, requires_grad=True)
    loss = prm.cross_entropy(q, torch.from_numpy(outcomes))
    # -log sigma(Q) = log(1 + e^-Q), -log(1 - sigma(Q)) = log(1 + e^Q)
    expected = outcomes * np.logaddexp(0, -values) + (1 - outcomes) * np.logaddexp(0, values)
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-9, atol=1e-12)
    loss.sum().backward()
    np.testing.assert_allclose(q.grad, sigmoid(values) - outcomes, rtol=0, atol=1e-12)


@pytest.mark.parametrize("outcome", [0.0, 0.3, 1.0])
def test_a_prm_that_knows_nothing_loses_ln_2(outcome):
    assert float(prm.cross_entropy(torch.zeros(1), torch.tensor([outcome]))) == pytest.approx(math.log(2))
    assert float(prm.dpo(torch.zeros(1), torch.zeros(1), torch.tensor([outcome]))) == pytest.approx(math.log(2))


def test_a_prm_that_is_sure_and_wrong_loses_its_logit():
    q, outcome = torch.tensor([200.0, -200.0, 200.0]), torch.tensor([0.0, 1.0, 1.0])
    assert prm.cross_entropy(q, outcome).tolist() == pytest.approx([200.0, 200.0, 0.0])
    assert prm.dpo(q, torch.zeros(3), outcome).tolist() == pytest.approx([200.0, 200.0, 0.0])


# --- DPO --------------------------------------------------------------------------------------------------------------


@given(batches(), st.integers(0, 9))
def test_opponents_are_the_worse_of_the_prompt_or_for_an_outcome_of_0_the_better(batch, seed):
    q, outcome, groups = scored(batch, seed)
    found = prm.opponents(q, outcome, groups)
    rows = [row for row in range(len(q)) if batch.mask[row].any()]
    for row in range(len(q)):
        others = [j for j in rows if row in rows and batch.prompts[j] == batch.prompts[row]]
        if outcome[row] > 0:
            others = [j for j in others if outcome[j] < outcome[row]]
        else:
            others = [j for j in others if outcome[j] > outcome[row]]
        expected = sum(float(q[j]) for j in others) / len(others) if others else 0.0
        assert float(found[row]) == pytest.approx(expected, abs=1e-12), row


@given(RESPONSES, st.floats(-5, 5))
def test_dpo_and_its_gradient(responses, opponent):
    values, outcomes = (np.array(part, dtype=np.float64) for part in zip(*responses, strict=True))
    q = torch.tensor(values, requires_grad=True)
    against = torch.full(q.shape, opponent, dtype=torch.float64)
    loss = prm.dpo(q, against, torch.from_numpy(outcomes))
    sign = np.array([1.0 if outcome > 0 else -1.0 for outcome in outcomes])
    np.testing.assert_allclose(loss.detach(), np.logaddexp(0, -sign * (values - opponent)), rtol=1e-9, atol=1e-12)
    loss.sum().backward()
    np.testing.assert_allclose(q.grad, -sign * sigmoid(-sign * (values - opponent)), rtol=0, atol=1e-12)


@given(RESPONSES)
def test_without_an_opponent_dpo_is_cross_entropy(responses):
    q = torch.tensor([q for q, _ in responses])
    outcome = torch.tensor([float(outcome > 0.5) for _, outcome in responses])
    torch.testing.assert_close(prm.dpo(q, torch.zeros_like(q), outcome), prm.cross_entropy(q, outcome))


# --- ranking ----------------------------------------------------------------------------------------------------------


@given(batches(), st.integers(0, 9))
def test_ranking_counts_pairs_and_signs_with_ties_as_half(batch, seed):
    q, outcome, groups = scored(batch, seed)
    rows = [row for row in range(len(q)) if batch.mask[row].any()]
    pairs, right = 0, 0.0
    for better in rows:
        for worse in rows:
            if batch.prompts[better] == batch.prompts[worse] and outcome[better] > outcome[worse]:
                pairs += 1
                right += 1.0 if q[better] > q[worse] else 0.5 if q[better] == q[worse] else 0.0
    signs = [0.5 if q[row] == 0 else float((q[row] > 0) == (outcome[row] > 0.5)) for row in rows]
    found = prm.ranking(q, outcome, groups)
    assert found.pairs == pairs
    assert found.right == (pytest.approx(right / pairs) if pairs else None)
    assert found.sign_right == (pytest.approx(sum(signs) / len(signs)) if signs else None)


def test_a_prm_that_equals_its_reference_is_right_half_of_the_time():
    groups = Groups.from_prompts(["a", "a", "b", "b"], torch.ones(4, 1, dtype=torch.bool))
    found = prm.ranking(torch.zeros(4), torch.tensor([0.0, 1.0, 1.0, 1.0]), groups)
    assert (found.pairs, found.right, found.sign_right) == (1, 0.5, 0.5)
