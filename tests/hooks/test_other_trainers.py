"""Our hook in the worker of verl's asynchronous trainers, on batches as they lay them out (docs/engines.md).

Rows of several versions of the weights, old log-probs that are the rollout's own, several updates between two versions,
rows that do not say their version or their prompt. Tokens, loss and gradient are compared with the oracle of
:mod:`.test_invariance`.
"""

from __future__ import annotations

import functools

import pytest

from tests.hooks import engine, other_trainers
from tests.hooks.other_trainers import Report
from tests.hooks.test_invariance import KL, STEP, alike, oracle, relative
from verl_cov.hooks import versions

pytestmark = pytest.mark.skipif(versions.installed_release() is not versions.NEWEST, reason="of the newest release")


@functools.cache
def reports(model: str) -> dict[str, Report]:
    return engine.launch("tests.hooks.other_trainers", other_trainers.Spec(model, KL), timeout=2000)


FULLY_ASYNC = ("first", "all of them older", "after the next weights", "without uid and versions")
V1 = ("V1", "V1, older rows", "V1, next")


@pytest.mark.parametrize("name", FULLY_ASYNC + V1)
def test_tokens_loss_and_gradient_are_the_oracles(untrained_model, name):
    chosen, loss, magnitude, gradient = oracle(str(untrained_model), "kl_cov, old", 0)
    found = reports(str(untrained_model))[name]
    # Which of two copies of a sequence is cut is drawn anew in each step: the tokens are the same but for that.
    assert alike(set(found.selected)) == alike(chosen)
    assert found.metrics["loss"] == pytest.approx(loss, abs=1e-6 * magnitude)
    assert found.gradient is not None
    assert relative(found.gradient, gradient) < 1e-6
    assert found.metrics["actor/cov/selected_tokens"] == len(chosen)


def test_the_step_is_the_latest_versions_and_never_goes_back(untrained_model):
    found = reports(str(untrained_model))
    # The legacy rows say which weights finished them, the first of which are version 0: version 2 is rollout step 3.
    assert found["first"].step == (STEP, 0)
    assert found["all of them older"].step == (STEP, 1)
    assert found["after the next weights"].step == (STEP + 1, 0)
    assert found["without uid and versions"].step == (STEP + 1, 1)
    assert [found[name].step for name in V1] == [(6, 0), (6, 1), (7, 0)]


def test_what_these_batches_do_not_carry_is_left_out_of_the_metrics(untrained_model):
    found = reports(str(untrained_model))
    for name in FULLY_ASYNC:
        metrics = found[name].metrics
        # No forward of the actor's: no entropy of the whole distribution, and the theorems go by the sampled one.
        assert "actor/cov/entropy" not in metrics
        assert metrics["actor/cov/entropy_sampled"] > 0
        assert ("actor/cov/prompts" in metrics) is (name != "without uid and versions")
    for name in V1:
        assert found[name].metrics["actor/cov/entropy"] > 0
