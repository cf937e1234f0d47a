"""``python -m benchmarks.micro_batches``: how many tokens are selected when only the micro-batch size changes.

Prints the table at the head of README.md. verl's own ``kl_cov`` and ``clip_cov`` and ours train the same mini-batches
through verl's FSDP2 actor worker, cut into micro-batches of several sizes. What a loss selected is read off its
gradient, for verl's losses and ours alike: a selected token's differs from that of the same loss without a control.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

RESPONSES, GROUP, PROMPT, LENGTHS = 256, 8, 8, (32, 160)
WHOLE = 2 * RESPONSES  # the mini-batch in one piece: what the others, one piece again among them, are compared with
MICRO_BATCHES = (RESPONSES, 64, 16, 4, 1)
SEEDS = (0, 1, 2)
PAPER = dict(kl_cov_ratio=2e-3, ppo_kl_coef=1.0, clip_cov_ratio=2e-4, clip_cov_lb=1.0, clip_cov_ub=5.0)
LOSSES = ("kl_cov", "verl_cov.kl_cov", "clip_cov", "verl_cov.clip_cov")
Tokens = set[tuple[int, int]]  # (response, position in it)


def main() -> None:
    """Measure and print the table."""
    from benchmarks.timing import table
    from verl_cov.selftest.batches import save_untrained_model

    with tempfile.TemporaryDirectory() as folder:
        model = save_untrained_model(Path(folder) / "model", positions=PROMPT + LENGTHS[1])
        _spread_probabilities(model)
        worker = _actor_worker(model, folder)
        batches = [_mini_batch(model, seed) for seed in SEEDS]
        selected = {
            (loss, seed, micro): _selected_tokens(worker, loss, batch, micro)
            for seed, batch in zip(SEEDS, batches, strict=True)
            for loss in LOSSES
            for micro in (WHOLE, *MICRO_BATCHES)
        }
    tokens = [sum(len(row["response"]) for row in batch) for batch in batches]
    print(
        f"{RESPONSES} responses, {min(tokens):,} to {max(tokens):,} tokens; mean of {len(SEEDS)} mini-batches (range)\n"
    )
    header = ["micro-batch", *(f"`{loss}`" for loss in LOSSES)]
    print(table(header, [[str(micro), *(_cell(selected, loss, micro) for loss in LOSSES)] for micro in MICRO_BATCHES]))


def _cell(selected: dict[tuple[str, int, int], Tokens], loss: str, micro: int) -> str:
    """Number of tokens, and the share of the whole mini-batch's tokens that are among them."""
    counts, shares = [], []
    for seed in SEEDS:
        whole, chosen = selected[loss, seed, WHOLE], selected[loss, seed, micro]
        counts.append(len(chosen))
        shares.append(100 * len(chosen & whole) / len(whole))
    mean = [sum(values) / len(values) for values in (counts, shares)]
    return f"{mean[0]:.0f} ({min(counts)}-{max(counts)}); {mean[1]:.0f} % ({min(shares):.0f}-{max(shares):.0f})"


def _spread_probabilities(model: Path) -> None:
    """Make the untrained model's tokens as unequally likely as a language model's are."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model)
    network.lm_head.weight.data *= 12
    network.save_pretrained(model)


def _mini_batch(model: Path, seed: int) -> list[dict[str, Any]]:
    """Responses that the model sampled to 32 prompts, in random order, with GRPO's advantages of right and wrong
    answers and the log-probs of a rollout policy that differs by 0.05 nats a token."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model)
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    prompts = np.repeat(random.integers(0, 200, (RESPONSES // GROUP, PROMPT)), GROUP, axis=0)
    with torch.no_grad():
        whole = network.generate(
            torch.from_numpy(prompts), max_new_tokens=LENGTHS[1], min_new_tokens=LENGTHS[1], do_sample=True, top_k=0
        )
        log_probs = torch.cat([_log_probs(network, part) for part in whole.split(16)]).numpy()
    right = random.random((RESPONSES // GROUP, GROUP)) < random.random((RESPONSES // GROUP, 1))
    advantages = ((right - right.mean(1, keepdims=True)) / (right.std(1, ddof=1, keepdims=True) + 1e-6)).ravel()
    rows = []
    for index in random.permutation(RESPONSES):
        length = random.integers(LENGTHS[0], LENGTHS[1] + 1)
        old = log_probs[index, :length] + random.normal(0, 0.05, length)
        rows.append(
            dict(
                prompt=prompts[index],
                response=whole[index, PROMPT : PROMPT + length].numpy(),
                mask=np.ones(length, dtype=np.int64),
                old_log_prob=old.astype(np.float32),
                advantage=np.full(length, advantages[index], dtype=np.float32),
            )
        )
    return rows


def _log_probs(network: Any, ids: Any) -> Any:
    """[rows, response] log-probs, in nats."""
    logits = network(ids).logits[:, PROMPT - 1 : -1].log_softmax(-1)
    return logits.gather(2, ids[:, PROMPT:, None])[..., 0]


def _actor_worker(model: Path, folder: str) -> Any:
    """verl's actor worker on one CPU process, with an FSDP2 engine."""
    os.environ |= {"VERL_PLATFORM": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "DIST_INIT_METHOD": f"file://{folder}/store"}
    import verl  # noqa: F401  (loads the plugin)
    from omegaconf import OmegaConf
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from tests.hooks import engine, test_invariance

    config = engine.compose(test_invariance.WIDE, str(model))
    OmegaConf.resolve(config)
    worker = ActorRolloutRefWorker(config=config.actor_rollout_ref, role="actor")
    worker.init_model()
    return worker


def _selected_tokens(worker: Any, loss: str, rows: list[dict[str, Any]], micro_batch: int) -> Tokens:
    """The tokens on which ``loss`` acted in one optimizer step (at learning rate 0) on ``rows``."""
    from verl.trainer.ppo import core_algos
    from verl.utils import tensordict_utils as tu

    from tests.hooks import engine
    from verl_cov.hooks.worker_state import WorkerState

    worker.actor._verl_cov = WorkerState()  # each time the first optimizer step of the same rollout
    engine.set_policy_loss(worker, {"loss_mode": loss, **PAPER})
    original = core_algos.POLICY_LOSS_REGISTRY[loss]
    selected: Tokens = set()
    first_row = 0

    def read_off(old_log_prob: Any, log_prob: Any, advantages: Any, response_mask: Any, **others: Any) -> Any:
        nonlocal first_row
        inputs = dict(old_log_prob=old_log_prob, advantages=advantages, response_mask=response_mask, **others)
        result = original(log_prob=log_prob, **inputs)
        marks = _differs_from_plain_loss(core_algos, result[0], log_prob, inputs)
        selected.update((first_row + row, at) for row, at in marks.nonzero().tolist())
        first_row += len(marks)
        return result

    data = engine.to_tensordict(rows, dense=False)
    tu.assign_non_tensor(data, mini_batch_size=RESPONSES, global_batch_size=RESPONSES, epochs=1, temperature=1.0)
    tu.assign_non_tensor(data, calculate_entropy=False, global_steps=1, use_dynamic_bsz=False, use_remove_padding=False)
    tu.assign_non_tensor(data, max_token_len_per_gpu=None, micro_batch_size_per_gpu=min(micro_batch, RESPONSES))
    core_algos.POLICY_LOSS_REGISTRY[loss] = read_off
    try:
        worker.update_actor(data)
    finally:
        core_algos.POLICY_LOSS_REGISTRY[loss] = original
    return selected


def _differs_from_plain_loss(core_algos: Any, loss: Any, log_prob: Any, inputs: dict[str, Any]) -> Any:
    """[rows, positions] bool: where the gradient of ``loss`` is not that of the unclipped surrogate, -A pi / pi_old."""
    import torch

    plain = core_algos.agg_loss(
        loss_mat=-inputs["advantages"] * (log_prob - inputs["old_log_prob"]).exp(),
        loss_mask=inputs["response_mask"],
        loss_agg_mode=inputs["loss_agg_mode"],
        **inputs["config"].global_batch_info,
    )
    gradient, expected = (torch.autograd.grad(x, log_prob, retain_graph=True)[0] for x in (loss, plain))
    return ~torch.isclose(gradient, expected, rtol=1e-4, atol=0) & inputs["response_mask"].bool()


if __name__ == "__main__":
    main()
