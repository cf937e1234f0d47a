"""verl's own checks of a composed configuration, without starting anything: its dataclasses and `validate_config`.

Leans on ``verl.utils.config.{omega_conf_to_dataclass, validate_config}`` and ``verl.trainer.ppo.utils.{need_critic,
need_reference_policy}``, which ``verl.trainer.main_ppo.main`` and the workers call on the same nodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import verl  # noqa: F401  first: it loads our plugin, which imports the checks itself
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from verl_cov.hooks.checks import configuration

# What the driver and the workers turn into dataclasses. Left out: the critic, which no recipe has, and the reward, of
# which verl 0.9.1 never makes one (its __post_init__ calls one that is not there).
DATACLASSES = (
    "algorithm",
    "actor_rollout_ref.actor",
    "actor_rollout_ref.rollout",
)


def check(config: DictConfig, checkpoint: Path | None = None) -> None:
    """Raises ValueError, in one line that names the field, for what verl or verl-cov would refuse at start.

    config: resolved. checkpoint: a model folder to build verl's model configuration with (it reads a tokenizer and a
    config.json at once), in place of the recipe's checkpoint; None leaves that one dataclass out.
    """
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    _sizes(config)
    for node in DATACLASSES:
        _dataclass(config, node)
    _dataclass(OmegaConf.create({"actor_rollout_ref": {"ref": _reference(config)}}), "actor_rollout_ref.ref")
    if checkpoint is not None:
        model = OmegaConf.merge(config.actor_rollout_ref.model, {"path": str(checkpoint)})
        _dataclass(OmegaConf.create({"actor_rollout_ref": {"model": model}}), "actor_rollout_ref.model")
    try:
        # Ours checks the machine as well, and ends the program: verl's own is under it.
        original = getattr(validate_config, "__wrapped__", validate_config)
        original(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
        configuration.refuse(config)
    except (AssertionError, ValueError, TypeError) as error:
        raise ValueError(_line(error)) from None


def _sizes(config: DictConfig) -> None:
    """What verl only finds out when workers start, or never (it divides and drops the rest)."""
    rollout, actor, trainer = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor, config.trainer
    gpus = trainer.n_gpus_per_node * trainer.nnodes
    each = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    if gpus % each:  # verl/workers/rollout/llm_server.py: num_replicas = world_size // rollout_world_size
        raise ValueError(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={rollout.tensor_model_parallel_size} does not divide"
            f" {gpus} GPUs (trainer.n_gpus_per_node x trainer.nnodes)"
        )
    if config.data.train_batch_size % actor.ppo_mini_batch_size:  # unchecked by verl with dynamic batches
        raise ValueError(
            f"data.train_batch_size={config.data.train_batch_size} is no multiple of "
            f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size}"
        )
    steps = trainer.total_training_steps
    if steps is not None and not (isinstance(steps, int) and steps > 0):
        raise ValueError(f"trainer.total_training_steps={steps} must be a number of rollouts, above 0, or null")


def _reference(config: DictConfig) -> dict[str, Any]:
    """The reference's node as `ActorRolloutRefWorker` (verl/workers/engine_workers.py) makes an actor's of it."""
    reference = OmegaConf.to_container(config.actor_rollout_ref.ref)
    assert isinstance(reference, dict)
    return {
        **{str(key): value for key, value in reference.items() if not str(key).startswith("log_prob_")},
        "ppo_mini_batch_size": config.actor_rollout_ref.actor.ppo_mini_batch_size,
        "ppo_micro_batch_size": reference["log_prob_micro_batch_size"],
        "ppo_micro_batch_size_per_gpu": reference["log_prob_micro_batch_size_per_gpu"],
        "use_dynamic_bsz": reference["log_prob_use_dynamic_bsz"],
        "ppo_max_token_len_per_gpu": reference["log_prob_max_token_len_per_gpu"],
    }


def _dataclass(config: DictConfig, node: str) -> Any:
    from verl.utils.config import omega_conf_to_dataclass

    try:
        return omega_conf_to_dataclass(OmegaConf.select(config, node))
    except InstantiationException as error:
        raise ValueError(f"{node}: {_line(error.__cause__ or error)}") from None
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{node}: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
