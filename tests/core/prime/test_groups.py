"""Groups of responses to one prompt, in whatever order their rows are."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.core.prime.test_advantage import batches
from verl_cov.core.prime.groups import Groups


@given(batches())
def test_sums_means_deviations_and_the_others(batch):
    mask, values = torch.from_numpy(batch.mask), torch.from_numpy(batch.outcome)
    groups = Groups.from_prompts(batch.prompts, mask)
    rows = range(len(batch.prompts))
    assert groups.count == len({batch.prompts[row] for row in rows if batch.mask[row].any()})
    for row in rows:
        members = [j for j in rows if batch.mask[j].any() and batch.prompts[j] == batch.prompts[row]]
        here = row in members
        assert bool(groups.present[row]) == here
        found = [float(of(values)[row]) for of in (groups.sums, groups.means, groups.stds, groups.others)]
        if not here:
            assert int(groups.index[row]) == -1
            assert int(groups.size[row]) == 0
            assert not groups.compared[row]
            assert found == [0, 0, 0, 0]
            continue
        assert int(groups.size[row]) == len(members)
        assert bool(groups.compared[row]) == (len(members) > 1)
        assert [j for j in rows if groups.index[j] == groups.index[row]] == members
        of_group = [float(batch.outcome[j]) for j in members]
        others = [float(batch.outcome[j]) for j in members if j != row]
        expected = [
            sum(of_group),
            statistics.fmean(of_group),
            statistics.stdev(of_group) if others else 0.0,
            statistics.fmean(others) if others else 0.0,
        ]
        assert found == pytest.approx(expected, abs=1e-7)  # the root of a variance of 1e-16
        if not others:
            assert found[2:] == [0.0, 0.0]


@given(st.integers(2, 6), st.floats(-3, 3))
def test_sums_are_in_float64(size, value):
    """float32 values: 1e8 and small ones, which float32 sums would lose."""
    groups = Groups.from_prompts(["a"] * size, torch.ones(size, 1, dtype=torch.bool))
    values = torch.full((size,), value, dtype=torch.float32)
    values[0] = 1e8
    assert groups.sums(values).dtype == torch.float64
    assert groups.others(values)[0].item() == pytest.approx(float(values[1]), abs=1e-7)


def test_a_prompt_for_each_row_is_asked_for():
    with pytest.raises(ValueError, match="argument"):
        Groups.from_prompts(["a"], torch.ones(2, 3, dtype=torch.bool))
