"""What the selection costs in verl's FSDP2 engine, and how far off selecting within micro-batches is."""

from __future__ import annotations

import os
import pickle
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.timing import table
from tests.hooks import engine, test_invariance, test_weights
from tests.hooks.engine import Layout

SEQUENCES, PROMPT, RESPONSE = 64, 64, 256
VARIANTS = test_invariance.VARIANTS


def share(model: Path) -> str:
    """Share of our hooks in an optimizer step, one process, a Qwen2 of 0.1 M and one of 5 M parameters."""
    variants = {f"{name}, metrics off": {**fields, "cov_metrics": "off"} for name, fields in VARIANTS.items()}
    for level in ("basic", "full"):
        variants[f"kl_cov, old, metrics {level}"] = {**VARIANTS["kl_cov, old"], "cov_metrics": level}
        variants[f"vanilla, metrics {level}"] = dict(loss_mode="vanilla", cov_metrics=level)
    rows = []
    for hidden, layers in ((64, 2), (256, 6)):
        for variant, fields in variants.items():
            found = _in_process(model, hidden, layers, fields)
            hook, update = found["hook"], found["update"]
            parameters = f"{found['parameters'] / 1e6:.1f} M"
            rows.append(
                [parameters, variant, f"{1e3 * update:.0f}", f"{1e3 * hook:.1f}", f"{100 * hook / update:.2f} %"]
            )
    return table(["model", "loss", "optimizer step, ms", "of it verl-cov, ms", "share"], rows)


def micro_batch_scope(model: Path) -> str:
    """Distance of the gradient from the exact one (|g - exact| / |exact|), by where it is selected."""
    layouts = (*(Layout(f"{micro}", micro=micro) for micro in (16, 8, 4, 2, 1)), Layout("dynamic", tokens=64))
    variants = {**test_invariance.UPSTREAM, "exact": {**test_invariance.KL, "cov_log_prob": "current"}}
    seeds = tuple(range(5))
    spec = engine.Spec(str(model), test_invariance.WIDE, layouts, variants=variants, seeds=seeds)
    reports = engine.run(spec)
    rows = []
    for layout in layouts:
        cells = []
        for variant in ("verl", "ours", "exact"):
            off = []
            for seed in seeds:
                *_, exact = test_invariance.oracle(str(model), "kl_cov, current", seed)
                off.append(test_invariance.relative(reports[variant, seed, layout.name].gradient, exact))
            cells.append(f"{100 * statistics.median(off):.2g} %")
        rows.append([layout.name, *cells])
    header = ["micro-batch", "verl's `kl_cov`", "`cov_scope=micro_batch`", "verl-cov (`current`)"]
    return table(header, rows)


def public_forms(model: Path) -> str:
    """Distance of the gradient from the exact one with the weights of three controls taken within micro-batches, as
    their public code does, and over the mini-batch."""
    layouts = (*(Layout(f"{micro}", micro=micro) for micro in (16, 8, 4, 1)), Layout("dynamic", tokens=64))
    names, scopes, seeds = ("stare", "steer", "high_entropy"), ("micro_batch", "mini_batch"), tuple(range(5))
    variants = {
        f"{name} {scope}": test_weights.variants([name], cov_scope=scope)[name] for name in names for scope in scopes
    }
    spec = engine.Spec(str(model), test_invariance.WIDE, layouts, variants=variants, seeds=seeds)
    reports = engine.run(spec)
    exact = {(name, seed): test_weights.oracle(str(model), name, seed)[-1] for name in names for seed in seeds}
    rows = []
    for layout in layouts:
        cells = []
        for name in names:
            for scope in scopes:
                gradients = {seed: reports[f"{name} {scope}", seed, layout.name].gradient for seed in seeds}
                off = [test_invariance.relative(found, exact[name, seed]) for seed, found in gradients.items()]
                cells.append(f"{100 * statistics.median(off):.2g} %")
        rows.append([layout.name, *cells])
    header = ["micro-batch", *(f"`{name}`, {where}" for name in names for where in ("public form", "verl-cov"))]
    return table(header, rows)


def _in_process(model: Path, hidden: int, layers: int, fields: dict) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.pickle"
        spec.write_bytes(pickle.dumps((str(model), hidden, layers, fields)))
        command = [sys.executable, "-m", "benchmarks.engine", str(spec)]
        # Before anything imports verl, which looks for its platform once.
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "VERL_PLATFORM": "cpu"})
        return pickle.loads((Path(folder) / "found.pickle").read_bytes())


def _main(path: Path) -> None:
    import time

    model, hidden, layers, fields = pickle.loads(path.read_bytes())
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "DIST_INIT_METHOD": f"file://{path.parent}/store"}
    import verl  # noqa: F401
    from omegaconf import OmegaConf
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

    from verl_cov.hooks import mini_batch, policy_losses, rollout_batch
    from verl_cov.hooks.update_record import UpdateRecord

    config = AutoConfig.from_pretrained(model)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = hidden, 4 * hidden, layers
    config.layer_types = config.layer_types[:1] * layers
    config.head_dim, config.max_position_embeddings = hidden // config.num_attention_heads, 1024
    folder = path.parent / "model"
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)

    composed = engine.compose(test_invariance.WIDE, str(folder))
    OmegaConf.resolve(composed)
    worker = ActorRolloutRefWorker(config=composed.actor_rollout_ref, role="actor")
    worker.init_model()
    engine.set_policy_loss(worker, fields)

    seconds: dict[str, list[float]] = {"hook": [], "update": [], "rollout": [], "loss": []}

    def timed(owner, name, key):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                seconds[key].append(time.perf_counter() - started)

        setattr(owner, name, call)

    timed(mini_batch.MiniBatchHook, "__init__", "hook")
    timed(mini_batch.MiniBatchHook, "metrics", "hook")
    timed(rollout_batch, "gather_responses", "rollout")
    timed(rollout_batch, "rollout_metrics", "rollout")
    timed(policy_losses, "_measure", "loss")
    timed(UpdateRecord, "add_log_probs", "loss")
    timed(TrainingWorker, "train_batch", "update")
    random = np.random.default_rng(0)
    for _ in range(4):
        rows = [
            dict(
                prompt=random.integers(0, 200, PROMPT),
                response=random.integers(0, 200, RESPONSE),
                mask=np.ones(RESPONSE, dtype=np.int64),
                old_log_prob=-random.exponential(1.5, RESPONSE).astype(np.float32) - 4.0,
                advantage=np.full(RESPONSE, random.normal(), dtype=np.float32),
                entropy=random.exponential(1.0, RESPONSE).astype(np.float32),
                score=float(random.integers(0, 2)),
                uid=f"prompt {index // 8}",
            )
            for index in range(SEQUENCES)
        ]
        data = engine.to_tensordict(rows, dense=False)
        tu.assign_non_tensor(data, mini_batch_size=SEQUENCES, global_batch_size=SEQUENCES, epochs=1, temperature=1.0)
        tu.assign_non_tensor(data, calculate_entropy=True, global_steps=1, use_dynamic_bsz=False)
        tu.assign_non_tensor(data, max_token_len_per_gpu=None, micro_batch_size_per_gpu=8)
        worker.update_actor(data)
    hook = np.array(seconds["hook"]).reshape(-1, 2).sum(1)
    if seconds["loss"]:
        hook = hook + np.array(seconds["loss"]).reshape(len(hook), -1).sum(1)
    if seconds["rollout"]:  # each of these rollouts is one optimizer step
        hook = hook + np.array(seconds["rollout"]).reshape(-1, 2).sum(1)
    found = dict(
        hook=statistics.median(hook[1:]),
        update=statistics.median(seconds["update"][1:]),
        parameters=sum(parameter.numel() for parameter in fresh.parameters()),
    )
    (path.parent / "found.pickle").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
