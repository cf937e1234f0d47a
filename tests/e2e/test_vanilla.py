"""A vanilla training is the same, bit for bit, with and without the package."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.e2e.test_training import train

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

# Python runs a module of this name in every process: the driver then writes which threads it had at its end.
SITECUSTOMIZE = """
import atexit, os, sys, threading
def note():
    with open(os.environ["THREADS"], "a") as file:
        file.write(repr([thread.name for thread in threading.enumerate()]) + "\\n")
if "verl.trainer.main_ppo" in sys.orig_argv:
    atexit.register(note)
"""
# verl's legacy trainer keeps its rollouts in order, and the likeliest token leaves no draw to the timing of requests.
# The advantage compares prompts, because the responses to one are then alike.
VANILLA = (
    "+verl_cov=cpu",
    "trainer.logger=[console,file]",
    "algorithm.adv_estimator=reinforce_plus_plus",
    "trainer.use_v1=false",
    "actor_rollout_ref.rollout.temperature=1.0",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "data.max_prompt_length=16",
    "data.max_response_length=8",
    "actor_rollout_ref.rollout.max_model_len=32",
    "actor_rollout_ref.rollout.top_k=1",
    "data.shuffle=false",
    "trainer.total_training_steps=2",
    "trainer.save_freq=2",
)


def measured(steps: list[dict]) -> list[dict]:
    """What does not depend on the clock or on the machine's memory."""
    return [{key: value for key, value in step.items() if not ("timing" in key or "perf/" in key)} for step in steps]


def test_two_vanilla_steps_are_the_same_with_and_without_the_package(untrained_model, tmp_path):
    root = Path(__file__).parents[2]
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    runs = {}
    for name, plugins in {
        "with": {},
        # Of ours only the CPU platform, without which verl does not train here.
        "without": {"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_USE_EXTERNAL_MODULES": "tests.hooks.cpu_alone"},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        environment = {"THREADS": str(folder / "threads"), "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
        runs[name] = train(folder, untrained_model, *VANILLA, segment="vanilla", active=False, **environment, **plugins)
        assert "verl-cov" not in (folder / "threads").read_text()
    assert [step["step"] for step in runs["with"]] == [1, 2]
    assert all(step["actor/grad_norm"] > 0 for step in runs["with"])
    assert json.dumps(measured(runs["with"])) == json.dumps(measured(runs["without"]))
    assert not list((tmp_path / "with").rglob("verl_cov.json"))  # nothing of ours in the checkpoint
