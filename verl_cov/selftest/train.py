"""Level train (``--full``): verl's trainer with vLLM is killed and resumes, and vLLM gets each step's weights.

Starts ``verl-cov recipes run`` on the demo's KL-Cov run, in a folder of its own, and ends only processes of that run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from verl_cov.selftest import oracle
from verl_cov.selftest.machine import installed
from verl_cov.selftest.ranks import NotPossible, Rank

STEPS, RATIO = 3, 0.02
SEEN = 1e-3  # nats that an actor must move before one can say whether vLLM followed
POLICY_LOSS = "actor_rollout_ref.actor.policy_loss."
LINE = "import sys; from verl_cov.cli import main; main()"
HANGS_AFTER_S = 3000.0


def run(here: Rank) -> None:
    """All checks of this level; on one rank, since verl's trainer starts its own."""
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        here.check("train", "a training is killed and resumes", killed_and_resumed, here, at)
        if here.checks[-1].outcome == "passed":
            here.check("train", "the tokens of each step, before and after, are the oracle's", same_tokens, at)
            here.check("train", "each step's weights reached vLLM", weights_arrived, at)


def killed_and_resumed(here: Rank, folder: Path) -> str | None:
    if here.ranks > 1:
        raise NotPossible("under torchrun; without it, verl's trainer starts its own ranks")
    for package in ("verl", "vllm", "ray"):
        if not installed(package):
            raise NotPossible(f"{package} is not installed here")
    command = [sys.executable, "-c", LINE, "recipes", "run", "demo/kl_cov", "--steps", str(STEPS), "--runs", "runs"]
    command += [
        "--toy",
        str(Path(os.environ["VERL_COV_TOY"]).absolute()) if "VERL_COV_TOY" in os.environ else "toy",
        "--scale",
        "gpu1" if here.on_cuda else "cpu",
    ]
    command += ["trainer.save_freq=1", "trainer.test_freq=-1", "trainer.val_before_train=false"]
    loss = {"kl_cov_ratio": RATIO, "cov_dump_every": 1, "cov_dump_tokens": 1_000_000}
    command += [f"{POLICY_LOSS}{name}={value}" for name, value in loss.items()]
    with (folder / "first").open("w") as log:
        first = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            _kill_after_a_checkpoint(first, folder)
        finally:
            if first.poll() is None:
                first.send_signal(signal.SIGTERM)  # on which the runner ends what it started
                first.wait()
    if _checkpoint(folder) >= STEPS:
        return f"the training was through with its {STEPS} steps before it could be killed"
    again = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HANGS_AFTER_S
    )
    if again.returncode:
        return f"the resumed training ended with code {again.returncode}: {_last(again.stdout)}"
    if "resumes after step" not in again.stdout or _checkpoint(folder) != STEPS:
        return f"it did not go on to step {STEPS}: {_last(again.stdout)}"
    return None


def _kill_after_a_checkpoint(runner: subprocess.Popen[bytes], folder: Path) -> None:
    """Kills the trainer (SIGKILL, no farewell) once its first checkpoint is there."""
    deadline = time.monotonic() + HANGS_AFTER_S
    while not _checkpoint(folder):
        if runner.poll() is not None:
            said = _last((folder / "first").read_text())
            raise RuntimeError(f"the training ended with code {runner.returncode} before a checkpoint: {said}")
        if time.monotonic() > deadline:
            raise TimeoutError("no checkpoint")
        time.sleep(0.2)
    (lock,) = folder.glob("runs/**/.lock")
    os.killpg(int(lock.read_text().split()[-1]), signal.SIGKILL)  # of the training that the runner started
    runner.wait()


def _checkpoint(folder: Path) -> int:
    """The last checkpoint's step, 0 before there is one."""
    for file in folder.glob("runs/**/latest_checkpointed_iteration.txt"):
        with suppress(ValueError):
            return int(file.read_text())
    return 0


def _last(text: str) -> str:
    return " ".join(text.strip().splitlines()[-3:])


def same_tokens(folder: Path) -> str | None:
    """The dump has every token of each step's first mini-batch: numpy selects from it what the run selected."""
    from verl_cov.core import token_file

    (file,) = folder.glob(f"runs/**/{token_file.FILE}")
    dump = token_file.read(file)
    for step in range(1, STEPS + 1):
        tokens = [token for token in dump.tokens if token.step == step]
        if not tokens:
            return f"step {step} dumped no token"
        x, a = np.array([(token.log_prob, token.advantage) for token in tokens], dtype=np.float32).T
        cov = oracle.covariances(x, a, np.ones(len(tokens), dtype=bool))
        # By value: of tokens with equal covariances the dump does not say which the hash prefers.
        wanted = np.sort(cov)[::-1][: oracle.quota(RATIO, len(tokens))]
        found = np.sort(cov[[token.selected for token in tokens]])[::-1]
        if len(found) != len(wanted) or not np.allclose(found, wanted, rtol=1e-5, atol=1e-7):
            return f"step {step}: {len(found)} tokens selected, not the {len(wanted)} with the largest covariance"
    return None


def weights_arrived(folder: Path) -> str | None:
    """vLLM's log-probs of its own tokens against the actor's, in nats: much nearer than the actor moved in the step
    before, and so of the newest weights."""
    from verl_cov.law.readers import parse_line

    lines = [line for file in sorted(folder.glob("runs/**/0*.jsonl")) for line in file.read_bytes().splitlines()]
    steps: dict[int, Any] = dict(record for line in lines if (record := parse_line(line)) is not None)
    for step in range(2, STEPS + 1):
        apart, moved = abs(steps[step]["rollout_corr/k3_kl"]), steps[step - 1]["actor/ppo_kl"]
        if not moved > SEEN:
            return f"step {step - 1} moved the actor by {moved:.1e} nats: a vLLM that did not follow would not be seen"
        if not apart < moved / 10:
            return f"step {step}: vLLM is {apart:.1e} nats from the actor, which moved by {moved:.1e} before"
    return None
