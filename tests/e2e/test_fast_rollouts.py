"""Fast rollouts give a training what verl's own way gives it, with the real vLLM and the likeliest token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.test_training import train
from tests.e2e.test_vanilla import VANILLA, measured
from verl_cov.hooks.cpu import fast_rollouts, warm_start

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

WAYS = {"fast": "1", "own": "0"}
# Of a V1 training the order of the responses, and so the split into mini-batches, is that of their ends.
GREEDY_VALIDATION = (
    *VANILLA,
    "trainer.use_v1=true",
    "trainer.val_only=true",
    "trainer.val_before_train=true",
    "actor_rollout_ref.rollout.val_kwargs.do_sample=false",
    "actor_rollout_ref.rollout.val_kwargs.temperature=0",
    "data.val_max_samples=48",
)


def run(folder: Path, model: Path, way: str, *overrides: str) -> list[dict]:
    folder.mkdir()
    switches = dict.fromkeys((fast_rollouts.SWITCH, warm_start.SWITCH), WAYS[way])
    return train(folder, model, *overrides, segment=way, active=False, **switches)


def test_two_steps_of_the_legacy_trainer_are_the_same(untrained_model, tmp_path):
    steps = {way: measured(run(tmp_path / way, untrained_model, way, *VANILLA)) for way in WAYS}
    assert [step["step"] for step in steps["fast"]] == [1, 2]
    assert all(step["actor/grad_norm"] > 0 for step in steps["fast"])
    assert json.dumps(steps["fast"]) == json.dumps(steps["own"])


def test_a_validation_of_the_v1_trainer_is_the_same(untrained_model, tmp_path):
    answers = {}
    for way in WAYS:
        dump = tmp_path / f"{way}-dump"
        run(tmp_path / way, untrained_model, way, *GREEDY_VALIDATION, f"trainer.validation_data_dir={dump}")
        rows = [json.loads(line) for path in dump.glob("*.jsonl") for line in path.read_text().splitlines()]
        answers[way] = sorted((row["input"], row["output"], row["score"]) for row in rows)
    assert len(answers["fast"]) == 48
    assert len({output for _, output, _ in answers["fast"]}) > 1
    assert answers["fast"] == answers["own"]
