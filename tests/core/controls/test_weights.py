"""Every control by weight against numpy, on one rank and on two, alone and several at once; and what is refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.controls import oracles
from tests.core.controls.batches import mini_batch, share_of, together
from tests.core.test_selection import counted_bytes
from tests.ranks import run_ranks
from verl_cov.core.controls import catalogue
from verl_cov.core.controls.tokens import MissingInputError, Tokens
from verl_cov.core.controls.weight import weigh, weight_metrics

# Control, its numbers (others than the defaults), its oracle, the column by which tokens tie, of each sign of A or not.
CASES = {
    "stare": ("stare", dict(share=0.1), oracles.stare, {}, "log_prob"),
    "stare, C2": ("stare", dict(damp=0.9, share=0.03), oracles.stare, dict(damp=0.9, share=0.03), "log_prob"),
    "steer": ("steer", {}, oracles.steer, {}, None),
    "steer, exponential": (
        "steer",
        dict(map="exponential", most=1, least=0.7),
        oracles.steer_exponential,
        dict(least=0.7),
        None,
    ),
    "high_entropy": ("high_entropy", {}, oracles.high_entropy, {}, "entropy"),
    "repo": ("repo", dict(zeta=0.3), oracles.repo, dict(zeta=0.3), None),
    "repo, reversed": ("repo", dict(zeta=-0.05), oracles.repo, dict(zeta=-0.05), None),
    "positive_advantage": ("positive_advantage", {}, oracles.positive_advantage, {}, None),
    "clip_b": ("clip_b", dict(mu=1.0), oracles.clip_b, dict(mu=1.0), None),
    "cov_weight": ("cov_weight", dict(share=0.05), oracles.cov_weight, dict(share=0.05), None),
}


def cut(columns):
    """The valid tokens' columns, in float64."""
    return {name: column[columns["valid"]].astype(np.float64) for name, column in columns.items() if name != "valid"}


def _weights(rank, world, group, seed, wanted):
    tokens = share_of(mini_batch(seed), rank, world, group, mean_entropy=0.2)
    controls = {name: catalogue.make(name, numbers) for name, numbers in wanted.items()}
    weights, numbers = weigh(controls, tokens)
    return weights.numpy(), numbers.numpy()


def tokens_by_weight(columns, weights, by):
    """How often each (score, sign of A, weight) occurs: which of equal tokens is marked, is the hash's choice."""
    signs = np.sign(columns["advantage"])
    return Counter(zip(columns[by].tolist(), signs.tolist(), weights.round(6).tolist(), strict=True))


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_weights_are_numpys_on_one_rank_and_the_same_to_the_bit_on_two(case, seed):
    name, numbers, oracle, oracles_numbers, ties = CASES[case]
    columns = mini_batch(seed)
    valid, whole = columns["valid"], cut(columns)
    found, counts = _weights(0, 1, None, seed, {name: numbers})
    expected = oracle(whole, **oracles_numbers)
    assert (found[~valid] == 1).all()
    if ties is None:
        assert found[valid] == pytest.approx(expected, rel=2e-5)
    elif case.startswith("stare"):
        assert tokens_by_weight(whole, found[valid], ties) == tokens_by_weight(whole, np.float32(expected), ties)
    else:
        entropies = (sorted(whole[ties][weights > 0]) for weights in (found[valid], expected))
        assert next(entropies) == next(entropies)
    a = np.abs(whole["advantage"])
    weighted = float(np.sum(found[valid] != 1))
    assert counts[0] == pytest.approx([valid.sum(), found[valid].sum(), weighted, a.sum(), (found[valid] * a).sum()])

    shares = run_ranks(_weights, 2, seed, {name: numbers})
    assert (together([share[0] for share in shares]) == found).all()
    assert all(share[1] == pytest.approx(counts) for share in shares)


def test_several_controls_multiply_in_any_order_and_are_counted_apart():
    both = {"high_entropy": {}, "positive_advantage": {"weight": 0.25}}
    found, counts = _weights(0, 1, None, 3, both)
    other, reverse = _weights(0, 1, None, 3, dict(reversed(both.items())))
    alone = [_weights(0, 1, None, 3, {name: numbers}) for name, numbers in both.items()]
    assert (found == alone[0][0] * alone[1][0]).all()
    assert (found == other).all()
    assert (counts == reverse[::-1]).all()
    assert (counts == np.concatenate([each[1] for each in alone])).all()


def test_renormalised_weights_have_mean_one_and_metrics_say_so():
    weights, counts = _weights(0, 1, None, 4, {"high_entropy": {"renormalise": True}})
    valid = mini_batch(4)["valid"]
    assert weights[valid].mean() == pytest.approx(1)
    metrics = weight_metrics("high_entropy", counts[0].tolist())
    assert metrics["high_entropy/weight"] == pytest.approx(1)
    assert metrics["high_entropy/weighted_frac"] == 1
    off = weight_metrics("x", [0.0] * 5)
    assert off == {"x/weight": 0.0, "x/weighted_frac": 0.0, "x/advantage_frac": 1.0}


def test_stares_gate_opens_below_its_entropy_only():
    for mean, acts in ((0.29, True), (0.3, False), (0.31, False)):
        weights, _ = weigh({"stare": catalogue.make("stare", {})}, share_of(mini_batch(0), 0, 1, mean_entropy=mean))
        assert bool((weights != 1).any()) == acts
    open_always = catalogue.make("stare", {"below_entropy": None})
    assert (weigh({"stare": open_always}, share_of(mini_batch(0), 0, 1))[0] != 1).any()
    assert (catalogue.make("stare", {}).needs, open_always.needs) == (("rollout_entropy",), ())


def test_a_missing_input_is_named():
    columns = mini_batch(0)
    tokens = share_of(columns, 0, 1)
    bare = Tokens(tokens.log_prob, tokens.old_log_prob, tokens.advantage, tokens.valid, tokens.identity)
    for name in ("steer", "high_entropy", "clip_b", "stare"):
        assert catalogue.make(name, {}).needs
        with pytest.raises(MissingInputError, match="entropy"):
            weigh({name: catalogue.make(name, {})}, bare)


@pytest.mark.parametrize("name", catalogue.CONTROLS)
def test_nothing_breaks_without_a_token_or_with_one_or_with_equal_ones(name):
    control = catalogue.make(name, {})
    columns = mini_batch(5)
    for valid in (np.zeros(240, dtype=bool), np.arange(240) == np.flatnonzero(columns["valid"])[0]):
        weights, counts = weigh({name: control}, share_of({**columns, "valid": valid}, 0, 1, mean_entropy=0.1))
        assert weights.isfinite().all()
        assert float(counts[0, 0]) == valid.sum()
    alike = {key: np.full(240, 0.5, dtype=np.float32) for key in ("advantage", "entropy")}
    alike |= {key: np.full(240, -1.0, dtype=np.float32) for key in ("log_prob", "old_log_prob")}
    weights, _ = weigh({name: control}, share_of({**alike, "valid": np.ones(240, dtype=bool)}, 0, 1, mean_entropy=0.1))
    assert weights.isfinite().all()


@pytest.mark.parametrize("name", catalogue.CONTROLS)
def test_nothing_waits_for_the_device(name):
    """On PyTorch's meta device, which has no values to look at."""
    values = torch.zeros(100, device="meta")
    tokens = Tokens(values, values, values, values.bool(), lambda at: at, values, 0.1)
    assert weigh({name: catalogue.make(name, {})}, tokens)[0].shape == (100,)


def _traffic(rank, world, group, name, numbers):
    random = np.random.default_rng(rank)
    names = ("log_prob", "old_log_prob", "advantage", "entropy")
    columns = {key: np.float32(random.normal(-1, 0.3, 4000)) for key in names}
    tokens = share_of({**columns, "valid": np.ones(4000, dtype=bool)}, 0, 1, group, mean_entropy=0.1)
    with counted_bytes() as traffic:
        weigh({name: catalogue.make(name, numbers)}, tokens)
    return traffic[0]


def test_a_control_moves_less_than_200_kilobytes_a_rank():
    for name, numbers in (*((name, {}) for name in catalogue.CONTROLS), ("stare", {"damp": 0.9})):
        assert max(run_ranks(_traffic, 2, name, numbers)) < 200e3, name


@pytest.mark.parametrize(
    ("name", "numbers", "words"),
    [
        ("high_entropy", {"share": 0}, "share=0 must be a number above 0 and at most 1"),
        ("high_entropy", {"share": "0.2"}, "share='0.2' must be a number"),
        ("high_entropy", {"share": True}, "share=True must be a number"),
        ("high_entropy", {"shares": 0.2}, "shares is unknown: did you mean share?"),
        ("stare", {"promote": -1}, "promote=-1 must be a number of at least 0"),
        ("stare", {"damp": float("nan")}, "damp=nan must be a number"),
        ("stare", {"below_entropy": 0}, "below_entropy=0 must be a number above 0"),
        ("steer", {"map": "square"}, "map='square' is unknown"),
        ("steer", {"least": 1.3}, "most=1.2 must be a number of at least 1.3"),
        ("steer", {"map": "exponential"}, "most=1.2 must be 1"),
        ("repo", {"zeta": 20}, "zeta=20 must be a number of at least -1 and at most 1"),
        ("positive_advantage", {"weight": 2}, "weight=2 must be a number"),
        ("clip_b", {"mu": -1}, "mu=-1 must be a number"),
        ("clip_b", {"renormalise": "no"}, "renormalise='no' must be true or false"),
        ("cov_weight", {"share": 2}, "share=2 must be a number"),
        ("high_entropi", {}, "high_entropi is unknown: did you mean high_entropy?"),
        ("my_sum", {}, "without min, max, sum and total"),
        ("mine", {}, "mine is no name for a control"),
        ("own", {"path": "nowhere.py:f"}, "path='nowhere.py:f' must be FILE.py:FUNCTION"),
    ],
)
def test_bad_numbers_are_refused_by_name(name, numbers, words):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        catalogue.make(name, numbers)
