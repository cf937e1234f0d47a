"""One training with everything an evaluation needs: sampled and greedy prompts in one validation, the averages, pass@k
and the greedy accuracy, the entropy of the generations, and the filter of prompts that teach nothing."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from tests.e2e.test_training import check, train

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

# The accuracy is what the filter and the averages go by; the training reward is something else. Every other training
# prompt is too hard for anyone. Saying nothing is wrong: were it right, two steps of training would teach just that.
REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    right = data_source != "impossible" and sum(solution_str.encode()) % 2 == 1
    return {"score": 0.25 + 0.5 * right, "acc": float(right)}
"""

COPIES = {"sampled": (1.0, 3), "greedy": (0.0, 2), "as configured": (None, 2)}  # temperature, rows of each prompt
PROMPTS, SAMPLES = 2, 2  # of each set; of each row
GENERATIONS = SAMPLES * PROMPTS * sum(copies for _, copies in COPIES.values())
MEASURED = 20

ROW = pyarrow.schema(
    [
        ("data_source", pyarrow.string()),
        ("prompt", pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))),
        ("reward_model", pyarrow.struct([("style", pyarrow.string()), ("ground_truth", pyarrow.string())])),
        (
            "extra_info",
            pyarrow.struct(
                [("split", pyarrow.string()), ("index", pyarrow.int64()), ("temperature", pyarrow.float64())]
            ),
        ),
    ]
)


def row(source: str, question: str, split: str, index: int, temperature: float | None = None) -> dict:
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": question},
        "extra_info": {"split": split, "index": index, "temperature": temperature},
    }


def write(folder: Path) -> tuple[Path, Path]:
    training = [row("possible" if at % 2 else "impossible", f"{at}:{at}", "train", at) for at in range(64)]
    validation = [
        row(source, f"{prompt}:{source[:4]}", "test", 100 * prompt + copy, temperature)
        for source, (temperature, copies) in COPIES.items()
        for prompt in range(PROMPTS)
        for copy in range(copies)
    ]
    paths = folder / "training.parquet", folder / "validation.parquet"
    for path, rows in zip(paths, (training, validation), strict=True):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=ROW), path)
    return paths


@pytest.fixture(scope="module")
def model(untrained_model, tmp_path_factory) -> Path:
    """The untrained model with larger logits, so that the temperature matters: 4.8 nats at 1, 4.0 at 0.7."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("larger")
    AutoTokenizer.from_pretrained(untrained_model).save_pretrained(folder)
    made = AutoModelForCausalLM.from_pretrained(untrained_model)
    with torch.no_grad():
        made.lm_head.weight *= 8
    made.save_pretrained(folder)
    return folder


def entropy_of(model: Path, temperature: float) -> float:
    """Mean entropy over random contexts, nats."""
    from transformers import AutoModelForCausalLM

    logits = AutoModelForCausalLM.from_pretrained(model)(torch.randint(0, 256, (64, 24))).logits / temperature
    return torch.distributions.Categorical(logits=logits.float()).entropy().mean().item()


def test_a_validation_of_sampled_and_greedy_prompts_and_a_filtered_training(model, tmp_path):
    training, validation = write(tmp_path)
    reward = tmp_path / "rewards.py"
    reward.write_text(REWARD)
    steps = train(
        tmp_path,
        model,
        "+experiment=demo",
        "recipe/entropy=kl_cov",
        "actor_rollout_ref.rollout.agent.default_agent_loop=verl_cov.single_turn",
        "actor_rollout_ref.rollout.temperature=0.7",
        "actor_rollout_ref.rollout.val_kwargs.temperature=0.7",
        f"actor_rollout_ref.rollout.val_kwargs.n={SAMPLES}",
        f"actor_rollout_ref.actor.policy_loss.cov_val_entropy={MEASURED}",
        f"actor_rollout_ref.actor.policy_loss.cov_val_pass_at=[1,{SAMPLES}]",
        "actor_rollout_ref.actor.policy_loss.cov_val_greedy=true",
        "algorithm.filter_groups.enable=true",
        "algorithm.filter_groups.metric=acc",
        "algorithm.filter_groups.max_num_gen_batches=10",
        f"data.train_files={training}",
        f"data.val_files={validation}",
        "data.val_max_samples=-1",
        f"reward.custom_reward_function.path={reward}",
        "trainer.val_before_train=true",
        f"trainer.validation_data_dir={tmp_path / 'validation'}",
        "trainer.total_training_steps=2",
        "trainer.save_freq=-1",
        segment="evaluation",
    )
    assert [step["step"] for step in steps] == [0, 1, 2]
    for step in steps[1:]:
        # The larger logits enlarge whatever keeps the two apart, as much as bfloat16 would, although both say float32:
        # 2e-4 to 9e-3 was seen. The correlation is what tells stale weights.
        check(step, apart=0.05)
    for step in (steps[0], steps[2]):
        outputs = check_validation(step, tmp_path / "validation" / f"{step['step']}.jsonl")
        assert {len(set(of_prompt)) for source, of_prompt in outputs if source == "greedy"} == {1}
        if step is steps[0]:  # after training, a prompt's samples may agree
            assert min(len(set(of_prompt)) for source, of_prompt in outputs if source != "greedy") > 1
    # Before training the model is known: the entropy is its at temperature 1, not at the 0.7 of the configuration.
    at_1, at_07 = (entropy_of(model, temperature) for temperature in (1.0, 0.7))
    assert at_07 < 0.9 * at_1
    assert steps[0]["val-cov/entropy"] == pytest.approx(at_1, rel=0.05)
    assert steps[1]["actor/cov/entropy"] == pytest.approx(at_07, rel=0.05)
    # The filter: only possible prompts are trained on, with rewards of both kinds.
    evicted = [step.get("training/filter_groups/evicted_samples", 0) for step in steps[1:]]
    assert sum(evicted) > 0
    for step in steps[1:]:
        assert (step["critic/score/min"], step["critic/score/max"]) == (0.25, 0.75)
        assert step["actor/cov/prompts"] == 8


def check_validation(metrics: dict, dump: Path) -> list[tuple[str, list[str]]]:
    """The numbers of one validation against the generations it wrote; returns every prompt's set and outputs."""
    rows = [
        json.loads(line) for line in dump.read_text().split("\n") if line
    ]  # no splitlines: text holds any character
    assert len(rows) == GENERATIONS
    answers = defaultdict(list)
    for found in rows:
        answers[found["gts"]].append(found["output"])
    assert len(answers) == PROMPTS * len(COPIES)
    by_prompt = [
        (next(name for name in COPIES if name[:4] == question.split(":")[1]), outputs)
        for question, outputs in answers.items()
    ]
    for source, outputs in by_prompt:
        assert len(outputs) == SAMPLES * COPIES[source][1]

    accuracy = {source: [found["acc"] for found in rows if found["gts"].endswith(source[:4])] for source in COPIES}
    every = [value for values in accuracy.values() for value in values]
    means = {source: sum(values) / len(values) for source, values in accuracy.items()}
    assert metrics["val-cov/acc/sample_weighted"] == pytest.approx(sum(every) / len(every))
    assert metrics["val-cov/acc/plain_mean"] == pytest.approx(sum(means.values()) / len(means))
    assert metrics["val-cov/generations"] == GENERATIONS
    for source, mean in means.items():
        assert metrics[f"val-core/{source}/acc/mean@{SAMPLES}"] == pytest.approx(mean)

    samples = defaultdict(list)  # of each row
    for found in rows:
        samples[found["gts"], found["uid"].split("_")[0]].append(found["acc"])
    assert {len(of_row) for of_row in samples.values()} == {SAMPLES}
    for source, mean in means.items():
        some = [any(of_row) for (question, _), of_row in samples.items() if question.endswith(source[:4])]
        assert metrics[f"val-cov/pass@1/{source}"] == pytest.approx(mean)
        assert metrics[f"val-cov/pass@{SAMPLES}/{source}"] == pytest.approx(sum(some) / len(some))
        assert metrics[f"val-cov/greedy/{source}"] in [count / PROMPTS for count in range(PROMPTS + 1)]
    # The one greedy response more is the one that the rows at temperature 0 have given.
    assert metrics["val-cov/greedy/greedy"] == pytest.approx(means["greedy"])
    assert metrics["val-cov/greedy"] == pytest.approx(sum(metrics[f"val-cov/greedy/{name}"] for name in COPIES) / 3)

    assert metrics["val-cov/entropy_generations"] == MEASURED
    assert metrics["val-cov/entropy_seconds"] > 0
    of_sets = [metrics[f"val-cov/entropy/{source}"] for source in COPIES]
    assert min(of_sets) <= metrics["val-cov/entropy"] <= max(of_sets)
    return by_prompt
