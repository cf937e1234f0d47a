"""Recipes train: cells of the matrix, from an experiment of the paper by overriding nothing but model, task and scale.

All 32 run by `python -m recipes.matrix train`, which takes the better part of an hour; recipes/ran.json holds that they
did, as they are now (tests/recipes/test_matrix.py). Here each algorithm but GRPO runs once, with controls that take
other ways through verl: our losses, a reference policy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from recipes import matrix
from verl_cov.tasks import countdown, tiny_model

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """The toy task, and a model that has learnt enough of it for prompts with right and wrong responses."""
    folder = tmp_path_factory.mktemp("toy")
    countdown.write_parquet(folder / "countdown")
    tiny_model.build(folder / "model", settings=replace(tiny_model.Settings(), steps=300))
    return folder


@pytest.mark.parametrize("cell", ["rloo/kl_cov", "reinforce_plus_plus/clip_cov", "on_policy/reference_kl"])
def test_a_cell_trains(cell, toy, tmp_path):
    problem, steps = matrix.train_one(matrix.trained()[cell], tmp_path, toy)
    assert problem is None, problem
    for step in steps:
        assert step["actor/cov/tokens"] > 0
        assert (step.get("actor/cov/selected_tokens", 0) > 0) is (not cell.endswith("reference_kl"))
        assert ("actor/kl_loss" in step) is cell.endswith("reference_kl")
        # The filter: every prompt that is trained on has right and wrong responses.
        assert 1 / 8 <= step["critic/score/mean"] <= 7 / 8
        assert step["training/rollout_actor_probs_pearson_corr"] > 0.999
        assert step["actor/lr"] == 4e-4
