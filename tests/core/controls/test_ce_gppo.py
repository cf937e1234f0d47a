"""CE-GPPO against its formula, token by token; away from the clip it is PPO."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.core.controls.ce_gppo import ce_gppo

LOW, HIGH, DUAL, BETAS = 0.2, 0.28, 3.0, (0.5, 0.9)


def by_formula(a: float, x: float, betas: tuple[float, float]) -> tuple[float, float]:
    """(loss, its gradient by the log-prob) of one token, from the public code's three cases and the dual clip."""
    ratio = math.exp(x)
    if a < 0 and ratio < 1 - LOW:
        loss, gradient = -betas[0] * (1 - LOW) * a, -betas[0] * (1 - LOW) * a
    elif a > 0 and ratio > 1 + HIGH:
        loss, gradient = -betas[1] * (1 + HIGH) * a, -betas[1] * (1 + HIGH) * a
    else:
        loss, gradient = -ratio * a, -ratio * a
    return (-DUAL * a, 0.0) if a < 0 and loss > -DUAL * a else (loss, gradient)


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-3, 3)), min_size=1, max_size=20))
def test_loss_and_gradient_are_the_formulas(tokens):
    advantages, moved = (torch.tensor([column], dtype=torch.float64) for column in zip(*tokens, strict=True))
    log_prob = moved.clone().requires_grad_()
    seen = {}
    loss, metrics = ce_gppo(
        old_log_prob=torch.zeros_like(moved),
        log_prob=log_prob,
        advantages=advantages,
        response_mask=torch.ones_like(moved),
        aggregate=lambda losses: seen.setdefault("losses", losses).sum(),
        betas=BETAS,
        clip=(LOW, HIGH),
        dual_clip=DUAL,
    )
    loss.backward()
    expected = [by_formula(a, x, BETAS) for a, x in tokens]
    assert seen["losses"][0].tolist() == pytest.approx([loss for loss, _ in expected])
    assert log_prob.grad[0].tolist() == pytest.approx([gradient for _, gradient in expected])
    clipped = [(a < 0 and math.exp(x) < 1 - LOW) or (a > 0 and math.exp(x) > 1 + HIGH) for a, x in tokens]
    assert metrics["actor/pg_clipfrac"] == pytest.approx(sum(clipped) / len(clipped))
    assert metrics["actor/ppo_kl"] == pytest.approx(-sum(x for _, x in tokens) / len(tokens), abs=1e-6)


def test_rollout_correction_weights_the_tokens():
    ones = torch.ones(1, 3)
    inputs = dict(
        old_log_prob=ones * -1,
        log_prob=ones * -1,
        advantages=ones,
        response_mask=ones,
        aggregate=torch.sum,
        betas=BETAS,
        clip=(LOW, HIGH),
        dual_clip=DUAL,
    )
    assert float(ce_gppo(**inputs)[0]) == -3
    assert float(ce_gppo(**inputs, rollout_is_weights=torch.tensor([[0.0, 2.0, 0.5]]))[0]) == -2.5
