"""Level train: what it says of the files that a training left, with tokens or weights that are wrong; a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from verl_cov.core import token_file
from verl_cov.selftest import result, train

ROOT = Path(__file__).parents[2]


def dump(folder: Path, steps: int = train.STEPS, wrong: int | None = None) -> Path:
    """What a run with KL-Cov dumps: every token of a mini-batch. wrong: a step that selects the next one instead."""
    random = np.random.default_rng(0)
    for step in range(1, steps + 1):
        count = 150
        log_prob, advantage = -random.exponential(1.0, count), random.normal(size=count)
        cov = (log_prob - log_prob.mean()) * (advantage - advantage.mean())
        tokens = []
        for rank, at in enumerate(np.argsort(-cov), 1):
            chosen = rank in ((1, 2, 4) if step == wrong else (1, 2, 3))  # floor(0.02 * 150)
            numbers = (float(cov[at]), float(log_prob[at]), float(advantage[at]))
            tokens.append(token_file.Token(step, rank, *numbers, "exploit", chosen, "t", 1, "", "", 0, 4, "p"))
        token_file.append(folder / "runs" / "demo" / token_file.FILE, tokens)
    return folder


def test_the_tokens_of_each_step_are_compared(tmp_path):
    assert train.same_tokens(dump(tmp_path / "right")) is None
    cause = train.same_tokens(dump(tmp_path / "wrong", wrong=2))
    assert cause is not None
    assert cause.startswith("step 2: 3 tokens selected, not the 3 with the largest covariance")
    assert train.same_tokens(dump(tmp_path / "short", steps=2)) == "step 3 dumped no token"
    fewer = tmp_path / "right" / "runs" / "demo" / token_file.FILE
    tokens = [replace(token, selected=token.selected and token.rank < 3) for token in token_file.read(fewer).tokens]
    fewer.unlink()
    token_file.append(fewer, tokens)
    assert "step 1: 2 tokens selected, not the 3" in str(train.same_tokens(tmp_path / "right"))


@pytest.mark.parametrize(
    ("apart", "moved", "words"),
    [
        (1e-6, 0.1, None),
        (-1e-6, 0.1, None),
        (0.1, 0.1, "step 2: vLLM is 1.0e-01 nats from the actor"),
        (float("nan"), 0.1, "step 2: vLLM is nan nats"),
        (1e-6, 1e-6, "step 1 moved the actor by 1.0e-06 nats:"),
    ],
)
def test_weights_that_stay_behind_are_seen(tmp_path, apart, moved, words):
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    for segment, steps in (("001", (1,)), ("002", (2, 3))):  # as after a kill
        lines = [{"step": step, "data": {"rollout_corr/k3_kl": apart, "actor/ppo_kl": moved}} for step in steps]
        (folder / f"{segment}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = train.weights_arrived(tmp_path)
    assert found is None if words is None else str(found).startswith(words)


@pytest.mark.e2e
@pytest.mark.nightly
def test_a_training_is_killed_resumes_and_both_parts_are_compared(tmp_path):
    file = tmp_path / "result.json"
    command = [sys.executable, "-m", "verl_cov.selftest", "--device", "cpu", "--levels", "train", "-o", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=9000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [check["outcome"] for check in result.read(file)["checks"]] == ["passed"] * 3
