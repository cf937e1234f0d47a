"""pass@k against its definition: the share of all subsets of k samples that have a success, in exact fractions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.core.pass_at_k import NoSuccess, NoThreshold, is_success, mean_pass_at_k, pass_at_k, tally


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_it_is_the_share_of_the_subsets_that_have_a_success(samples, data):
    k = data.draw(st.integers(1, len(samples)))
    subsets = list(itertools.combinations(samples, k))
    exact = Fraction(sum(map(any, subsets)), len(subsets))
    assert Fraction(pass_at_k(len(samples), sum(samples), k)) == Fraction(float(exact))


@given(st.integers(1, 2000), st.data())
def test_it_is_right_to_the_last_bit_at_any_size(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    # Another way: none of k samples drawn one after another is a success.
    none = math.prod((Fraction(n - c - drawn, n - drawn) for drawn in range(min(k, n - c + 1))), start=Fraction(1))
    assert pass_at_k(n, c, k) == float(1 - none)
    if n - c >= k:  # Chen et al., the code in their Figure 3
        assert pass_at_k(n, c, k) == pytest.approx(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)), abs=1e-12)


def test_its_mean_over_samples_is_the_truth():
    """Unbiased: the mean over all outcomes of n samples with success p is 1 - (1 - p)^k, in exact numbers."""
    p, n = Fraction(3, 10), 6
    for k in range(1, n + 1):
        mean = sum(
            math.comb(n, c) * p**c * (1 - p) ** (n - c) * Fraction(pass_at_k(n, c, k)).limit_denominator(10**6)
            for c in range(n + 1)
        )
        assert mean == 1 - (1 - p) ** k


@pytest.mark.parametrize("wrong", [(4, 2, 0), (4, 2, 5), (4, 5, 2), (4, -1, 2), (0, 0, 1), (4, 2, -1)])
def test_too_few_samples_have_no_estimate(wrong):
    with pytest.raises(ValueError, match=r"cannot be estimated from \d+ samples"):
        pass_at_k(*wrong)


def test_a_success_is_one_and_anything_else_must_be_said():
    for value in (1, 1.0, True, np.bool_(True), np.float32(1), np.int64(1)):
        assert is_success(value) is True
    for value in (0, 0.0, False, np.bool_(False), np.float32(0)):
        assert is_success(value) is False
    for value in (0.5, 2, -1, 1 - 1e-9):
        with pytest.raises(NoThreshold, match="neither 0 nor 1"):
            is_success(value)
    for value in (math.nan, math.inf, "1", b"1", "yes", [1.0, 0.0], {}, None):
        with pytest.raises(NoSuccess, match=r"no (finite )?number"):
            is_success(value)
    assert [is_success(value, 0.5) for value in (0.25, 0.5, 1, -3)] == [False, True, True, False]
    assert is_success(0, 0.0) is True  # the threshold counts, not 0 and 1
    for value in (math.nan, -math.inf, "0.7"):
        with pytest.raises(NoSuccess):
            is_success(value, 0.5)


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from([0.0, 1.0, None])), max_size=30))
def test_responses_are_counted_by_prompt(rows):
    counts = tally([row[0] for row in rows], [row[1] for row in rows])
    of_prompt = [[value for prompt, value in rows if prompt == name and value is not None] for name in "pqr"]
    assert sorted(counts) == sorted((len(values), int(sum(values))) for values in of_prompt if values)


def test_responses_that_never_came_are_no_successes():
    assert sorted(tally(["p", "p"], [1, 0], expected={"p": 4, "q": 2})) == [(2, 0), (4, 1)]
    assert tally(["p"] * 3, [1, 1, 1], expected={"p": 2}) == [(3, 3)]  # more than asked for: none is dropped
    assert tally([], [], expected={"p": 0}) == []
    with pytest.raises(ValueError, match="zip"):
        tally(["p"], [1, 0])


def test_the_mean_is_over_prompts_each_with_its_own_samples():
    assert mean_pass_at_k([(4, 1), (2, 2)], 2) == pytest.approx((0.5 + 1) / 2)
    assert mean_pass_at_k([(4, 1), (2, 2)], 3) is None  # one has only two
    assert mean_pass_at_k([], 1) is None
