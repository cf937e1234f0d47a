"""verl's own trainers with the real vLLM on this CPU: our loss runs, weights reach vLLM, checkpoints resume."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verl_cov.core import token_file
from verl_cov.core.metric_table import LADDER
from verl_cov.core.update_kinds import UPDATE_KINDS
from verl_cov.selftest.batches import save_untrained_model
from verl_cov.tasks import countdown
from verl_cov.tasks.tiny_model.byte_tokenizer import PAD

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return float(sum(solution_str.encode()) % 2)  # half of what a random model says is right
"""


def train(
    folder: Path,
    model: Path,
    *overrides: str,
    segment: str,
    kill_at: int | None = None,
    active: bool = True,
    **environment: str,
) -> list[dict[str, Any]]:
    """Run the trainer to its end in ``folder``; its metrics, one dictionary a step.

    kill_at: kill it (SIGKILL, no farewell) once a checkpoint of this step, or a later one, and its metrics are there.
    active: whether the run asks for verl-cov; if not, nothing of ours may be printed.
    """
    train_file, validation_file = countdown.write_parquet(folder / "data")
    reward = folder / "reward.py"
    reward.write_text(REWARD)
    metrics = folder / f"{segment}.jsonl"
    latest = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    command = [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        f"actor_rollout_ref.model.path={model}",
        f"data.train_files={train_file}",
        f"data.val_files={validation_file}",
        f"reward.custom_reward_function.path={reward}",
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        "actor_rollout_ref.actor.optim.lr=2e-3",  # so that a vLLM with stale weights would be seen at once
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "data.train_batch_size=8",
        "data.val_max_samples=8",
        "trainer.test_freq=2",
        "trainer.val_before_train=false",
        "trainer.resume_mode=auto",
        *overrides,  # last: they count
    ]
    environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics), "RAY_ADDRESS": "local", **environment}
    killed = False
    with (folder / f"{segment}.log").open("w+") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        deadline = time.monotonic() + 3000  # only to end a hang: a busy machine takes many times as long
        try:
            while process.poll() is None and not killed:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{segment} hangs")
                time.sleep(0.2)
                # A checkpoint is written before its step is logged.
                saved = kill_at is not None and latest.is_file() and int(latest.read_text() or 0) >= kill_at
                killed = saved and metrics.read_text().count("\n") >= int(latest.read_text() or 0)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        log.seek(0)
        text = log.read()
    assert killed or (code == 0 and kill_at is None), text[-5000:]
    assert ("is active: " in text) is active
    assert active or "verl-cov" not in text
    lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line)["data"] | {"step": json.loads(line)["step"]} for line in lines]


def check(step: dict, selected: bool = True, apart: float = 1e-3) -> None:
    """apart: bound on the mean difference between vLLM's probabilities and the actor's."""
    assert step["actor/cov/tokens"] > 0
    assert (step.get("actor/cov/selected_tokens", 0) > 0) is selected
    assert sum(step[f"actor/cov/{kind}_frac"] for kind in UPDATE_KINDS) == pytest.approx(1)
    # The paper's entropy weights responses alike, verl's weights tokens alike: here they differ by a few per cent.
    assert step["actor/cov/entropy"] == pytest.approx(step["actor/entropy"], rel=0.1)
    assert step["actor/cov/prompts"] > 0
    assert step["actor/cov/non_finite_tokens"] == 0
    # vLLM's log-probs of its own tokens against the actor's: equal up to rounding only if it has the actor's weights.
    assert step["training/rollout_actor_probs_pearson_corr"] > 0.999
    assert step["training/rollout_probs_diff_mean"] < apart
    assert step["actor/entropy"] > 0


PRIME = (
    "+verl_cov=prime",
    "prime.optim.lr=2e-3",
    "prime.mini_batch_size=${data.train_batch_size}",  # one update a rollout: the first has the PRM as it starts
    "algorithm.filter_groups.metric=reward",
)


def check_first_of_prime(step: dict) -> None:
    """PRM, policy and reference start from the same weights: the PRM says exactly nothing, and its loss is ln 2."""
    assert step["prime/process_reward_abs"] == 0
    assert step["prime/prm_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert step["prime/prm_grad_norm"] > 0
    assert 0.2 < step["prime/outcome"] < 0.8  # each prompt's is in the band
    assert step["prime/pairs"] > 0
    assert step["prime/pairwise_accuracy"] == step["prime/outcome_accuracy"] == 0.5
    assert step["prime/uncompared_responses"] == 0


def test_prime_with_kl_cov_trains_is_killed_and_goes_on(untrained_model, tmp_path):
    # The knob is twice or half the rollout before's.
    target = ("+verl_cov=[prime,target]", *PRIME[1:], "target.target_entropy=1.0", "target.rule=double_half")
    first = train(
        tmp_path,
        untrained_model,
        "+experiment=demo",
        "recipe/entropy=kl_cov",
        *target,
        "trainer.total_training_steps=1000",
        "trainer.save_freq=2",
        segment="first",
        kill_at=2,
    )
    assert [step["step"] for step in first[:2]] == [1, 2]
    for step in first[:2]:
        check(step)
    check_first_of_prime(first[0])
    assert first[1]["prime/process_reward_abs"] > 0
    checkpoints = tmp_path / "checkpoints"
    at = int((checkpoints / "latest_checkpointed_iteration.txt").read_text())
    assert (checkpoints / f"global_step_{at}" / "actor" / "verl_cov.json").is_file()
    assert (checkpoints / f"global_step_{at}" / "prm").is_dir()
    second = train(
        tmp_path,
        untrained_model,
        "+experiment=demo",
        "recipe/entropy=kl_cov",
        *target,
        f"trainer.total_training_steps={at + 1}",
        "trainer.save_freq=-1",
        "trainer.test_freq=1",
        segment="second",
    )
    assert [step["step"] for step in second] == [at + 1]
    check(second[0])
    # A PRM that had lost what it learnt would give exactly 0 again: the rewards are of before this step's update.
    assert second[0]["prime/process_reward_abs"] > 0
    # The comparison of entropies goes on across the resumption.
    change = second[0]["actor/cov/entropy"] - first[at - 1]["actor/cov/entropy"]
    assert second[0]["actor/cov/entropy_change"] == pytest.approx(change)
    assert any(key.startswith("val-core/") for key in second[0])
    assert first[at - 1]["actor/cov/target"] == second[0]["actor/cov/target"] == 1
    times = 2 if second[0]["actor/cov/target_measured"] < 1 else 0.5
    assert second[0]["actor/cov/knob"] == times * first[at - 1]["actor/cov/knob"]


@pytest.mark.parametrize("v1", [True, False], ids=["V1 trainer, PRIME", "legacy trainer"])
def test_two_data_parallel_ranks_with_clip_cov(untrained_model, tmp_path, v1):
    steps = train(
        tmp_path,
        untrained_model,
        "+experiment=demo",
        "recipe/entropy=clip_cov",
        *(PRIME if v1 else ()),
        "actor_rollout_ref.actor.policy_loss.clip_cov_lb=0.01",
        f"trainer.use_v1={v1}",
        "trainer.n_gpus_per_node=2",
        "trainer.total_training_steps=2",
        "trainer.save_freq=-1",
        segment="ranks",
    )
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        check(step)
    if v1:
        check_first_of_prime(steps[0])


def test_a_head_that_is_tied_to_the_embedding_reaches_vllm(tmp_path):
    """A Llama as SmolLM2 is: verl sends one weight for both, and vLLM uses it in both places after each update."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = save_untrained_model(tmp_path / "model")
    torch.manual_seed(0)
    config = json.loads((model / "config.json").read_text())
    sizes = {key: config[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    heads = {key: config[key] for key in ("num_attention_heads", "eos_token_id", "pad_token_id")}
    tied = LlamaForCausalLM(
        LlamaConfig(**sizes, **heads, max_position_embeddings=128, bos_token_id=None, tie_word_embeddings=True)
    )
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    tied.save_pretrained(model)
    steps = train(
        tmp_path, model, "+experiment=demo", "recipe/entropy=kl_cov", "trainer.total_training_steps=3", segment="tied"
    )
    assert len(steps) == 3
    for step in steps:
        check(step)
    assert abs(steps[-1]["actor/entropy"] - steps[0]["actor/entropy"]) > 1e-3  # the weights did change


def test_metrics_of_verls_own_loss_on_the_legacy_trainer(untrained_model, tmp_path):
    steps = train(
        tmp_path,
        untrained_model,
        "+experiment=demo",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",  # one update a rollout: what is logged is one mini-batch's
        "actor_rollout_ref.actor.policy_loss.cov_dump_every=2",
        "actor_rollout_ref.actor.policy_loss.cov_dump_tokens=100000",
        "trainer.use_v1=false",
        "trainer.total_training_steps=3",
        "trainer.save_freq=-1",
        segment="vanilla",
    )
    for step in steps:
        check(step, selected=False)
    changes = [step.get("actor/cov/entropy_change") for step in steps]
    assert changes[0] is None
    assert changes[1] == pytest.approx(steps[1]["actor/cov/entropy"] - steps[0]["actor/cov/entropy"])

    dump = token_file.read(tmp_path / "checkpoints" / "cov" / token_file.FILE)
    assert dump.damaged == 0
    assert {token.step for token in dump.tokens} == {2}
    # Prompt and response, no padding before them. (An untrained model may say <|assistant|> itself.)
    assert all("<|assistant|>" in token.before and not token.before.startswith(PAD) for token in dump.tokens)
    logged = {key.removeprefix("actor/cov/"): value for key, value in steps[1].items()}
    assert len(dump.tokens) == logged["tokens"]
    x, a = np.array([(token.log_prob, token.advantage) for token in dump.tokens]).T
    largest = np.sort((x - x.mean()) * (a - a.mean()))[::-1]
    assert logged["mean"] == pytest.approx(largest.mean(), abs=1e-6)
    for share in LADDER:
        assert logged[f"top_{share:g}"] == pytest.approx(largest[: max(1, int(share * x.size))].mean(), rel=1e-5)
    for kind in UPDATE_KINDS:
        assert logged[f"{kind}_frac"] == pytest.approx(np.mean([token.kind == kind for token in dump.tokens]))
