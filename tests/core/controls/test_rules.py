"""Rules against numpy on the whole mini-batch: in one process, and on two real ranks to the bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.controls.batches import mini_batch, share_of, together
from tests.ranks import run_ranks
from verl_cov.core.controls import rules

SHARES = (0.01, 0.1, 0.37, 1.0)


def _rules(rank, world, group, seed, share):
    tokens = share_of(mini_batch(seed), rank, world, group)
    score, among = tokens.log_prob * 2, tokens.counted & (tokens.advantage > 0)
    numbers = [
        rules.count(among, tokens),
        rules.maximum(score, among, tokens),
        rules.minimum(score, among, tokens),
        rules.upper_quantile(score, among, share, tokens),
        *rules.standard_deviation(score, among, tokens),
    ]
    masks = [
        rules.largest(score, among, share, tokens),
        rules.smallest(score, among, share, tokens, up=True),
        rules.band(score, among, -3.0, -0.5, share, tokens),
        rules.z_score(score, among, tokens).nan_to_num(0.0),
    ]
    return [float(x) for x in numbers], [mask.numpy() for mask in masks]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SHARES))
def test_rules_are_numpys_on_one_rank_and_on_two(seed, share):
    columns = mini_batch(seed)
    among = columns["valid"] & (columns["advantage"] > 0) & (np.abs(columns["advantage"]) < 1e9)
    score = np.where(among, columns["log_prob"] * 2, np.nan).astype(np.float64)
    values = np.sort(score[among])[::-1]
    n = max(1, math.floor(share * len(values) + 1e-9))
    up = max(1, math.ceil(share * len(values) - 1e-9))
    numbers, masks = _rules(0, 1, None, seed, share)
    assert numbers[:4] == [len(values), values[0], values[-1], values[n - 1]]
    assert numbers[4:] == pytest.approx([values.mean(), values.std()], rel=1e-8, abs=1e-9)
    largest, smallest, band, z_score = masks
    assert sorted(score[largest]) == sorted(values[:n])
    assert sorted(score[smallest]) == sorted(values[len(values) - up :])
    inside = (score > -3.0) & (score < -0.5)
    assert band.sum() == min(n, inside.sum())
    assert not (band & ~inside).any()
    assert z_score[among] == pytest.approx((score[among] - values.mean()) / values.std(), rel=1e-6, abs=1e-7)

    shares = run_ranks(_rules, 2, seed, share)
    for found, _ in shares:
        assert found == numbers  # to the bit
    for at, mask in enumerate(masks):
        assert (together([share[1][at] for share in shares])[among] == mask[among]).all()


def test_without_a_token_nothing_is_marked():
    tokens = share_of(mini_batch(0), 0, 1)
    none = torch.zeros_like(tokens.valid)
    for mark in (rules.largest, rules.smallest):
        assert not mark(tokens.log_prob, none, 0.5, tokens).any()
    assert math.isnan(rules.upper_quantile(tokens.log_prob, none, 0.5, tokens))
    assert rules.mean(tokens.log_prob, none, tokens) == 0


@given(st.lists(st.floats(-1e-3, 1e-3), min_size=2, max_size=40), st.floats(-100, 100))
def test_a_small_spread_round_a_large_mean_keeps_its_digits(spread, centre):
    values = np.array(spread) + centre
    tokens = share_of({**mini_batch(1, len(values)), "valid": np.ones(len(values), dtype=bool)}, 0, 1)
    mean, deviation = rules.standard_deviation(torch.from_numpy(values), tokens.valid, tokens)
    assert float(mean) == pytest.approx(values.mean(), abs=1e-10 * max(1, abs(centre)))
    assert float(deviation) == pytest.approx(values.std(), rel=1e-4, abs=1e-8)
