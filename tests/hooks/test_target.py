"""A target and a schedule through verl's engine: measured exactly, set for each rollout's updates on every rank alike,
kept in the checkpoint, with no collective more than the metrics have."""

from __future__ import annotations

import functools
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from tests.hooks import engine, target_engine
from tests.hooks.numpys_metrics import expected
from tests.hooks.target_engine import Case
from tests.hooks.test_invariance import CLIP, KL, WIDE, relative
from verl_cov.hooks import target
from verl_cov.hooks.config import CovPolicyLossConfig
from verl_cov.hooks.worker_state import WorkerState

GOAL = dict(target_entropy=1.0, start=0.7, min=0.01, max=50.0, approach=0)
HELD = {**KL, "cov_target": GOAL}
ANNEALED = {**KL, "ppo_kl_coef": dict(start=0.8, end=0.2, over=3)}
ZETA = dict(loss_mode="vanilla", cov_metrics="off", cov_weights={"repo": {"zeta": 0.05}})
BONUS = dict(
    loss_mode="vanilla", cov_metrics="off", cov_target=dict(target_entropy=1.0, knob="entropy_coeff", approach=0)
)


def without_entropy(rows):
    for row in rows:
        del row["entropy"]


def second_without_entropy(rows):
    if rows[0]["response"][0] != engine.mini_batch(0)[0]["response"][0]:
        without_entropy(rows)


CASES = {
    "held": Case(HELD),
    "held, stopped": Case(HELD, stop_at=2),
    "held, stopped, other target": Case(HELD, stop_at=2, loads={**KL, "cov_target": {**GOAL, "target_entropy": 0.6}}),
    "held, off": Case({**HELD, "cov_metrics": "off"}),
    "held, off, stopped": Case({**HELD, "cov_metrics": "off"}, stop_at=3),
    "measured": Case(KL, seeds=(0, 1)),
    "ratio": Case({**KL, "cov_target": {**GOAL, "knob": "ratio", "start": None, "min": 0.01, "max": 0.05}}),
    "clip_cov": Case(
        {**CLIP, "clip_cov_ratio": 0.02, "cov_target": dict(fraction=1.0, knob="ratio", rule="double_half")}
    ),
    "weight": Case({**ZETA, "cov_target": dict(target_entropy=1.0, knob="repo.zeta", approach=0)}),
    "annealed": Case(ANNEALED, seeds=(0, 1, 2, 3, 0)),
    "annealed, off, stopped": Case({**ANNEALED, "cov_metrics": "off"}, seeds=(0, 1, 2, 3, 0), stop_at=2),
    "bonus": Case(BONUS, seeds=(0, 1), entropy_coeff=0.02),
    "no entropy": Case(HELD, edit=without_entropy),
    "sampled": Case({**KL, "cov_target": {**GOAL, "measure": "sampled"}}, seeds=(0,), edit=without_entropy),
    "an entropy missing": Case(HELD, seeds=(0, 1, 0), edit=second_without_entropy),
    "out of reach": Case({**CLIP, "cov_target": dict(target_entropy=2.5, knob="ratio")}),
    "above the vocabulary": Case({**KL, "cov_target": dict(target_entropy=50.0)}),
}


def by_pi(seeds, start: float, goal: float = 1.0) -> list[float]:
    """The knob at each rollout, by the formula, from numpy's entropies."""
    errors = np.array([np.log(goal / expected(seed)["entropy"]) for seed in seeds])
    return (start * np.exp(6 * errors + 3 * np.cumsum(np.clip(errors, -0.2, 0.2)))).tolist()


FIXED = {
    "fixed zeta": Case({**ZETA, "cov_weights": {"repo": {"zeta": by_pi([0], 0.05)[0]}}}, seeds=(0,)),
    "no zeta": Case(dict(loss_mode="vanilla"), seeds=(0,)),
    "fixed": Case({**KL, "ppo_kl_coef": by_pi([0], 0.7)[0]}, seeds=(0,)),
    "fixed bonus": Case(dict(loss_mode="vanilla"), seeds=(0,), entropy_coeff=by_pi([0], 0.02)[0]),
}


@functools.cache
def reports(model: str) -> dict[str, target_engine.Report]:
    return target_engine.run(target_engine.Spec(model, WIDE, CASES | FIXED, ranks=2))


@pytest.fixture
def found(untrained_model):
    return reports(str(untrained_model))


def logged(report: target_engine.Report, key: str) -> list[float | None]:
    return [step.get(f"actor/cov/{key}") for step in report.metrics]


@pytest.mark.parametrize("case", ["held", "held, off"])
def test_the_exact_entropy_is_measured_before_the_updates_and_sets_their_knob(found, case):
    report = found[case]
    entropies = [expected(seed)["entropy"] for seed in range(4)]
    assert logged(report, "target_measured") == pytest.approx(entropies, rel=1e-6)
    assert logged(report, "target") == [1.0] * 4
    assert logged(report, "target_error") == pytest.approx([entropy - 1 for entropy in entropies], rel=1e-5)
    assert logged(report, "knob") == pytest.approx(by_pi(range(4), 0.7), rel=1e-5)
    assert logged(report, "knob_clamped") == [0.0] * 4
    assert logged(report, "entropy") == (logged(report, "target_measured") if case == "held" else [None] * 4)


@pytest.mark.parametrize("case", ["held", "held, off", "ratio", "clip_cov", "annealed", "bonus", "weight"])
def test_every_ranks_losses_have_the_knob_bit_for_bit(found, case):
    report = found[case]
    name = {"bonus": "entropy_coeff", "ratio": "kl_cov_ratio", "clip_cov": "clip_cov_ratio"}.get(case, "ppo_kl_coef")
    values = logged(report, "ppo_kl_coef" if case == "annealed" else "knob")
    name = "zeta" if case == "weight" else name
    assert [[step[name] for step in rank] for rank in report.set_to] == [values, values]
    assert len(set(values)) > 1


def test_the_update_is_the_one_of_a_fixed_coefficient(found):
    assert relative(found["held"].gradients[0], found["fixed"].gradients[0]) < 1e-6
    assert relative(found["held"].gradients[0], found["measured"].gradients[0]) > 1e-3
    assert relative(found["bonus"].gradients[0], found["fixed bonus"].gradients[0]) < 1e-6
    assert relative(found["weight"].gradients[0], found["fixed zeta"].gradients[0]) < 1e-6
    # A control by weight acts without metrics too.
    assert relative(found["fixed zeta"].gradients[0], found["no zeta"].gradients[0]) > 1e-3
    assert np.array_equal(found["held"].gradients[0], found["held, off"].gradients[0])


@pytest.mark.parametrize("case", ["held", "held, off", "annealed, off"])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(found, case):
    whole, stopped = found[case.replace("annealed, off", "annealed")], found[f"{case}, stopped"]
    assert "verl_cov.json" in stopped.files
    of_each = [[[step["ppo_kl_coef"] for step in rank] for rank in report.set_to] for report in (stopped, whole)]
    assert of_each[0] == of_each[1]
    assert len(set(of_each[0][0])) > 2
    for one, other in zip(stopped.gradients, whole.gradients, strict=True):
        assert np.array_equal(one, other)
    moved = {key for key in whole.metrics[-1] if "knob" in key or "target" in key or key.endswith("ppo_kl_coef")}
    for one, other in zip(stopped.metrics, whole.metrics, strict=True):
        assert {key: one[key] for key in moved if key in one} == {key: other[key] for key in moved if key in other}


def test_the_target_may_change_on_resumption(found):
    report = found["held, stopped, other target"]
    assert logged(report, "target") == [1.0, 1.0, 0.6, 0.6]
    level = np.sum(np.clip([np.log(1 / expected(seed)["entropy"]) for seed in (0, 1)], -0.2, 0.2))
    error = np.log(0.6 / expected(2)["entropy"])
    assert logged(report, "knob")[2] == pytest.approx(
        0.7 * np.exp(3 * (level + max(error, -0.2)) + 6 * error), rel=1e-5
    )


def test_no_collective_more_than_the_metrics_have(found):
    assert found["held"].collectives[0] == found["measured"].collectives[0]
    assert found["annealed"].collectives[0] == found["measured"].collectives[0]
    assert found["held, off"].collectives[0] < found["measured"].collectives[0]


def test_a_schedule_goes_from_start_to_end_and_stays(found):
    assert logged(found["annealed"], "ppo_kl_coef") == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2])
    assert logged(found["annealed"], "knob") == [None] * 5


def test_without_an_exact_entropy_the_run_ends_or_goes_by_the_sampled_one(found):
    assert "set target.measure=sampled" in found["no entropy"].error
    assert found["no entropy"].metrics == []
    assert logged(found["sampled"], "target_measured") == pytest.approx([expected(0)["entropy_sampled"]], rel=1e-5)
    first, missing, last = logged(found["an entropy missing"], "knob")
    assert first == missing
    assert last == pytest.approx(by_pi([0, 0], 0.7)[1], rel=1e-5)


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        (
            "out of reach",
            ("target.target_entropy asks for 2.5 nats", "first rollout's 1.16", "clip_cov_ratio", "Lower"),
        ),
        ("above the vocabulary", ("target.target_entropy asks for 50 nats", "logarithm of the vocabulary", "lower it")),
    ],
)
def test_a_target_that_the_first_rollout_shows_to_be_impossible_ends_the_run(found, case, parts):
    assert all(part in found[case].error for part in parts), found[case].error
    assert "\n" not in found[case].error


def test_a_damaged_state_ends_the_run_and_none_begins_anew(caplog):
    cov = CovPolicyLossConfig(**HELD)
    for text in ("{", "[]", '{"target": 1}', '{"rollouts": "many"}'):
        with pytest.raises(RuntimeError, match="damaged"):
            target.load_state(WorkerState(), cov, text)
    with caplog.at_level(logging.WARNING):
        for text in (None, json.dumps({"last": None, "pairs": []})):
            state = WorkerState()
            target.load_state(state, cov, text)
            assert (state.target, state.rollouts) == (None, 0)
    assert "has no target's state" in caplog.text


def test_the_workers_configuration_is_its_own_again_after_the_updates_whatever_happens():
    cov = CovPolicyLossConfig(**ANNEALED)
    loss = functools.partial(print, config=SimpleNamespace(policy_loss=cov, entropy_coeff=0.0))
    worker = SimpleNamespace(loss_fn=loss)

    def update():
        with target.moved(worker, cov, None):
            assert worker.loss_fn.keywords["config"].policy_loss.ppo_kl_coef == 0.8
            raise InterruptedError

    with pytest.raises(InterruptedError):
        update()
    assert worker.loss_fn is loss
    with target.moved(worker, cov, None) as values:
        assert values == {"ppo_kl_coef": pytest.approx(0.6)}
    assert cov.ppo_kl_coef == 0.8
