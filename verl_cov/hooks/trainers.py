"""Reads from a configuration which trainer it is for and how that trainer updates; several checks use it."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf

# Entry points with a trainer of their own, recognised by top-level fields of their configuration. A user may have a
# node of the same name, so all the fields listed must be present.
OTHER_TRAINERS = {
    ("async_training.trigger_parameter_sync_step",): "verl.experimental.fully_async_policy",
    ("rollout.nnodes", "rollout.n_gpus_per_node"): "verl.experimental.one_step_off_policy",
}


def other_trainer(config: DictConfig) -> str | None:
    """Returns the module of the trainer that ``config`` is for, None for ``main_ppo``'s trainers.

    With another trainer, ``trainer.use_v1`` means nothing.
    """
    for fields, name in OTHER_TRAINERS.items():
        if all(OmegaConf.select(config, field, default=None) is not None for field in fields):
            return name
    return None


def bypasses_old_log_probs(config: DictConfig) -> bool:
    """True if ``old_log_probs`` are the rollout's own, in place of the actor's at the start of the step."""
    return bool(OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode", default=False))


def updates_per_rollout(config: DictConfig) -> float:
    """Optimizer steps on each batch of rollouts."""
    actor = config.actor_rollout_ref.actor
    if other_trainer(config) == "verl.experimental.fully_async_policy":  # takes so many mini-batches from its queue
        return (OmegaConf.select(config, "async_training.require_batches", default=1) or 1) * actor.ppo_epochs
    # A mini-batch above the batch is the batch, as it may be with use_dynamic_bsz.
    return max(config.data.train_batch_size / max(actor.ppo_mini_batch_size, 1), 1) * actor.ppo_epochs


def update_calls_on_one_policy(config: DictConfig) -> tuple[int, str]:
    """How often the actor is updated before verl takes log-probs of a newer policy, and the field that says so."""
    field = "async_training.trigger_parameter_sync_step"
    if other_trainer(config) is None:
        if OmegaConf.select(config, "trainer.v1.trainer_mode", default="sync") != "separate_async":
            return 1, ""
        field = "trainer.v1.separate_async.parameter_sync_step"
    return int(OmegaConf.select(config, field, default=1) or 1), field


def starts_own_ray(config: DictConfig) -> bool:
    """True if verl will start Ray on this machine, False if it will join a running cluster."""
    import ray

    if ray.is_initialized():
        return False
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address", default=None) or os.environ.get("RAY_ADDRESS")
    if address:
        return address == "local"
    from ray._private.utils import read_ray_address

    # ray.init() without an address joins the cluster that `ray start` left its address of.
    return not read_ray_address()
