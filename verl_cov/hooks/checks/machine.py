"""Refuses a run that would hang, or fail after minutes, on this machine.

Counts what verl's actors reserve in Ray: in verl 0.9.1 a placement-group bundle of ``max_colocate_count`` = 3 a trainer
process (``single_controller/ray/base.py``); with the V1 trainer one for TransferQueue's controller and one for each
storage unit; with the legacy trainer one for its TaskRunner.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from verl_cov.hooks import cpu
from verl_cov.hooks.trainers import other_trainer, starts_own_ray


def refuse_without_accelerator(config: DictConfig) -> None:
    """Raises ValueError if the run would start here and this machine has no accelerator."""
    if cpu.is_selected() or not starts_own_ray(config):
        return
    from verl.plugin.platform import get_platform

    if not get_platform().is_available():
        raise ValueError(
            "no accelerator found on this machine: set VERL_PLATFORM=cpu and add +verl_cov=cpu to train on the "
            "CPU, or connect to a cluster (RAY_ADDRESS)"
        )


def refuse_too_few_ray_cpus(config: DictConfig) -> None:
    """Raises ValueError if Ray would wait for ever, silently, for actors that ask for more CPUs than it was told of."""
    if not starts_own_ray(config) or other_trainer(config) is not None:  # what the others reserve was not counted
        return
    have = OmegaConf.select(config, "ray_kwargs.ray_init.num_cpus", default=None) or _detected_cpus()
    need = ray_cpus_needed(config)
    if have < need:
        raise ValueError(
            f"Ray has {have} CPUs and this run needs {need}: it would wait for ever. Set "
            f"ray_kwargs.ray_init.num_cpus={need} (a logical count, Ray does not check it), or lower "
            "transfer_queue.backend.SimpleStorage.num_data_storage_units"
        )


def ray_cpus_needed(config: DictConfig) -> int:
    """CPUs that verl's actors reserve in Ray on one node, and the one more that starting an actor takes."""
    need = 3 * config.trainer.n_gpus_per_node + 1
    if config.trainer.get("use_v1", False):
        backend = config.transfer_queue.backend
        if backend.storage_backend == "SimpleStorage":
            need += backend.SimpleStorage.num_data_storage_units
    return need + 1


def _detected_cpus() -> int:
    """What Ray will find by itself: the container's share, where os.cpu_count() is the host's."""
    from ray._private.utils import get_num_cpus

    return int(get_num_cpus())
