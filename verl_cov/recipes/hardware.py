"""Checks that this machine, or the Ray cluster, has the GPUs, the memory and the disk that a run needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from verl_cov.recipes.finding import Finding
from verl_cov.recipes.memory import GB, STATE_BYTES, Estimate, of_config
from verl_cov.terminal import counted

_CLUSTERS = "verl-cov docs launchers#a-ray-cluster"


def gpus(config: DictConfig) -> Iterator[Finding]:
    import torch

    from verl_cov.hooks.trainers import starts_own_ray

    per_node, nodes = config.trainer.n_gpus_per_node, config.trainer.nnodes
    local = starts_own_ray(config)
    if not local:
        yield _cluster(per_node, nodes)
    elif nodes > 1:
        yield Finding(
            "GPUs",
            True,
            f"{nodes} nodes of {counted(per_node, 'GPU')} need a Ray cluster: start one and submit ({_CLUSTERS}), "
            "or give recipe/scale=node8 or gpu1",
        )
    else:
        have = torch.cuda.device_count()
        text = f"{have} of {per_node}"
        fix = ": recipe/scale=gpu1 needs one; on a CPU, model tiny with task toy and scale cpu runs"
        yield Finding("GPUs", have < per_node, text + (fix if have < per_node else ""))
    gpu = torch.cuda.get_device_properties(0).total_memory if local and torch.cuda.is_available() else 80 * GB
    if "recipe" in config and "parameters" in config.recipe:
        yield from _fit(of_config(config, gpu), nodes == 1)


def _fit(need: Estimate, here: bool) -> Iterator[Finding]:
    if need.problem:
        fix = "take a larger scale, or a larger actor_rollout_ref.rollout.tensor_model_parallel_size"
        yield Finding("GPU memory", True, f"{need.problem}: {fix}")
    else:
        yield Finding("GPU memory", False, need.describe())
    if need.host and here:
        yield from host_memory(need.host, "what is kept off the GPUs")


def _cluster(per_node: int, nodes: int) -> Finding:
    """Whether the running Ray cluster has enough nodes with enough GPUs. Connecting to it takes seconds."""
    import ray

    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError) as error:
        return Finding(
            "GPUs", True, f"no Ray cluster answers ({' '.join(str(error).split())[:120]}): start one ({_CLUSTERS})"
        )
    try:
        able = sum(node["Alive"] and node["Resources"].get("GPU", 0) >= per_node for node in ray.nodes())
    finally:
        ray.shutdown()
    text = f"nodes of the Ray cluster with {counted(per_node, 'GPU')}: {able} of {nodes}"
    return Finding("GPUs", able < nodes, text + (f": add workers ({_CLUSTERS})" if able < nodes else ""))


def host_memory(need: float, what: str) -> Iterator[Finding]:
    import psutil

    have = psutil.virtual_memory().available
    fix = ": end what else runs here, or take a machine with more" if have < need else ""
    text = f"{have / GB:.0f} GB of host memory are free, for {what} {need / GB:.0f} GB are needed{fix}"
    yield Finding("memory", have < need, text)


def disk(config: DictConfig) -> Iterator[Finding]:
    """Room for checkpoints (weights and Adam's moments in fp32): those that are kept, and one being written."""
    if config.trainer.save_freq <= 0 or "recipe" not in config or "parameters" not in config.recipe:
        return
    kept = (config.trainer.max_actor_ckpt_to_keep or 1) + 1
    need = (STATE_BYTES - 4) * config.recipe.parameters * kept
    folder = Path(config.trainer.default_local_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / GB:.0f} GB are free in {folder}, {kept} checkpoints take {need / GB:.1f} GB"
    yield Finding("disk", free < need, text + (": lower trainer.max_actor_ckpt_to_keep" if free < need else ""))
