"""Selection: exact counts, the right tokens, ties, the draw's uniformity, and invariance under any split over real
ranks."""

from __future__ import annotations

import math
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.ranks import run_ranks
from verl_cov.core import radix, selection
from verl_cov.core.covariance import Covariances
from verl_cov.core.identity import row_identity, row_values, token_identity
from verl_cov.core.metric_table import LADDER
from verl_cov.core.radix import EXCLUDED, select_largest
from verl_cov.core.selection import (
    Control,
    count,
    largest_means,
    select,
    select_tokens,
    totals_of,
)
from verl_cov.core.update_kinds import UPDATE_KINDS

finite = st.floats(-30, 30, width=32)
tokens = st.lists(st.tuples(finite, finite), min_size=1, max_size=150)


def arrays(pairs):
    """log-probs, advantages, validity, identities of one row."""
    log_prob, advantage = (torch.tensor(column, dtype=torch.float32) for column in zip(*pairs, strict=True))
    return log_prob, advantage, torch.ones(len(pairs), dtype=torch.bool), identities(torch.arange(len(pairs)))


def identities(rows, positions=None):
    """What select_tokens asks for identities, from the rows (and positions) of all slots."""
    ids = token_identity(rows, torch.zeros_like(rows) if positions is None else positions)
    return lambda at: ids[at]


def quota(ratio, tokens):
    return int(selection.quota(ratio, torch.tensor(tokens)))


def flat(totals):
    """All numbers of Totals in one list."""
    return [number for entry in totals for number in (entry if isinstance(entry, tuple) else (entry,))]


@contextmanager
def counted_bytes():
    """[bytes that this rank put into collectives]"""
    import torch.distributed as dist

    total = [0]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_reduce", "all_gather"):
            original = getattr(dist, name)

            def counting(*args, _original=original, **kwargs):
                total[0] += sum(x.nbytes for x in args if isinstance(x, torch.Tensor))
                return _original(*args, **kwargs)

            patch.setattr(dist, name, counting)
        yield total


# --- how many ---------------------------------------------------------------------------------------------------------


@given(st.decimals(min_value="0.0001", max_value="1", places=4), st.integers(1, 10**9))
def test_quota_is_the_floor_of_the_decimal_the_user_wrote(ratio, count):
    wanted = max(1, math.floor(Fraction(ratio) * count))
    assert selection.quota(float(ratio), torch.tensor(count)) == wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "on_cpu", lambda tensor: False)
        assert selection.quota(float(ratio), torch.tensor(count)) == wanted


def test_quota_where_binary_floats_fall_short():
    assert int(0.29 * 100) == 28
    assert selection.quota(0.29, torch.tensor(100)) == 29
    assert selection.quota(2e-4, torch.tensor(100)) == 1
    assert selection.quota(2e-4, torch.tensor(0)) == 0


# --- which ------------------------------------------------------------------------------------------------------------


@given(tokens, st.sampled_from([0.01, 0.05, 0.3, 1.0]))
def test_kl_cov_takes_the_largest(pairs, ratio):
    chosen = select_tokens(*arrays(pairs), Control(ratio))
    assert chosen.totals.selected == chosen.mask.sum() == quota(ratio, len(pairs))
    assert chosen.totals.threshold == chosen.covariance[chosen.mask].min()
    if chosen.totals.selected < len(pairs):
        assert chosen.totals.threshold >= chosen.covariance[~chosen.mask].max()


@given(tokens, finite, st.floats(0, 20), st.sampled_from([0.01, 0.3, 1.0]))
def test_clip_cov_draws_from_the_open_band(pairs, low, width, ratio):
    control = Control(ratio, band=(low, low + width + 1e-3))
    chosen = select_tokens(*arrays(pairs), control)
    inside = (chosen.covariance > low) & (chosen.covariance < low + width + 1e-3)
    assert chosen.totals.candidates == inside.sum()
    assert chosen.totals.selected == min(quota(ratio, len(pairs)), chosen.totals.candidates)
    assert not (chosen.mask & ~inside).any()


@given(tokens, st.integers(0, 2**62), st.integers(0, 2**40))
def test_the_same_seed_and_step_choose_the_same_in_any_order(pairs, seed, step):
    log_prob, advantage, valid, identity = arrays(pairs)
    order = torch.randperm(len(pairs))
    for band in (None, (-100.0, 100.0)):
        control = Control(0.2, band, seed, step)
        straight = select_tokens(log_prob, advantage, valid, identity, control)
        shuffled = select_tokens(log_prob[order], advantage[order], valid, lambda at: identity(order[at]), control)
        assert torch.equal(straight.mask[order], shuffled.mask)


def test_ties_are_cut_to_the_exact_count_and_change_with_the_step():
    many = 5000
    tokens = torch.full((many,), -1.0), torch.ones(many), torch.ones(many).bool(), identities(torch.arange(many))
    chosen = [select_tokens(*tokens, Control(0.01, step=step)) for step in range(2)]
    assert [one.mask.sum() for one in chosen] == [50, 50]
    assert [one.totals.tied for one in chosen] == [many, many]
    assert (chosen[0].mask & chosen[1].mask).sum() < 25


def test_bfloat16_log_probs_keep_the_count():
    log_prob = torch.linspace(-8, 0, 4096).to(torch.bfloat16)
    advantage = torch.linspace(-2, 2, 4096)[torch.randperm(4096)]
    valid = torch.ones(4096, dtype=torch.bool)
    chosen = select_tokens(log_prob, advantage, valid, identities(torch.arange(4096)), Control(0.002))
    assert chosen.totals.selected == chosen.mask.sum() == 8


@given(tokens, st.lists(st.sampled_from([math.nan, math.inf, -math.inf, -3e38, 1e12]), min_size=1, max_size=5))
def test_non_finite_tokens_take_no_part_and_are_counted(pairs, bad):
    clean = select_tokens(*arrays(pairs), Control(0.1))
    dirty = select_tokens(*arrays([*pairs, *((value, 1.0) for value in bad)]), Control(0.1))
    assert dirty.totals.non_finite == len(bad)
    assert dirty.totals.tokens == len(pairs)
    assert torch.equal(dirty.mask[: len(pairs)], clean.mask)
    assert not dirty.mask[len(pairs) :].any()


def test_no_tokens_at_all():
    empty = torch.empty(0)
    for band in (None, (-1.0, 1.0)):
        chosen = select_tokens(empty, empty, empty.bool(), identities(empty.long()), Control(0.5, band))
        assert (chosen.totals.tokens, chosen.totals.selected, chosen.mask.numel()) == (0, 0, 0)


@pytest.mark.parametrize("band", [None, (-100.0, 100.0)])
def test_masked_slots_take_no_part_whatever_they_hold(band):
    log_prob, advantage, valid, identity = arrays([(-1.0, 1.0), (-2.0, 0.5), (-0.5, -1.0)])
    control = Control(0.4, band)
    expected = select_tokens(log_prob, advantage, valid, identity, control)
    for junk in (math.nan, math.inf, 1e30, 0.0):
        more = torch.tensor([junk] * 5)
        found = select_tokens(
            torch.cat([log_prob, more]),
            torch.cat([advantage, more]),
            torch.tensor([True] * 3 + [False] * 5),
            lambda at: identity(at.clamp(max=2)),
            control,
        )
        assert found.totals == expected.totals
        assert found.mask.tolist() == expected.mask.tolist() + [False] * 5
    nothing = select_tokens(log_prob, advantage, ~valid, identity, control)
    assert not nothing.mask.any()
    assert nothing.totals.tokens == 0


def test_barred_tokens_count_and_are_never_chosen():
    tokens = arrays([(-1.0, 1.0), (-2.0, 0.5), (-0.1, 3.0), (-3.0, -2.0)])
    free = select_tokens(*tokens, Control(0.5))
    for band in (None, (-100.0, 100.0)):
        found = select_tokens(*tokens, Control(0.5, band), barred=free.mask)
        assert not (found.mask & free.mask).any()
        assert (found.totals.tokens, found.totals.selected, found.totals.candidates) == (4, 2, 2)
    assert found.totals.covariance_sum == free.totals.covariance_sum


@given(tokens, st.sampled_from([0.01, 0.3, 1.0]))
def test_largest_values_are_the_order_statistics(pairs, share):
    cov = select_tokens(*arrays(pairs), Control(0.5)).covariance
    values = selection.largest_values(torch.cat([cov, torch.tensor([torch.nan])]), (share, 1.0))
    assert values[0] == cov.sort(descending=True).values[quota(share, len(pairs)) - 1]
    assert values[1] == cov.min()


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=2, max_size=50))
def test_integer_keys_keep_the_order_of_floats(values):
    x = torch.tensor(values, dtype=torch.float32)
    keys = radix.to_keys(x)
    assert torch.equal(x[:, None] < x[None, :], keys[:, None] < keys[None, :])
    assert keys.min() >= 0
    assert keys.max() < 2**32
    assert torch.equal(radix.from_keys(keys), x)


def test_the_draw_is_uniform():
    """Each of 40 candidates is drawn in 8 of 40 of 4,000 draws; chi-square over candidates and over pairs."""
    many, draws = 40, 4000
    log_prob, advantage = torch.linspace(-2, -1, many), torch.linspace(1, 2, many)
    identity = identities(torch.arange(many) // 4, torch.arange(many) % 4)
    valid = torch.ones(many, dtype=torch.bool)
    masks = torch.stack(
        [
            select_tokens(log_prob, advantage, valid, identity, Control(0.2, band=(-9, 9), step=step)).mask
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


# --- how the covariances are distributed ------------------------------------------------------------------------------


@given(tokens, st.lists(st.sampled_from([*LADDER, 0.13, 1.0]), min_size=1, max_size=3))
def test_the_ladder_is_numpys_mean_of_the_largest(pairs, shares):
    log_prob, advantage, valid, _ = arrays(pairs)
    cov = Covariances.compute(log_prob, advantage, valid).values
    largest_first = np.sort(cov.double().numpy())[::-1]
    expected = [largest_first[: quota(share, len(pairs))].mean() for share in shares]
    assert largest_means(cov, tuple(shares)).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_ladder_counts_ties_at_the_cut_as_often_as_they_fit():
    cov = torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, -2.0, torch.nan, 0.0, 0.0, 0.0, 0.0])
    assert largest_means(cov, (0.3, 0.5, 1.0)).tolist() == pytest.approx([5 / 3, 7 / 5, 5 / 10])
    assert largest_means(cov[:0], (0.5,)).isnan().all()


@given(tokens)
def test_each_token_is_of_one_kind_and_the_kinds_add_up(pairs):
    log_prob, advantage, valid, _ = arrays(pairs)
    totals = totals_of(count(Covariances.compute(log_prob, advantage, valid, update_kinds=True)).tolist())
    x, a = log_prob.double().numpy(), advantage.double().numpy()
    likely, good = x > x.mean(), a > a.mean()
    cov = (x - x.mean()) * (a - a.mean())
    masks = dict(exploitation=likely & good, confirmation=~likely & ~good, exploration=~likely & good)
    masks["correction"] = likely & ~good
    assert sum(totals.kind_tokens) == totals.tokens == len(pairs)
    assert sum(totals.kind_covariance_sums) == pytest.approx(totals.covariance_sum, abs=1e-6)
    near = np.isclose(x, x.mean(), atol=1e-6) | np.isclose(a, a.mean(), atol=1e-6)  # means are rounded to 2^-24
    for kind, tokens_, sum_ in zip(UPDATE_KINDS, totals.kind_tokens, totals.kind_covariance_sums, strict=True):
        assert abs(tokens_ - masks[kind].sum()) <= near.sum()
        assert sum_ == pytest.approx(cov[masks[kind]].sum(), rel=1e-4, abs=1e-3)
        assert sum_ >= 0 if kind in UPDATE_KINDS[:2] else sum_ <= 0


# --- identity ---------------------------------------------------------------------------------------------------------


def rows(sequences, responses):
    values = torch.tensor([token for sequence in sequences for token in sequence])
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return values, lengths, torch.tensor(responses)


def test_identity_is_content_and_copies_are_told_apart():
    values, lengths, responses = rows([[1, 2, 3], [1, 2, 3], [3, 2, 1], [1, 2], [1, 2, 3]], [1, 1, 1, 1, 2])
    used = torch.tensor([True] * 5)
    same = torch.zeros(5, dtype=torch.int64)
    ids = row_identity(values, lengths, responses, used, same)
    assert len(set(ids.tolist())) == 5  # copies, order, length and where the response begins all matter
    again = row_identity(values, lengths, responses, torch.tensor([False, True, True, True, True]), same)
    assert again[1] == ids[0]  # a padding copy in front does not shift the count


# --- ranks ------------------------------------------------------------------------------------------------------------


def _select_share(rank: int, world: int, group, pairs, sequences, splits, band):
    """Runs on a real gloo rank: select among this rank's rows; (row, position) pairs that were chosen, the rest, and
    the bytes that went into collectives."""
    mine = range(splits[rank], splits[rank + 1])
    values = torch.tensor([token for row in mine for token in sequences[row]], dtype=torch.int64)
    sizes = torch.tensor([len(sequences[row]) for row in mine], dtype=torch.int64)
    tokens = [(row, at) for row in mine for at in range(len(sequences[row]))]
    log_prob = torch.tensor([pairs[row][at][0] for row, at in tokens], dtype=torch.float32)
    advantage = torch.tensor([pairs[row][at][1] for row, at in tokens], dtype=torch.float32)
    valid = torch.ones(len(tokens), dtype=torch.bool)
    local = torch.tensor([row - splits[rank] for row, _ in tokens], dtype=torch.int64)
    positions = torch.tensor([at for _, at in tokens], dtype=torch.int64)

    def identity(at):
        content = row_values(sizes, valid, log_prob, advantage)
        ids = row_identity(values, sizes, sizes, sizes > 0, content, group)
        return token_identity(ids[local[at]], positions[at])

    covariances = Covariances.compute(log_prob, advantage, valid, group, update_kinds=True)
    with counted_bytes() as traffic:
        chosen = select(covariances, advantage, identity, Control(0.1, band, seed=7, step=11), group)
    ladder = largest_means(covariances.values, LADDER, group)
    assert count(covariances, group).tolist() == pytest.approx(chosen.numbers[:12].tolist())
    numbers = [*chosen.numbers.tolist(), *ladder.tolist()]
    return [tokens[index] for index in chosen.mask.nonzero().flatten().tolist()], numbers, traffic[0]


@pytest.mark.parametrize("band", [None, (-1.0, 1.5)])
def test_any_split_over_ranks_chooses_the_same(band):
    random = np.random.default_rng(5)
    sequences = [random.integers(0, 9, random.integers(1, 12)).tolist() for _ in range(30)]
    # Coarse values make ties within and across ranks, which the cut must not take by rank.
    pairs = [[(float(random.integers(-4, 1)), float(random.integers(-2, 3))) for _ in row] for row in sequences]
    alone = _select_share(0, 1, None, pairs, sequences, [0, 30], band)
    # A rank without rows among them; four ranks as well.
    for splits in ([0, 15, 30], [0, 0, 30], [0, 3, 3, 30], [0, 1, 2, 30], [0, 8, 8, 20, 30]):
        shares = run_ranks(_select_share, len(splits) - 1, pairs, sequences, splits, band)
        assert sorted(pair for share in shares for pair in share[0]) == sorted(alone[0]), splits
        for share in shares:
            assert share[1] == pytest.approx(alone[1], rel=1e-9, abs=1e-9)  # counts, kinds, threshold, ladder
            assert share[2] < 140_000


def _model_parallel_share(rank, world, group, seed):
    """Four ranks as two data-parallel groups that hold the same rows, as sequence parallelism lays them out."""
    import torch.distributed as dist

    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    generator = torch.Generator().manual_seed(seed + rank // 2)
    log_prob, advantage = (torch.randint(-5, 5, (400,), generator=generator).float() for _ in range(2))
    identity = identities(torch.arange(400) + 400 * (rank // 2))
    valid = torch.ones(400, dtype=torch.bool)
    mine = groups[rank % 2]
    return [
        select_tokens(log_prob, advantage, valid, identity, Control(0.1, band), mine).mask.tolist()
        for band in (None, (-4.0, 9.0))
    ]


def test_sequence_parallel_ranks_with_the_same_rows_choose_the_same():
    masks = run_ranks(_model_parallel_share, 4, 3)
    assert masks[0] == masks[1]
    assert masks[2] == masks[3]
    assert masks[0] != masks[2]


def _traffic(rank, world, group, tokens, ratio, band):
    generator = torch.Generator().manual_seed(rank)
    log_prob, advantage = torch.randn(tokens, generator=generator), torch.randn(tokens, generator=generator)
    identity = identities(torch.arange(tokens) + tokens * rank)
    with counted_bytes() as traffic:
        control = Control(ratio, band)
        select_tokens(log_prob, advantage, torch.ones(tokens, dtype=torch.bool), identity, control, group)
    return traffic[0]


@pytest.mark.parametrize("band", [None, (-1.0, 1.0)])
def test_traffic_does_not_grow_with_tokens_or_selected_tokens(band):
    sizes = ((100, 0.1), (100_000, 0.001), (100_000, 0.5))
    seen = {tuple(run_ranks(_traffic, 2, tokens, ratio, band)) for tokens, ratio in sizes}
    assert len(seen) == 1
    assert max(seen.pop()) < 140_000


def _largest_share(rank, world, group, keys, splits, count):
    mine = torch.tensor(keys[splits[rank] : splits[rank + 1]], dtype=torch.int64)
    return select_largest(mine, torch.tensor(count), 55, group).tolist()


@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from([EXCLUDED, 5, 0, 3, 3, 2**54]), min_size=1, max_size=30), st.integers(0, 12), st.data())
def test_select_largest_over_ranks_is_exact(keys, count, data):
    cut = data.draw(st.integers(0, len(keys)))
    masks = run_ranks(_largest_share, 2, keys, [0, cut, len(keys)], count)
    marked = sorted((key for key, on in zip(keys, masks[0] + masks[1], strict=True) if on), reverse=True)
    assert marked == sorted((key for key in keys if key != EXCLUDED), reverse=True)[:count]


@given(tokens, st.sampled_from([0.01, 0.3, 1.0]), st.sampled_from([None, (-1.0, 3.0)]))
def test_the_path_of_an_accelerator_chooses_the_same(pairs, ratio, band):
    """The same tensors, treated as if looking at them meant waiting for a device: no compaction, no branches."""
    tokens = arrays(pairs)
    on_cpu = select_tokens(*tokens, Control(ratio, band))
    with pytest.MonkeyPatch.context() as patch:
        for module in (selection, radix):
            patch.setattr(module, "on_cpu", lambda tensor: False)
        on_device = select_tokens(*tokens, Control(ratio, band))
        ladder = largest_means(on_device.covariance, LADDER)
    assert torch.equal(on_cpu.mask, on_device.mask)
    assert flat(on_cpu.totals) == pytest.approx(flat(on_device.totals))
    assert ladder.tolist() == pytest.approx(largest_means(on_cpu.covariance, LADDER).tolist())


@pytest.mark.parametrize("band", [None, (-1.0, 3.0)])
def test_the_path_of_an_accelerator_never_looks_at_values(band):
    """On the meta device there are no values: anything that needs one on the host fails."""
    many = 1000
    meta = torch.empty(many, device="meta")
    covariances = Covariances.compute(meta, meta, meta.bool(), update_kinds=True)
    chosen = select(covariances, meta, lambda at: at, Control(0.01, band))
    assert chosen.mask.shape == (many,)
    assert largest_means(covariances.values, LADDER).shape == (len(LADDER),)
    with pytest.raises(Exception, match="meta"):
        chosen.totals  # noqa: B018  (the one place that reads)
