"""Selection: exact counts, the right tokens, ties, the draw's uniformity, and invariance under any split over real
ranks."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.ranks import run_ranks
from verl_cov import selection
from verl_cov.selection import EXCLUDED, Control, select_largest, select_tokens

finite = st.floats(-30, 30, width=32)
tokens = st.lists(st.tuples(finite, finite), min_size=1, max_size=150)


def arrays(pairs):
    log_prob, advantage = (torch.tensor(column, dtype=torch.float32) for column in zip(*pairs, strict=True))
    return (
        log_prob,
        advantage,
        selection.token_identity(torch.zeros(len(pairs), dtype=torch.int64), torch.arange(len(pairs))),
    )


# --- how many ---------------------------------------------------------------------------------------------------------


@given(st.decimals(min_value="0.0001", max_value="1", places=4), st.integers(1, 10**9))
def test_quota_is_the_floor_of_the_decimal_the_user_wrote(ratio, count):
    assert selection.quota(float(ratio), count) == max(1, math.floor(Fraction(ratio) * count))


def test_quota_where_binary_floats_fall_short():
    assert int(0.29 * 100) == 28
    assert selection.quota(0.29, 100) == 29
    assert selection.quota(2e-4, 100) == 1
    assert selection.quota(2e-4, 0) == 0


# --- which ------------------------------------------------------------------------------------------------------------


@given(tokens, st.sampled_from([0.01, 0.05, 0.3, 1.0]))
def test_kl_cov_takes_the_largest(pairs, ratio):
    log_prob, advantage, identity = arrays(pairs)
    chosen = select_tokens(log_prob, advantage, identity, Control(ratio))
    assert chosen.count == chosen.mask.sum() == selection.quota(ratio, len(pairs))
    if chosen.count < len(pairs):
        assert chosen.covariance[chosen.mask].min() >= chosen.covariance[~chosen.mask].max()


@given(tokens, finite, st.floats(0, 20), st.sampled_from([0.01, 0.3, 1.0]))
def test_clip_cov_draws_from_the_open_band(pairs, low, width, ratio):
    control = Control(ratio, band=(low, low + width + 1e-3))
    chosen = select_tokens(*arrays(pairs), control)
    inside = (chosen.covariance > low) & (chosen.covariance < low + width + 1e-3)
    assert chosen.candidates == inside.sum()
    assert chosen.count == min(selection.quota(ratio, len(pairs)), chosen.candidates)
    assert not (chosen.mask & ~inside).any()


@given(tokens, st.integers(0, 2**62), st.integers(0, 2**40))
def test_the_same_seed_and_step_choose_the_same_in_any_order(pairs, seed, step):
    log_prob, advantage, identity = arrays(pairs)
    order = torch.randperm(len(pairs))
    for band in (None, (-100.0, 100.0)):
        control = Control(0.2, band, seed, step)
        straight = select_tokens(log_prob, advantage, identity, control)
        shuffled = select_tokens(log_prob[order], advantage[order], identity[order], control)
        assert torch.equal(straight.mask[order], shuffled.mask)


def test_ties_are_cut_to_the_exact_count_and_change_with_the_step():
    many = 5000
    log_prob, advantage = torch.full((many,), -1.0), torch.ones(many)
    identity = selection.token_identity(torch.arange(many), torch.zeros(many))
    chosen = [select_tokens(log_prob, advantage, identity, Control(0.01, step=step)).mask for step in range(2)]
    assert [mask.sum() for mask in chosen] == [50, 50]
    assert (chosen[0] & chosen[1]).sum() < 25


def test_bfloat16_log_probs_keep_the_count():
    log_prob = torch.linspace(-8, 0, 4096).to(torch.bfloat16)
    advantage = torch.linspace(-2, 2, 4096)[torch.randperm(4096)]
    identity = selection.token_identity(torch.arange(4096), torch.zeros(4096))
    assert select_tokens(log_prob, advantage, identity, Control(0.002)).count == 8


@given(tokens, st.lists(st.sampled_from([math.nan, math.inf, -math.inf, -3e38, 1e12]), min_size=1, max_size=5))
def test_non_finite_tokens_take_no_part_and_are_counted(pairs, bad):
    clean = select_tokens(*arrays(pairs), Control(0.1))
    dirty = select_tokens(*arrays([*pairs, *((value, 1.0) for value in bad)]), Control(0.1))
    assert dirty.non_finite == len(bad)
    assert dirty.tokens == len(pairs)
    assert torch.equal(dirty.mask[: len(pairs)], clean.mask)
    assert not dirty.mask[len(pairs) :].any()


def test_no_tokens_at_all():
    empty = torch.empty(0)
    chosen = select_tokens(empty, empty, empty.long(), Control(0.5))
    assert (chosen.tokens, chosen.count, chosen.mask.numel()) == (0, 0, 0)


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=2, max_size=50))
def test_integer_keys_keep_the_order_of_floats(values):
    x = torch.tensor(values, dtype=torch.float32)
    keys = selection._ordered(x)
    assert torch.equal(x[:, None] < x[None, :], keys[:, None] < keys[None, :])
    assert keys.abs().max() <= 2**31


def test_the_draw_is_uniform():
    """Each of 40 candidates is drawn in 8 of 40 of 4,000 draws; chi-square over candidates and over pairs."""
    many, draws = 40, 4000
    log_prob, advantage = torch.linspace(-2, -1, many), torch.linspace(1, 2, many)
    identity = selection.token_identity(torch.arange(many) // 4, torch.arange(many) % 4)
    masks = torch.stack(
        [
            select_tokens(log_prob, advantage, identity, Control(0.2, band=(-9, 9), step=step)).mask
            for step in range(draws)
        ]
    ).double()
    assert (masks.sum(1) == 8).all()
    # Draws without replacement are less spread than Bernoulli: the statistic is scaled by (n - 1) / (n - k).
    expected = draws * 8 / many
    spread = float(((masks.sum(0) - expected) ** 2 / expected).sum()) * (many - 1) / (many - 8)
    assert 1e-4 < stats.chi2.sf(spread, many - 1) < 1 - 1e-4
    together = (masks.T @ masks)[np.triu_indices(many, 1)].numpy()
    assert together.mean() == pytest.approx(draws * 8 * 7 / (many * (many - 1)), rel=1e-9)
    assert together.std() == pytest.approx(math.sqrt(together.mean() * (1 - together.mean() / draws)), rel=0.1)


# --- identity ---------------------------------------------------------------------------------------------------------


def rows(sequences, responses):
    values = torch.tensor([token for sequence in sequences for token in sequence])
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return values, lengths, torch.tensor(responses)


def test_identity_is_content_and_copies_are_told_apart():
    values, lengths, responses = rows([[1, 2, 3], [1, 2, 3], [3, 2, 1], [1, 2], [1, 2, 3]], [1, 1, 1, 1, 2])
    used = torch.tensor([True] * 5)
    same = torch.zeros(5, dtype=torch.int64)
    ids = selection.row_identity(values, lengths, responses, used, same)
    assert len(set(ids.tolist())) == 5  # copies, order, length and where the response begins all matter
    again = selection.row_identity(values, lengths, responses, torch.tensor([False, True, True, True, True]), same)
    assert again[1] == ids[0]  # a padding copy in front does not shift the count


# --- ranks ------------------------------------------------------------------------------------------------------------


def _select_share(rank: int, world: int, group, pairs, sequences, splits, band):
    """Runs on a real gloo rank: select among this rank's rows; (row, position) pairs that were chosen."""
    mine = range(splits[rank], splits[rank + 1])
    lengths = [len(sequences[row]) for row in mine]
    values = torch.tensor([token for row in mine for token in sequences[row]], dtype=torch.int64)
    used = torch.ones(len(lengths), dtype=torch.bool)
    sizes = torch.tensor(lengths, dtype=torch.int64)
    flat = [(row, at) for row in mine for at in range(len(sequences[row]))]
    log_prob = torch.tensor([pairs[row][at][0] for row, at in flat], dtype=torch.float32)
    advantage = torch.tensor([pairs[row][at][1] for row, at in flat], dtype=torch.float32)
    local = torch.tensor([row - splits[rank] for row, _ in flat], dtype=torch.int64)
    positions = torch.tensor([at for _, at in flat], dtype=torch.int64)
    content = selection.row_values(local, positions, log_prob, advantage, len(lengths))
    ids = selection.row_identity(values, sizes, sizes, used, content, group)
    identity = selection.token_identity(ids[local], positions)
    chosen = select_tokens(log_prob, advantage, identity, Control(0.1, band, seed=7, step=11), group)
    return [flat[index] for index in chosen.mask.nonzero().flatten().tolist()], chosen.count, chosen.covariance_sum


@pytest.mark.parametrize("band", [None, (-1.0, 1.5)])
def test_any_split_over_ranks_chooses_the_same(band):
    random = np.random.default_rng(5)
    sequences = [random.integers(0, 9, random.integers(1, 12)).tolist() for _ in range(30)]
    # Coarse values make ties within and across ranks, which the cut must not take by rank.
    pairs = [[(float(random.integers(-4, 1)), float(random.integers(-2, 3))) for _ in row] for row in sequences]
    alone = _select_share(0, 1, None, pairs, sequences, [0, 30], band)
    for splits in ([0, 15, 30], [0, 0, 30], [0, 3, 3, 30], [0, 1, 2, 30]):  # a rank without rows among them
        shares = run_ranks(_select_share, len(splits) - 1, pairs, sequences, splits, band)
        assert sorted(pair for share in shares for pair in share[0]) == sorted(alone[0]), splits
        assert {share[1] for share in shares} == {alone[1]}
        assert shares[0][2] == pytest.approx(alone[2])


def _largest_share(rank, world, group, keys, splits, count):
    return select_largest(torch.tensor(keys[splits[rank] : splits[rank + 1]], dtype=torch.int64), count, group).tolist()


@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from([EXCLUDED, -5, 0, 3, 3, 9]), min_size=1, max_size=30), st.integers(0, 12), st.data())
def test_select_largest_over_ranks_is_exact(keys, count, data):
    cut = data.draw(st.integers(0, len(keys)))
    masks = run_ranks(_largest_share, 2, keys, [0, cut, len(keys)], count)
    marked = sorted((key for key, on in zip(keys, masks[0] + masks[1], strict=True) if on), reverse=True)
    assert marked == sorted((key for key in keys if key != EXCLUDED), reverse=True)[:count]
