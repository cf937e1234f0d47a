"""Is an installed verl the release that it says it is, where verl-cov leans on it?

Every function and class that a seam's docstring names under "Leans on" has a fingerprint: the SHA-256 of its syntax
tree, without docstrings, comments and formatting. ``fingerprints.json`` has them for each release of
:data:`~verl_cov.host.versions.RELEASES`, and for the functions that ``patches/`` change also of the patched ones. verl
is read, never imported: this works with a verl that cannot be imported at all.

For maintainers, once a release: ``python -m verl_cov.host.doctor.fingerprints RELEASE DIR``, where DIR holds its
``verl/``.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_cov.host import versions
from verl_cov.host.doctor import features as the

DATA = Path(__file__).with_suffix(".json")

# verl-cov does not lean on these, but whether they are still the old ones is of interest.
VERLS_OWN = "verl's own clip_cov and kl_cov"


@dataclass(frozen=True)
class Lean:
    """One thing of verl's that a seam leans on.

    Args:
        name: ``verl/file.py::name`` or ``::Class.method``; ``verl/file.py`` alone is the whole module.
        seam: our module, below ``verl_cov/host/``.
        features: what breaks with it; names of :mod:`.features`.
    """

    name: str
    seam: str
    features: tuple[str, ...]


def _leans(path: str, names: str, seam: str, *features: str) -> list[Lean]:
    return [Lean(f"verl/{path}.py::{name}", seam, features) for name in names.split()]


_V1 = "trainer/ppo/v1"
_ENGINE_WORKERS = "workers/engine_workers"
_AGENT_LOOP = "experimental/agent_loop"

LEANS: tuple[Lean, ...] = (
    *_leans(
        "trainer/ppo/core_algos",
        "POLICY_LOSS_REGISTRY register_policy_loss get_policy_loss_fn agg_loss compute_policy_loss "
        "compute_policy_loss_vanilla",
        "policy_losses",
        the.LOSSES,
    ),
    *_leans("workers/utils/losses", "ppo_loss", "policy_losses, batch", the.LOSSES, the.HOOK),
    *_leans("workers/config/actor", "PolicyLossConfig", "policy_loss_config", the.LOSSES),
    *_leans("utils/config", "omega_conf_to_dataclass", "asked, recipe_check", the.LOSSES, the.CHECKS, the.RECIPES),
    *_leans(_ENGINE_WORKERS, "TrainingWorker.train_batch", "train_batch, prime/worker", the.HOOK, the.PRIME),
    *_leans(
        "workers/engine/base",
        "BaseEngine.train_batch BaseEngine.infer_batch BaseEngine.eval_mode BaseEngine.get_data_parallel_group",
        "train_batch, batch",
        the.HOOK,
    ),
    *_leans(
        "workers/engine/fsdp/transformer_impl",
        "FSDPEngine.forward_backward_batch FSDPEngine.get_data_parallel_group",
        "train_batch, batch",
        the.HOOK,
    ),
    *_leans("workers/utils/padding", "no_padding_2_padding", "batch", the.HOOK, the.ROLLOUT),
    *_leans(
        "workers/actor/dp_actor",
        "DataParallelPPOActor.__init__ DataParallelPPOActor.update_policy",
        "update_policy",
        the.LEGACY_HOOK,
    ),
    *_leans(_ENGINE_WORKERS, "TrainingWorker.train_mini_batch", "rollout_batch, prime/worker", the.ROLLOUT, the.PRIME),
    *_leans(
        _ENGINE_WORKERS,
        "TrainingWorker.infer_batch TrainingWorker.save_checkpoint TrainingWorker.load_checkpoint",
        "rollout_batch",
        the.ROLLOUT,
    ),
    *_leans("utils/config", "validate_config", "preflight, recipe_check", the.CHECKS, the.RECIPES),
    *_leans("trainer/ppo/utils", "need_critic need_reference_policy", "recipe_check", the.RECIPES),
    *_leans("workers/rollout/vllm_rollout/vllm_async_server", "vLLMHttpServer.run_server", "fail_fast", the.FILTER),
    *_leans(
        f"{_V1}/replay_buffer",
        "ReplayBuffer._evict_terminal_groups ReplayBuffer._sampleable_terminal_keys",
        "group_filter",
        the.FILTER,
    ),
    *_leans(
        f"{_V1}/trainer_base", "PPOTrainer._build_replay_buffer", "group_filter, prime/trainer", the.FILTER, the.PRIME
    ),
    *_leans(f"{_V1}/trainer_base", "PPOTrainer._validate", "validation_entropy", the.VALIDATION),
    *_leans(f"{_V1}/replay_buffer", "ReplayBuffer.sample", "validation_entropy", the.VALIDATION),
    *_leans(f"{_V1}/trainer_base", "PPOTrainer._val_metrics_update", "validation_metrics", the.VALIDATION),
    *_leans("trainer/ppo/ray_trainer", "RayPPOTrainer._val_metrics_update", "validation_metrics", the.VALIDATION),
    *_leans(f"{_V1}/trainer_base", "PPOTrainer._init_dataloader", "validation_sampling", the.VALIDATION),
    *_leans("trainer/ppo/ray_trainer", "RayPPOTrainer._create_dataloader", "validation_sampling", the.VALIDATION),
    *_leans("utils/dataset/rl_dataset", "RLHFDataset._read_files_and_tokenize", "validation_sampling", the.VALIDATION),
    *_leans(f"{_AGENT_LOOP}/single_turn_agent_loop", "SingleTurnAgentLoop.run", "agent_loop", the.VALIDATION),
    *_leans(f"{_AGENT_LOOP}/agent_loop", "register", "agent_loop, validation_sampling", the.VALIDATION),
    *_leans(f"{_V1}/replay_buffer", "ReplayBuffer._dapo_filtered_keys", "prime/accuracy_band", the.PRIME),
    *_leans(
        f"{_V1}/trainer_base",
        "register_trainer PPOTrainer._setup PPOTrainer._load_checkpoint PPOTrainer._save_checkpoint "
        "PPOTrainer._compute_advantage",
        "prime/trainer",
        the.PRIME,
    ),
    *_leans(f"{_V1}/trainer_sync", "PPOTrainerSync", "prime/trainer", the.PRIME),
    *_leans(f"{_V1}/agent_loop_tq", "AgentLoopWorkerTQ", "prime/outcomes", the.PRIME),
    *_leans("workers/config/engine", "TrainingWorkerConfig", "prime/workers", the.PRIME),
    *_leans("workers/config/actor", "ActorConfig", "prime/workers", the.PRIME),
    *_leans(_ENGINE_WORKERS, "ActorRolloutRefWorker.init_model", "prime/workers", the.PRIME),
    *_leans("plugin/platform/platform_base", "PlatformBase", "cpu/platform", the.CPU),
    *_leans("plugin/platform/platform_manager", "PlatformRegistry", "cpu/platform", the.CPU),
    *_leans("utils/distributed", "initialize_global_process_group_ray", "cpu/process_group", the.CPU),
    *_leans("workers/engine/base", "EngineRegistry", "cpu/engines", the.CPU),
    *_leans("workers/engine/fsdp/transformer_impl", "FSDPEngine._build_fsdp_module", "cpu/reference", the.CPU),
    *_leans(f"{_V1}/replay_buffer", "ReplayBuffer.__init__", "cpu/replay_poll", the.CPU),
    *_leans(
        "workers/rollout/vllm_rollout/bucketed_weight_transfer",
        "BucketedWeightReceiver.receive_weights",
        "cpu/weight_receiver",
        the.CPU,
    ),
    *_leans("utils/attention_utils", "_get_attention_functions", "cpu/unpadding", the.CPU),
    *_leans("utils/npu_flash_attn_utils", "unpad_input pad_input index_first_axis", "cpu/unpadding", the.CPU),
    Lean("verl/third_party/vllm/__init__.py", "cpu/vllm_package", (the.CPU,)),
    *_leans(
        "trainer/ppo/core_algos",
        "compute_policy_loss_clip_cov compute_policy_loss_kl_cov",
        "doctor/own_losses",
        VERLS_OWN,
    ),
)


@dataclass(frozen=True)
class Comparison:
    """An installed verl against a release.

    Args:
        release: compared with.
        compared: how many names the release has, of features that it should have.
        patched: names that are as the release's patch makes them. differing, missing: the other ones that are not the
            release's. A missing one is not where the release has it.
    """

    release: str
    compared: int
    patched: tuple[Lean, ...]
    differing: tuple[Lean, ...]
    missing: tuple[Lean, ...]

    @property
    def exact(self) -> bool:
        """The release, patched or not."""
        return not self.differing and not self.missing

    @property
    def same(self) -> int:
        return self.compared - len(self.differing) - len(self.missing)

    def at_risk(self) -> dict[str, list[Lean]]:
        """Feature -> what of it differs."""
        return _by_feature(self.differing, self.release)

    def gone(self) -> dict[str, list[Lean]]:
        """Feature -> what of it is missing."""
        return _by_feature(self.missing, self.release)


def compare(found: Mapping[str, str], release: str) -> Comparison:
    """A verl against a release. ``found``: what :func:`read` says of it."""
    known = data()[release]
    wanted = the.names(_release(release))
    leans = [lean for lean in LEANS if lean.name in known["functions"] and wanted & set(lean.features)]
    patched, differing, missing = [], [], []
    for lean in leans:
        here = found.get(lean.name)
        if here is None:
            missing.append(lean)
        elif here == known["functions"][lean.name]:
            continue
        elif here == known["patched"].get(lean.name):
            patched.append(lean)
        else:
            differing.append(lean)
    return Comparison(release, len(leans), tuple(patched), tuple(differing), tuple(missing))


def nearest(found: Mapping[str, str]) -> Comparison:
    """Against the release that it is most like; of two that are as near the later one."""
    every = [compare(found, release.version) for release in versions.RELEASES]
    return max(reversed(every), key=lambda one: one.same / one.compared)


def releases_with(name: str, fingerprint: str | None) -> list[str]:
    """The releases whose ``name`` has this fingerprint, patched or not."""
    return [
        release
        for release, known in data().items()
        if fingerprint is not None and fingerprint in (known["functions"].get(name), known["patched"].get(name))
    ]


def read(package: Path) -> dict[str, str]:
    """The fingerprints of the names of :data:`LEANS` that the folder ``verl`` has."""
    files = {lean.name.partition("::")[0] for lean in LEANS}
    paths = {file: package / Path(file).relative_to("verl") for file in files}
    return of({file: path.read_bytes() for file, path in paths.items() if path.is_file()})


def of(contents: Mapping[str, bytes]) -> dict[str, str]:
    """The fingerprints of the names of :data:`LEANS` in files, by path; a file that is no Python has none."""
    trees = {}
    for file, content in contents.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # verl's docstrings have stray backslashes
                trees[file] = ast.parse(content)
        except (SyntaxError, ValueError):
            continue
    found = {}
    for lean in LEANS:
        file, _, name = lean.name.partition("::")
        if file in trees and (nodes := _find(trees[file], name)):
            found[lean.name] = fingerprint(nodes)
    return found


def fingerprint(nodes: list[ast.stmt] | list[ast.Module]) -> str:
    """SHA-256 of syntax trees: the same for every Python, whatever the docstrings, comments and formatting."""
    return hashlib.sha256(repr([_plain(node) for node in nodes]).encode()).hexdigest()


@functools.cache
def data() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """release -> "functions" and "patched" -> name -> fingerprint."""
    return json.loads(DATA.read_bytes())


def _find(tree: ast.Module, name: str) -> list[Any]:
    """The definitions of a dotted name; several, if a condition chooses between them."""
    if not name:
        return [tree]
    scopes: list[Any] = [tree]
    *classes, last = name.split(".")
    for one in classes:
        scopes = [node for scope in scopes for node in _definitions(scope, one) if isinstance(node, ast.ClassDef)]
    return [node for scope in scopes for node in _definitions(scope, last)]


def _definitions(scope: Any, name: str) -> Iterator[Any]:
    for node in _statements(scope.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            continue
        if name in defined:
            yield node


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a body, also under its conditions and attempts."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            handlers = node.handlers if isinstance(node, ast.Try) else []
            for part in (node.body, *(handler.body for handler in handlers), node.orelse):
                yield from _statements(part)
            yield from _statements(node.finalbody if isinstance(node, ast.Try) else [])
        else:
            yield node


# How a tree is written, not what it says; and what some Pythons know of it and others do not.
_SKIPPED = {"ctx", "kind", "type_comment", "type_ignores"}
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _plain(value: Any) -> Any:
    if isinstance(value, ast.Constant):
        return (type(value.value).__name__, repr(value.value))
    if isinstance(value, ast.AST):
        fields = {name: part for name, part in ast.iter_fields(value) if name not in _SKIPPED}
        if isinstance(value, _WITH_DOCSTRING) and ast.get_docstring(value, clean=False) is not None:
            fields["body"] = fields["body"][1:]
        # Later Pythons have more fields, empty where an earlier one could have written the same.
        return (type(value).__name__, [(name, _plain(part)) for name, part in fields.items() if part not in (None, [])])
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def _by_feature(leans: tuple[Lean, ...], release: str) -> dict[str, list[Lean]]:
    wanted = the.names(_release(release))
    found: dict[str, list[Lean]] = {}
    for lean in leans:
        for feature in lean.features:
            if feature in wanted:
                found.setdefault(feature, []).append(lean)
    return found


def _release(version: str) -> versions.Release:
    return next(release for release in versions.RELEASES if release.version == version)
