"""Recipes train: cells of the matrix, from an experiment of the paper by overriding nothing but model, task and scale.

All 40 run by `python -m recipes.matrix train`, which takes the better part of an hour; recipes/ran.json holds that they
did, as they are now (tests/recipes/test_matrix.py). Here one of them runs; the other training is on mathematics and
code instead of the toy, strictly on-policy and with a reference policy.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recipes import matrix
from tests.conftest import save_untrained_model
from verl_cov.recipes import catalogue
from verl_cov.tasks import countdown, tiny_model
from verl_cov.tasks.data.prepare import prepare
from verl_cov.tasks.data.sets import SETS

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """The toy task, and a model that has learnt enough of it for prompts with right and wrong responses."""
    folder = tmp_path_factory.mktemp("toy")
    countdown.write_parquet(folder / "countdown")
    tiny_model.build(folder / "model", settings=replace(tiny_model.Settings(), steps=300))
    return folder


@pytest.mark.parametrize("cell", ["prime/clip_cov"])
def test_a_cell_trains(cell, toy, tmp_path):
    problem, steps = matrix.train_one(matrix.trained()[cell], tmp_path, toy)
    assert problem is None, problem
    for step in steps:
        assert step["actor/cov/tokens"] > 0
        assert step["actor/cov/selected_tokens"] > 0
        # The filter: every prompt that is trained on has an accuracy in PRIME's band, 2 to 6 right ones of 8.
        assert 2 / 8 <= step["critic/score/mean"] <= 6 / 8
        assert 0 < step["prime/prm_loss"] < 1
        assert step["prime/process_reward_abs"] > 0  # its mini-batches after the first come from a PRM that has learnt
        assert step["training/rollout_actor_probs_pearson_corr"] > 0.999
        assert step["actor/lr"] == 4e-4


def test_mathematics_and_code_from_prepared_data_to_the_average(tmp_path):
    """A base model's template, data as `verl-cov data prepare` writes it, both verifiers in verl's reward workers,
    sampled and greedy prompts in one validation. The model is untrained: nothing is right, so nothing is filtered."""
    data = tmp_path / "data"
    for name in ("gsm8k", "kodcode", "math500", "aime24", "amc", "olympiadbench", "omni_math", "eurus2_rl_code_test"):
        prepare(SETS[name], "sample", data)
    validation = ("math500", "aime24", "eurus2_rl_code_test")
    val_files = [f"{data}/{name}.parquet" for name in validation]
    selection = catalogue.parse(
        [
            *["llama3.1-8b", "on_policy", "reference_kl", "gsm8k"],
            f"actor_rollout_ref.model.path={save_untrained_model(tmp_path / 'model', positions=1024)}",
            f"data.train_files=[{data}/gsm8k.parquet,{data}/kodcode.parquet]",
            f"data.val_files=[{','.join(val_files)}]",
            "algorithm.filter_groups.enable=false",
            *["data.max_prompt_length=900", "data.max_response_length=24", "recipe.max_model_len=1024"],
            *["data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "trainer.test_freq=2"],
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
        ],
        scale="cpu",
    )
    problem, steps = matrix.train_one(selection, tmp_path, tmp_path, data=data)
    assert problem is None, problem
    for step in steps:
        assert step["actor/kl_loss"] >= 0
        assert step["critic/score/mean"] == 0
        assert step["actor/cov/tokens"] > 0
    last = steps[-1]
    problems = {name: pq.read_metadata(data / f"{name}.parquet").num_rows for name in validation}
    assert last["val-cov/generations"] == sum(problems.values())
    assert problems["aime24"] % 32 == 0
    assert last["val-cov/acc/sample_weighted"] == last["val-cov/acc/plain_mean"] == 0
    assert {f"val-core/{name}/acc/mean@1" for name in problems} <= last.keys()
    assert all(last[f"val-aux/{name}/extracted/mean@1"] == 0 for name in problems)  # our reward function's own key
    assert last["val-cov/entropy_generations"] == sum(problems.values())
    assert 0 < last["val-cov/entropy"] < math.log(264)
