"""Runs the actor worker of verl's asynchronous trainers (``DetachActorWorker``, FSDP2, gloo) on batches as these
trainers lay them out, through verl's own code between their queue and the worker.

What is real: the fully asynchronous trainer's configuration and ``assemble_batch_from_rollout_samples``,
``apply_bypass_mode``, ``RayPPOTrainer._update_actor`` (which the one-step-off and the fully asynchronous trainer
inherit), the worker with its saving and restoring of weights. What is not: Ray between them, and the rollout, whose
``DataProto`` is written down here as ``AgentLoopWorker`` returns it.
"""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.hooks import engine
from tests.hooks.engine import ROWS
from verl_cov.hooks.worker_state import state_of

WIDTH = 16  # prompts and responses, padded


@dataclass(frozen=True)
class Spec:
    model: str
    policy_loss: dict[str, Any]
    ranks: int = 1


@dataclass
class Report:
    """Of one call of ``update_actor``. ``step``: where the counter stood after it, (rollout step, mini-batch)."""

    selected: list[tuple[int, int]] = field(default_factory=list)
    gradient: np.ndarray | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    step: tuple[int, int] = (0, 0)


def configuration(model: str, *overrides: str) -> Any:
    """What the fully asynchronous trainer's entry point composes, for a CPU as far as the worker goes."""
    import verl
    from hydra import compose, initialize_config_dir

    where = Path(verl.__file__).parent / "experimental" / "fully_async_policy" / "config"
    with initialize_config_dir(str(where), version_base=None):
        return compose(
            "fully_async_ppo_trainer",
            overrides=[
                "+verl_cov=[kl_cov,cpu]",
                f"actor_rollout_ref.model.path={model}",
                "actor_rollout_ref.rollout.checkpoint_engine.backend=naive",  # nccl's wants an accelerator
                "actor_rollout_ref.actor.ppo_mini_batch_size=4",  # prompts
                "actor_rollout_ref.rollout.n=4",
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
                "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
                "actor_rollout_ref.actor.optim.lr=0",
                *overrides,
            ],
        )


def rollout_samples(versions: list[int | None], uid: bool = True) -> list[Any]:
    """Four prompts with four responses each, as they come out of the message queue. ``versions``: of the weights that
    finished each prompt's responses; None where the server does not say."""
    import torch
    from verl import DataProto
    from verl.experimental.fully_async_policy.detach_utils import RolloutSample

    def left(values: Any) -> Any:
        return np.pad(values, (WIDTH - len(values), 0))

    def right(values: Any) -> Any:
        return np.pad(values, (0, WIDTH - len(values)))

    samples = []
    rows = engine.mini_batch()
    for number, version in enumerate(versions):
        group = rows[4 * number : 4 * number + 4]
        ones = [(np.ones_like(row["prompt"]), np.ones_like(row["response"])) for row in group]
        fields = {
            "prompts": [left(row["prompt"]) for row in group],
            "responses": [right(row["response"]) for row in group],
            "response_mask": [right(row["mask"]) for row in group],
            "rollout_log_probs": [right(row["old_log_prob"]) for row in group],
            "input_ids": [np.concatenate([left(row["prompt"]), right(row["response"])]) for row in group],
            "attention_mask": [np.concatenate([left(prompt), right(response)]) for prompt, response in ones],
        }
        batch = {name: torch.from_numpy(np.stack(values)) for name, values in fields.items()}
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        score = torch.zeros(4, WIDTH)
        score[:, 0] = torch.tensor([row["score"] for row in group])
        batch["rm_scores"] = score
        started = None if version is None else max(version - 1, 0)
        other = {
            "global_steps": np.array([version] * 4, dtype=object),
            # verl subtracts these, so that it needs them where ours does not.
            "min_global_steps": np.array([started or 0] * 4, dtype=object),
            "max_global_steps": np.array([version or 0] * 4, dtype=object),
        }
        if uid:
            other["uid"] = np.array([f"uid_{number}"] * 4, dtype=object)
        spent = [{"generate_sequences": 1.0, "tool_calls": 0.0}] * 4
        data = DataProto.from_dict(tensors=batch, non_tensors=other, meta_info={"metrics": spent})
        samples.append(RolloutSample(full_batch=data, sample_id=str(number), epoch=0, rollout_status={"waiting": 0}))
    return samples


def batch_of(samples: list[Any], config: Any) -> Any:
    """The trainer's DataProto just before ``_update_actor``."""
    import torch
    from verl.experimental.fully_async_policy.detach_utils import assemble_batch_from_rollout_samples
    from verl.trainer.ppo.rollout_corr_helper import apply_bypass_mode

    batch = assemble_batch_from_rollout_samples(samples, None, config, None)
    correction = config.algorithm.rollout_correction
    assert correction.bypass_mode  # what this trainer's configuration sets
    apply_bypass_mode(batch, correction, config.actor_rollout_ref.actor.policy_loss)
    rows = engine.mini_batch()
    advantages = [np.pad(row["advantage"], (0, WIDTH - len(row["advantage"]))) for row in rows]
    batch.batch["advantages"] = torch.from_numpy(np.stack(advantages))
    return batch


# --- inside a rank ----------------------------------------------------------------------------------------------------


def _rank_main(path: Path, rank: int) -> None:
    import torch

    torch.set_num_threads(1)
    spec: Spec = pickle.loads(path.read_bytes())
    import verl  # noqa: F401  (loads the plugin)
    from omegaconf import OmegaConf
    from verl.experimental.separation.engine_workers import DetachActorWorker
    from verl.utils import tensordict_utils as tu

    overrides = [f"actor_rollout_ref.actor.policy_loss.{key}={value}" for key, value in spec.policy_loss.items()]
    wide = [f"actor_rollout_ref.actor.clip_ratio{side}=1.0" for side in ("", "_low", "_high")]
    config = configuration(spec.model, *overrides, *wide)
    OmegaConf.resolve(config)
    torch.manual_seed(0)
    worker = DetachActorWorker(config=config.actor_rollout_ref, role="actor")
    worker.init_model()
    reports: dict[str, Report] = {}

    def fully_async(name: str, versions: list[int | None], uid: bool = True) -> None:
        reports[name] = _updated(worker, config, batch_of(rollout_samples(versions, uid), config))

    # An earlier rollout was of version 1, so that this one is 2; a row of the same age and one that does not say.
    fully_async("first", [2, 1, 0, None])
    # The trainer keeps the weights of the first update for what verl calls the proximal policy.
    worker.save_model_to_cpu(1)
    worker.restore_model_from_cpu(1)
    worker.clear_cpu_model(1)
    fully_async("all of them older", [1, 0, 1, 0])
    fully_async("after the next weights", [3, 3, 2, 1])
    fully_async("without uid and versions", [None] * 4, uid=False)

    # V1's separate_async: jagged rows, which carry the step that sent their prompt out, and several updates a step.
    for name, steps in (("V1", [6, 5, 5, 4] * 4), ("V1, older rows", [5] * 16), ("V1, next", [7] * 16)):
        data = engine.to_tensordict(engine.mini_batch(), dense=False)
        tu.assign_non_tensor_stack(data, "global_steps", steps)
        tu.assign_non_tensor(
            data, mini_batch_size=ROWS, global_batch_size=ROWS, epochs=1, temperature=1.0, calculate_entropy=False
        )
        reports[name] = _spied(worker, lambda data=data: tu.get(worker.update_actor(data), "metrics"))
    if rank == 0:
        (path.parent / "report.pickle").write_bytes(pickle.dumps(reports))


def _updated(worker: Any, config: Any, batch: Any) -> Report:
    """One ``_update_actor`` of the trainer, with the worker in place of its Ray worker group."""
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer

    trainer = SimpleNamespace(config=config, actor_rollout_wg=worker)

    def update() -> dict[str, Any]:
        # mfu is what verl has of an accelerator's speed; a CPU has none.
        found = RayPPOTrainer._update_actor(trainer, batch).meta_info["metrics"]
        return {key.removeprefix("actor/") if "/cov/" not in key else key: value for key, value in found.items()}

    return _spied(worker, update)


def _spied(worker: Any, update: Any) -> Report:
    import torch

    from verl_cov.hooks.batch import SELECTED_FIELD

    report, trained = Report(), worker.actor.engine
    step, train = trained.optimizer_step, trained.train_batch

    def optimizer_step():
        grads = [parameter.grad for parameter in trained.module.parameters() if parameter.grad is not None]
        full = [getattr(grad, "full_tensor", lambda g=grad: g)().flatten() for grad in grads]
        report.gradient = torch.cat(full).double().numpy()
        return step()

    def train_batch(batch, loss_function):
        lists = [row.tolist() for row in batch[SELECTED_FIELD].unbind()]
        report.selected = [(row, at) for row, marks in enumerate(lists) for at, on in enumerate(marks) if on]
        return train(batch, loss_function=loss_function)

    trained.optimizer_step, trained.train_batch = optimizer_step, train_batch
    try:
        found = update()
    finally:
        trained.optimizer_step, trained.train_batch = step, train
    report.metrics = {
        key: float(np.mean([getattr(one, "aggregate", lambda one=one: one)() for one in values]))
        for key, values in found.items()
    }
    report.step = (state_of(worker.actor).rollout_step, state_of(worker.actor).mini_batch)
    return report


if __name__ == "__main__":
    # Through the package, so that the report's classes are pickled under a name the test can import.
    from tests.hooks import other_trainers

    other_trainers._rank_main(Path(sys.argv[1]), int(sys.argv[2]))
