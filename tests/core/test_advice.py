"""Each piece of advice is given once, when it applies and not otherwise, with what a user needs to act on it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from tests.ranks import run_ranks
from verl_cov.core.advice import EMPTY_BAND_STEPS, IDLE_ROLLOUTS, Advice
from verl_cov.core.identity import token_identity
from verl_cov.core.selection import Control, select_tokens
from verl_cov.hooks.config import CovPolicyLossConfig

KL = CovPolicyLossConfig(loss_mode="verl_cov.kl_cov", kl_cov_ratio=0.01)


def step(advice, config, log_prob, advantage, group=None, band=None):
    slots = SimpleNamespace(
        lengths=torch.tensor([10] * (log_prob.numel() // 10)),
        valid=torch.ones(log_prob.numel(), dtype=torch.bool),
        old_log_prob=log_prob,
        advantage=advantage,
    )
    control = Control(config.ratio, band)
    chosen = select_tokens(log_prob, advantage, slots.valid, lambda at: token_identity(at, at), control, group)
    advice.after_update(config, chosen, log_prob, slots, group)


def tokens(many=1000):
    return -torch.rand(many) * 3, torch.randn(many)


@pytest.fixture
def said(caplog):
    return lambda: [record.message for record in caplog.records if record.message.startswith("verl-cov: ")]


def test_nothing_to_say_about_a_sound_run(said):
    advice = Advice()
    for _ in range(2 * EMPTY_BAND_STEPS):
        step(advice, KL, *tokens())
    assert said() == []


def test_a_band_that_stays_empty_is_reported_with_the_quantiles(said):
    config = CovPolicyLossConfig(loss_mode="verl_cov.clip_cov", clip_cov_ratio=0.01, clip_cov_lb=90, clip_cov_ub=91)
    advice, (log_prob, advantage) = Advice(), tokens(10_000)
    for _ in range(EMPTY_BAND_STEPS - 1):
        step(advice, config, log_prob, advantage, band=(90, 91))
    assert said() == []
    for _ in range(3):
        step(advice, config, log_prob, advantage, band=(90, 91))
    (message,) = said()
    cov = (log_prob - log_prob.mean()) * (advantage - advantage.mean())
    assert f"top 0.2 %: {cov.topk(20).values[-1]:.3g}" in message
    assert "set clip_cov_lb" in message


def test_one_candidate_ends_the_count_of_empty_bands(said):
    config = CovPolicyLossConfig(loss_mode="verl_cov.clip_cov", clip_cov_ratio=0.01, clip_cov_lb=90, clip_cov_ub=91)
    advice = Advice()
    for index in range(3 * EMPTY_BAND_STEPS):
        band = (90, 91) if index % EMPTY_BAND_STEPS else (-90, 90)
        step(advice, config, *tokens(), band=band)
    assert said() == []


def test_the_floor_of_one_token(said):
    advice = Advice()
    for _ in range(2):
        step(advice, CovPolicyLossConfig(loss_mode="verl_cov.kl_cov", kl_cov_ratio=2e-4), *tokens())
    (message,) = said()
    assert "kl_cov_ratio=0.0002 of 1000 tokens is 0.2 of a token" in message
    assert "5 times the ratio" in message


def test_ties_of_bfloat16(said):
    advice, (log_prob, advantage) = Advice(), tokens()
    coarse = log_prob.bfloat16().float()
    step(advice, KL, coarse, advantage)  # no two covariances meet at the cut: nothing to say
    assert said() == []
    step(advice, KL, torch.full_like(coarse, coarse[0]), torch.ones_like(advantage))
    (message,) = said()
    assert "bfloat16" in message
    assert "param_dtype=fp32" in message
    other = Advice()
    step(other, KL, torch.full_like(log_prob, -0.1), torch.ones_like(advantage))  # ties, but not of bfloat16
    assert len(said()) == 1


@pytest.mark.parametrize(
    ("field", "value"), [("old_log_probs", -math.inf), ("advantages", math.nan), ("advantages", 2.0**40)]
)
def test_values_that_are_not_finite_are_located(said, field, value):
    log_prob, advantage = tokens()
    (log_prob if field == "old_log_probs" else advantage)[237] = value
    advice = Advice(rank=3)
    for _ in range(2):
        step(advice, KL, log_prob, advantage)
    (message,) = said()
    assert f"{field} is {value} in row 23, response position 7 of rank 3" in message


def _empty_band(rank, world, group):
    config = CovPolicyLossConfig(loss_mode="verl_cov.clip_cov", clip_cov_ratio=0.01, clip_cov_lb=90, clip_cov_ub=91)
    advice = Advice(rank)
    for _ in range(EMPTY_BAND_STEPS + 2):
        step(advice, config, *tokens(1000 if rank else 0), group=group, band=(90, 91))
    return True


def test_ranks_stay_together_when_advice_takes_a_collective():
    assert run_ranks(_empty_band, 2) == [True, True]


def test_a_control_that_changes_nothing_is_reported_after_ten_rollouts(said):
    advice = Advice()
    for rollout in range(IDLE_ROLLOUTS - 1):
        for _ in range(4):
            advice.on_effect(KL, 0.0, rollout)
    assert said() == []
    advice.on_effect(KL, 0.01, IDLE_ROLLOUTS)  # it did act
    for rollout in range(IDLE_ROLLOUTS - 1):
        advice.on_effect(KL, 0.0, 20 + rollout)
    assert said() == []
    for rollout in range(3):
        advice.on_effect(KL, 0.0, 40 + rollout)
    (message,) = said()
    assert f"changed nothing in the gradient of the policy loss for {IDLE_ROLLOUTS} rollouts" in message


def test_selections_that_drift_apart_are_reported(said):
    advice = Advice()
    for _ in range(30):
        advice.on_overlap(95, 100)
    advice.on_overlap(3, 10)  # one bad update of few tokens
    assert said() == []
    for _ in range(10):
        advice.on_overlap(70, 100)
    (message,) = said()
    assert "cov_log_prob=current" in message
    few = Advice()
    few.on_overlap(1, 3)
    assert len(said()) == 1
