"""The averages over validation sets, against their definitions and the paper's Table 2."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.core.evaluation import averages, by_set

generations = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("pq"), st.sampled_from([0.0, 0.25, 1.0, None])), max_size=40
)


@given(generations)
def test_averages_are_those_of_numpy(rows):
    found = averages(by_set([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]))
    values = {name: [row[2] for row in rows if row[0] == name and row[2] is not None] for name in "abc"}
    values = {name: numbers for name, numbers in values.items() if numbers}
    if not values:
        assert found is None
        return
    assert found.generations == sum(map(len, values.values()))
    assert found.sample_weighted == pytest.approx(np.mean(np.concatenate(list(values.values()))))
    assert found.plain_mean == pytest.approx(np.mean([np.mean(numbers) for numbers in values.values()]))


def test_generations_that_never_came_count_as_wrong():
    expected = {("a", "p"): 3, ("a", "q"): 1, ("b", "p"): 1}
    sets = by_set(["a", "a"], ["p", "p"], [1.0, 1.0], expected)
    assert sets == {"a": (2.0, 4)}  # nothing is known of b: verl reports no accuracy of it either
    assert averages(sets).sample_weighted == 0.5
    assert by_set(["a"] * 4, ["p"] * 4, [1.0] * 4, expected) == {"a": (4.0, 5)}  # more than asked for: none is dropped


def test_a_set_whose_accuracies_are_no_numbers_is_left_out():
    names = ["a", "a", "b", "b", "c", "d"]
    accuracies = ["yes", 1.0, np.bool_(True), np.float32(0), [1.0, 2.0], "1.0"]
    assert by_set(names, ["p"] * 6, accuracies) == {"b": (1.0, 2)}
    assert by_set(names, ["p"] * 6, accuracies, {("a", "p"): 4, ("b", "p"): 3}) == {"b": (1.0, 3)}
    assert by_set(names, ["p"] * 6, []) == {}  # the reward function gives none
    assert by_set(names, ["p"] * 6, np.array([])) == {}
