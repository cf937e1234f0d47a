"""Recipes train: cells of the matrix, from an experiment of the paper by overriding nothing but model, task and scale.

All 40 run by `python -m recipes.matrix train`, which takes the better part of an hour; recipes/ran.json holds that they
did, as they are now (tests/recipes/test_matrix.py). Here one of them is run, stopped and resumed by `verl-cov recipes
run`; the other training is on mathematics and code instead of the toy, strictly on-policy, with a reference policy.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recipes import matrix
from verl_cov.law.readers import read_metrics
from verl_cov.recipes import catalogue
from verl_cov.recipes.train import session_members
from verl_cov.selftest.batches import save_untrained_model
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


# The toy's folder is the fixture's: `recipes run` itself would teach the tiny model for another minute.
COMMAND = (
    "from verl_cov.cli import main; from verl_cov.recipes import plan; plan.make_toy = lambda *start: None; main()"
)


def test_a_cell_is_run_stopped_and_resumed(toy, tmp_path):
    """`verl-cov recipes run` of one cell: progress, Ctrl-C, the same command again, and once more when all is done."""
    folder = tmp_path / "runs" / "cell"
    swap = ["recipe/algorithm=prime", "recipe/entropy=clip_cov", "recipe/model=tiny", "recipe/task=toy"]
    words = ["sec4-7b/none", *swap, "recipe/scale=cpu", "recipe.name=cell", "--steps", "3", "--skip-finished"]
    words += ["trainer.save_freq=1", "trainer.val_before_train=false", "--toy", toy, "--runs", tmp_path / "runs"]
    command = [sys.executable, "-c", COMMAND, "recipes", "run", *map(str, words)]

    with (tmp_path / "printed").open("w+") as printed:
        runner = subprocess.Popen(
            command,
            stdout=printed,
            stderr=subprocess.STDOUT,
            # A suite that a script started in the background ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 3000
        while "cell 1/3  entropy " not in (tmp_path / "printed").read_text():
            assert runner.poll() is None, (tmp_path / "printed").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        session = int((folder / ".lock").read_text().split()[-1])
        assert len(session_members(session)) > 5  # Ray's and vLLM's too
        runner.send_signal(signal.SIGINT)
        assert runner.wait(600) == 130
        assert not session_members(session)
    text = (tmp_path / "printed").read_text()
    assert "cell: starting vLLM" in text
    assert "Stopped. Nothing is lost: the same command resumes." in text
    first = (folder / "001.jsonl").read_bytes()
    log = (folder / "train.log").read_bytes()

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cell resumes after step " in done.stdout
    assert "cell 3/3  entropy " in done.stdout
    assert ["cell", "3"] in [line.split()[:2] for line in done.stdout.splitlines()]  # the table of results
    assert (folder / "001.jsonl").read_bytes() == first
    assert (folder / "train.log").read_bytes().startswith(log)
    assert not session_members(int((folder / ".lock").read_text().split()[-1]))

    steps = read_metrics([folder / "001.jsonl", folder / "002.jsonl"])
    assert steps.steps.tolist() == [1, 2, 3]
    resumed = read_metrics(folder / "002.jsonl").steps
    assert resumed[0] > 1
    # The filter: every prompt that is trained on has an accuracy in PRIME's band, 2 to 6 right ones of 8.
    assert np.all((steps.column("critic/score/mean") >= 2 / 8) & (steps.column("critic/score/mean") <= 6 / 8))
    assert np.all((steps.column("prime/prm_loss") > 0) & (steps.column("prime/prm_loss") < 1))
    # Its mini-batches after the first come from a PRM that has learnt.
    for key in ("actor/cov/tokens", "actor/cov/selected_tokens", "prime/process_reward_abs"):
        assert np.all(steps.column(key) > 0), key
    assert np.all(steps.column("training/rollout_actor_probs_pearson_corr") > 0.999)
    assert np.all(steps.column("actor/lr") == 4e-4)

    before = sorted(folder.rglob("*"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert "cell is finished: 3 steps" in done.stdout
    assert sorted(folder.rglob("*")) == before


@pytest.mark.nightly
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
