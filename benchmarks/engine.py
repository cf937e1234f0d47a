"""What the selection costs in verl's FSDP2 engine, and how far off selecting within micro-batches is."""

from __future__ import annotations

import os
import pickle
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import table
from tests.hooks import engine, test_invariance, test_weights
from tests.hooks.engine import Layout
from verl_cov.core.controls import catalogue
from verl_cov.selftest import engine as driver
from verl_cov.selftest import ranks, speed
from verl_cov.selftest.batches import save_untrained_model

SEQUENCES, PROMPT, RESPONSE = 64, 64, 256
VARIANTS = test_invariance.VARIANTS


def share() -> str:
    """Share of our hooks in an optimizer step, one process, a Qwen2 of 0.2 M and one of 6.4 M parameters; controls by
    weight with the small one alone, where the share is largest."""
    variants = {f"{name}, metrics off": {**fields, "cov_metrics": "off"} for name, fields in VARIANTS.items()}
    for level in ("basic", "full"):
        variants[f"kl_cov, old, metrics {level}"] = {**VARIANTS["kl_cov, old"], "cov_metrics": level}
        variants[f"vanilla, metrics {level}"] = dict(loss_mode="vanilla", cov_metrics=level)
    weights = {
        f"vanilla, {name}, metrics off": dict(loss_mode="vanilla", cov_metrics="off", cov_weights={name: {}})
        for name in catalogue.CONTROLS
    }
    rows = []
    for hidden, layers, these in ((64, 2, variants | weights), (256, 6, variants)):
        for variant, fields in these.items():
            found = _in_process(hidden, layers, fields)
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


def _in_process(hidden: int, layers: int, fields: dict) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.pickle"
        spec.write_bytes(pickle.dumps((hidden, layers, fields)))
        command = [sys.executable, "-m", "benchmarks.engine", str(spec)]
        # Before anything imports verl, which looks for its platform once.
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "VERL_PLATFORM": "cpu"})
        return pickle.loads((Path(folder) / "found.pickle").read_bytes())


def _main(path: Path) -> None:
    hidden, layers, fields = pickle.loads(path.read_bytes())
    import verl  # noqa: F401

    here = ranks.start("cpu")
    ranks.start_group(here)
    model = save_untrained_model(path.parent / "model", 1024, layers, hidden=hidden, inner=4 * hidden)
    worker = driver.actor_worker(test_invariance.WIDE, str(model))
    driver.set_policy_loss(worker, fields)
    seconds, update = speed.share_of_step(worker, speed.long_rows(SEQUENCES, PROMPT, RESPONSE), rounds=3)
    parameters = sum(parameter.numel() for parameter in worker.actor.engine.module.parameters())
    found = dict(hook=seconds, update=update, parameters=parameters)
    (path.parent / "found.pickle").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
