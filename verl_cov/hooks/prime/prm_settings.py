"""Settings of the workers of the PRM and its frozen reference: the policy's, except where ``prime`` differs.

Leans on ``TrainingWorkerConfig``, on the policy's ``ActorConfig`` having ``engine``, ``optim`` and ``checkpoint`` for
every backend, and on ``ActorRolloutRefWorker.init_model`` setting the same fields of the engine's config.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cov.core.prime.prime_config import PrimeConfig

MODEL = "actor_rollout_ref.model"


def prime_in(config: DictConfig) -> PrimeConfig:
    """The validated node ``prime``. Raises ValueError."""
    node = OmegaConf.select(config, "prime", default=None)
    if node is None:
        raise ValueError("the node prime is missing: add +verl_cov=prime")
    return PrimeConfig.from_node(OmegaConf.to_container(node, resolve=True))


def prm_model(config: DictConfig, prime: PrimeConfig) -> DictConfig:
    """``actor_rollout_ref.model`` with the PRM's own fields."""
    return _model(config, dict(prime.model))


def reference_model(config: DictConfig, prime: PrimeConfig) -> DictConfig:
    """Returns the model settings of the frozen reference: the PRM's loading options, without adapters."""
    own = {**prime.model, "path": prime.reference_path or config.actor_rollout_ref.model.path}
    return _model(config, {**own, "lora_rank": 0, "lora_adapter_path": None})


def _model(config: DictConfig, own: dict[str, Any]) -> DictConfig:
    node = OmegaConf.create(OmegaConf.to_container(config.actor_rollout_ref.model, resolve=True))
    for name in own:
        if name not in node:
            raise ValueError(f"prime.model.{name}: {MODEL} has no such field")
    if own.get("path", node.path) != node.path:
        # These say where the policy's are: another model has its own.
        for name in ("hf_config_path", "tokenizer_path"):
            if OmegaConf.select(node, name, default=None) is not None and name not in own:
                node[name] = None
    return OmegaConf.merge(node, OmegaConf.create(own))


def check_fields(config: DictConfig, prime: PrimeConfig) -> None:
    """Raises ValueError for a field of ``prime.model``, ``optim`` or ``engine`` that the policy does not have."""
    from hydra.errors import InstantiationException
    from verl.utils.config import omega_conf_to_dataclass

    prm_model(config, prime)
    try:
        actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    except InstantiationException:  # verl does not accept the policy's own, and says why in a moment
        return
    _with("engine", actor.engine, dict(prime.engine))
    _with("optim", actor.optim, dict(prime.optim))


def mini_batch_size(config: DictConfig, prime: PrimeConfig) -> int:
    """Returns the number of prompts in one update of the PRM: the policy's, unless the node says otherwise."""
    return prime.mini_batch_size or int(config.actor_rollout_ref.actor.ppo_mini_batch_size)


def micro_batch_size(config: DictConfig, prime: PrimeConfig) -> int | None:
    """Returns the number of responses in one forward of the PRM, or None with ``use_dynamic_bsz``.

    verl requires that it divides the number of a rank's responses.
    """
    actor = config.actor_rollout_ref.actor
    if actor.use_dynamic_bsz:
        return None
    return prime.micro_batch_size_per_gpu or actor.ppo_micro_batch_size_per_gpu


def worker_config(config: DictConfig, prime: PrimeConfig, total_training_steps: int, reference: bool) -> Any:
    """The ``TrainingWorkerConfig`` of the PRM, or of its frozen reference. Raises ValueError for an unknown field."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import TrainingWorkerConfig

    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    model = omega_conf_to_dataclass((reference_model if reference else prm_model)(config, prime))
    micro = prime.micro_batch_size_per_gpu or config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu
    tokens = prime.max_token_len_per_gpu or config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
    engine = _with("engine", actor.engine, {**prime.engine, **({"forward_only": True} if reference else {})})
    # Training and scoring in the same micro-batches: a PRM that equals its reference then scores exactly 0.
    settings = {
        "use_dynamic_bsz": actor.use_dynamic_bsz,
        "micro_batch_size_per_gpu": micro,
        "infer_micro_batch_size_per_gpu": micro,
        "max_token_len_per_gpu": tokens,
        "infer_max_token_len_per_gpu": tokens,
    }
    for name, value in settings.items():
        setattr(engine, name, value)
    return TrainingWorkerConfig(
        model_type="language_model",
        model_config=model,
        engine_config=engine,
        optimizer_config=_with("optim", actor.optim, {**prime.optim, "total_training_steps": total_training_steps}),
        checkpoint_config=actor.checkpoint,
    )


def _with(node: str, settings: Any, own: dict[str, Any]) -> Any:
    """``settings`` (one of verl's dataclasses) with fields replaced. Raises ValueError for one that it has not."""
    known = {field.name for field in dataclasses.fields(settings) if field.init}
    for name in own:
        if name not in known:
            raise ValueError(f"prime.{node}.{name}: {type(settings).__name__} has no such field")
    return dataclasses.replace(settings, **own)
