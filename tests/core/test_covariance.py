"""The paper's Eq. 10 against numpy, and the order-independent means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.core import covariance

pairs = st.lists(
    st.tuples(st.floats(-80, 0, width=32), st.floats(-50, 50, width=32)),
    min_size=1,
    max_size=200,
)


def tensors(tokens):
    log_prob, advantage = (torch.tensor(column, dtype=torch.float32) for column in zip(*tokens, strict=True))
    return log_prob, advantage


def sums(log_prob, advantage):
    return covariance.fixed_point_sums(log_prob, advantage, torch.ones_like(log_prob, dtype=torch.bool))


@given(pairs)
def test_covariance_is_that_of_numpy(tokens):
    log_prob, advantage = tensors(tokens)
    means = covariance.means(sums(log_prob, advantage))
    found = covariance.token_covariance(log_prob, advantage, *means)
    x, y = log_prob.double().numpy(), advantage.double().numpy()
    assert np.allclose(found.numpy(), (x - x.mean()) * (y - y.mean()), rtol=1e-5, atol=1e-5)
    assert np.isclose(found.double().mean().item(), np.cov(x, y, bias=True)[0, 1], rtol=1e-4, atol=1e-4)


@given(pairs, st.randoms(use_true_random=False), st.integers(1, 5))
def test_sums_do_not_depend_on_order_or_sharding(tokens, random, shards):
    whole = sums(*tensors(tokens))
    shuffled = list(tokens)
    random.shuffle(shuffled)
    parts = [shuffled[index::shards] for index in range(shards)]
    total = torch.stack([sums(*tensors(part)) for part in parts if part]).sum(0)
    assert whole[0] == total[0]
    assert covariance.means(whole) == covariance.means(total)  # to the last bit


def test_the_largest_finite_values_do_not_wrap_round():
    log_prob, advantage = torch.full((700_000,), -1.5), torch.full((700_000,), 1e9)
    total = torch.stack([sums(*part) for part in zip(log_prob.split(65536), advantage.split(65536), strict=True)]).sum(
        0
    )
    mean = covariance.means(total)
    assert float(mean[0]) == -1.5
    assert float(mean[1]) == pytest.approx(1e9, rel=1e-12)


def test_constant_advantage_has_no_covariance():
    """One sequence alone, as at micro-batch 1: the reason for taking the whole mini-batch."""
    log_prob, advantage = torch.linspace(-9, 0, 50), torch.full((50,), 1.7)
    means = covariance.means(sums(log_prob, advantage))
    assert covariance.token_covariance(log_prob, advantage, *means).abs().max() < 1e-5
