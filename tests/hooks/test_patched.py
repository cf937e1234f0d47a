"""verl with its patch (``patches/``): the same tokens and gradient as with the wrapper.

Runs with every release of verl that has a patch (``make compat``): its engines, its legacy actor, or both.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.hooks import engine, legacy_actor, patched
from tests.hooks.engine import Layout
from tests.hooks.legacy_actor import MINI_BATCH
from tests.hooks.test_invariance import CLIP, KL, WIDE, alike, model_log_probs, relative
from verl_cov import patch
from verl_cov.hooks import versions

RELEASE = versions.installed_release()
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(RELEASE.version not in patch.patches(), reason="this verl has no patch")
needs_engine = pytest.mark.skipif(not RELEASE.engine, reason="this verl has no engines")
needs_legacy = pytest.mark.skipif(not RELEASE.legacy, reason="this verl has no legacy actor")


@pytest.fixture(scope="session")
def patched_verl(tmp_path_factory) -> str:
    return str(patched.copy(tmp_path_factory.mktemp("patched")))


def in_a_process(code: str, verl: str | None) -> str:
    """What ``code`` prints, with another verl first on the path."""
    environment = {**os.environ, "VERL_USE_EXTERNAL_MODULES": "verl_cov.plugin"}
    if verl is not None:
        environment["PYTHONPATH"] = f"{verl}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=2000
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


# --- the hook --------------------------------------------------------------------------------------------------------


def test_the_hooks_own_test_passes(patched_verl):
    test = ROOT / "patches" / "test_mini_batch_hook_on_cpu.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(test.parent), str(test)]
    environment = {**os.environ, "PYTHONPATH": patched_verl, "VERL_USE_EXTERNAL_PLUGINS": "none"}
    done = subprocess.run(command, env=environment, cwd=test.parent, capture_output=True, text=True, timeout=2000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


# --- verl's engines ---------------------------------------------------------------------------------------------------

ENGINE_VARIANTS = {
    "kl_cov": KL,
    "clip_cov": CLIP,
    "current": {**KL, "cov_log_prob": "current"},
    "micro_batch": {**CLIP, "cov_scope": "micro_batch"},
    "metrics": dict(loss_mode="vanilla", cov_metrics="full"),
}
LAYOUTS = (
    Layout("whole"),
    Layout("micro-batches of 2", micro=2),
    Layout("dynamic batching", tokens=64),
    Layout("dense", dense=True, micro=4),
)
WHO_TRAINS = """
import verl
from tests.hooks import older_verl
older_verl.prepare()
from verl.workers.engine_workers import TrainingWorker
print(TrainingWorker.train_batch.__code__.co_filename.rpartition("/verl")[2])
"""


@needs_engine
def test_the_wrapper_is_not_installed_in_a_patched_verl(patched_verl):
    assert in_a_process(WHO_TRAINS, None) == "_cov/hooks/seams.py"
    # verl's own, as its @register leaves it.
    assert in_a_process(WHO_TRAINS, patched_verl) == "/single_controller/base/decorator.py"


@pytest.mark.nightly
@needs_engine
def test_engines_select_and_learn_the_same_with_the_patch_as_with_the_wrapper(untrained_model, patched_verl):
    wrapped, patched_, mixed = (
        engine.run(
            engine.Spec(
                str(untrained_model), WIDE, LAYOUTS, ranks=2, variants=ENGINE_VARIANTS, verl=verl, verl_ranks=ranks
            )
        )
        for verl, ranks in ((None, None), (patched_verl, None), (patched_verl, (1,)))  # the last: one node forgotten
    )
    assert wrapped.keys() == patched_.keys() == mixed.keys()
    for key, found in [*patched_.items(), *mixed.items()]:
        assert found.selected == wrapped[key].selected, key
        assert np.array_equal(found.gradient, wrapped[key].gradient), key
        for name, value in wrapped[key].metrics.items():
            if "cov" in name and "seconds" not in name:
                assert found.metrics[name] == pytest.approx(value, nan_ok=True), (key, name)
        if key[0] in ("kl_cov", "clip_cov", "current"):
            assert len(found.selected) >= 3
    assert alike(patched_["kl_cov", 0, "whole"].selected) == alike(patched_["kl_cov", 0, "micro-batches of 2"].selected)


# --- the legacy actor -------------------------------------------------------------------------------------------------

LEGACY_LAYOUTS = (
    Layout("whole"),
    Layout("micro-batches of 4", micro=4),
    Layout("micro-batches of 2", micro=2),
    Layout("micro-batches of 1", micro=1),
    Layout("dynamic batching", tokens=64),
)
KL8 = {**KL, "kl_cov_ratio": 0.05}
CLIP8 = {**CLIP, "clip_cov_ratio": 0.05}
LEGACY_VARIANTS = {
    "kl_cov": KL8,
    "clip_cov": CLIP8,
    "on vanilla": {**KL8, "cov_base_loss": "vanilla"},
    "ours, micro_batch": {**KL8, "cov_scope": "micro_batch"},
    "verl's": dict(loss_mode="kl_cov", kl_cov_ratio=0.05, ppo_kl_coef=0.7),
    "metrics": dict(loss_mode="vanilla", cov_metrics="full"),
    "vanilla": dict(loss_mode="vanilla"),
}
WIDE_CLIP = tuple(override for override in WIDE if "clip_ratio" in override)


def legacy_layouts(ranks: int) -> tuple[Layout, ...]:
    """verl 0.7 deals dynamic micro-batches of different number to the ranks of its legacy actor
    (rearrange_micro_batches asks the other ranks only if it is given a group), which FSDP cannot train with."""
    uneven = ranks > 1 and RELEASE.version == "0.7.1"
    return tuple(layout for layout in LEGACY_LAYOUTS if not (uneven and layout.tokens))


@functools.cache
def legacy(model: str, verl: str | None, ranks: int):
    spec = legacy_actor.Spec(model, legacy_layouts(ranks), LEGACY_VARIANTS, ranks, WIDE_CLIP, verl)
    return legacy_actor.run(spec)


def legacy_oracle(folder: str, half: int, micro: int):
    """(KL-Cov's tokens, candidates of Clip-Cov, number of tokens, gradient) of a mini-batch, as that verl scales it:
    each micro-batch's own token mean, weighted by its share of the rows."""
    from transformers import AutoModelForCausalLM

    rows = engine.mini_batch()[half * MINI_BATCH : (half + 1) * MINI_BATCH]
    tokens = [(row["index"], int(at)) for row in rows for at in np.flatnonzero(row["mask"])]
    old = {(row["index"], int(at)): float(row["old_log_prob"][at]) for row in rows for at in range(len(row["mask"]))}
    advantage = {row["index"]: float(row["advantage"][0]) for row in rows}
    x = np.array([old[token] for token in tokens])
    a = np.array([advantage[row] for row, _ in tokens])
    covariance = dict(zip(tokens, (x - x.mean()) * (a - a.mean()), strict=True))
    count = max(int(0.05 * len(tokens)), 1)
    chosen = set(sorted(tokens, key=lambda token: covariance[token], reverse=True)[:count])
    inside = {token for token in tokens if CLIP["clip_cov_lb"] < covariance[token] < CLIP["clip_cov_ub"]}

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for first in range(0, MINI_BATCH, micro):
        part = rows[first : first + micro]
        losses = []
        for row in part:
            log_probs = model_log_probs(model, row)
            for at in np.flatnonzero(row["mask"]):
                log_ratio = log_probs[at] - float(row["old_log_prob"][at])
                penalty = 0.7 * log_ratio.abs() if (row["index"], int(at)) in chosen else 0.0
                losses.append(-advantage[row["index"]] * log_ratio.clamp(-20, 20).exp() + penalty)
        (torch.stack(losses).mean() * len(part) / MINI_BATCH).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return chosen, inside, count, gradient.double().numpy()


@needs_legacy
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_legacy_actor_selects_the_oracles_tokens_in_every_layout(untrained_model, patched_verl, ranks):
    folder = str(untrained_model)
    first = legacy(folder, patched_verl, 1)
    for layout in legacy_layouts(ranks):
        kl, clip = (legacy(folder, patched_verl, ranks)[loss, layout.name] for loss in ("kl_cov", "clip_cov"))
        assert not isinstance(kl, str), kl
        assert not isinstance(clip, str), clip
        for half in (0, 1):
            chosen, inside, count, gradient = legacy_oracle(folder, half, min(layout.micro, MINI_BATCH // ranks))
            assert alike(kl.selected[half]) == alike(chosen), (layout.name, half)
            assert clip.selected[half] <= inside
            assert len(clip.selected[half]) == count
            assert alike(clip.selected[half]) == alike(first["clip_cov", "whole"].selected[half])
            if layout.tokens is None:
                assert relative(kl.gradient[half], gradient) < 1e-5, (layout.name, half)
            assert kl.metrics["actor/cov/selected_tokens"][half] == count
        assert "actor/cov/top_0.002" in kl.metrics


@needs_legacy
def test_other_losses_and_metrics_in_the_legacy_actor(untrained_model, patched_verl):
    found = legacy(str(untrained_model), patched_verl, 1)
    for layout in LEGACY_LAYOUTS:
        of = {name: found[name, layout.name] for name in LEGACY_VARIANTS}
        assert not [report for report in of.values() if isinstance(report, str)]
        for half in (0, 1):
            # Metrics leave verl's own loss alone; our micro-batch scope is verl's own selection.
            assert np.array_equal(of["metrics"].gradient[half], of["vanilla"].gradient[half])
            if layout.micro >= 4 and layout.tokens is None:
                assert relative(of["ours, micro_batch"].gradient[half], of["verl's"].gradient[half]) < 1e-5
            assert relative(of["on vanilla"].gradient[half], of["vanilla"].gradient[half]) > 1e-3
        assert len(of["metrics"].metrics["actor/cov/mean"]) == 2
        assert "actor/cov/mean" not in of["vanilla"].metrics


@needs_legacy
def test_an_unpatched_legacy_actor_is_refused_when_it_is_made(untrained_model):
    found = legacy(str(untrained_model), None, 1)
    for name in ("kl_cov", "clip_cov", "metrics", "ours, micro_batch"):
        assert "verl-cov patch apply" in str(found[name, "whole"])
    assert not isinstance(found["vanilla", "whole"], str)
    assert not isinstance(found["verl's", "whole"], str)


@needs_legacy
def test_an_unpatched_legacy_actor_trains_within_micro_batches_and_without_metrics(untrained_model):
    quiet = {**KL8, "cov_scope": "micro_batch", "cov_metrics": "off"}
    variants = {"ours": quiet, "verl's": LEGACY_VARIANTS["verl's"]}
    found = legacy_actor.run(legacy_actor.Spec(str(untrained_model), LEGACY_LAYOUTS[:2], variants))
    for layout in LEGACY_LAYOUTS[:2]:
        ours, theirs = (found[name, layout.name] for name in variants)
        assert not isinstance(ours, str), ours
        assert not isinstance(theirs, str), theirs
        for half in (0, 1):
            assert relative(ours.gradient[half], theirs.gradient[half]) < 1e-5


@needs_legacy
def test_what_the_legacy_actor_cannot_do_is_refused_patched_or_not(untrained_model, patched_verl):
    variants = {
        "cov_log_prob=current": {**KL8, "cov_log_prob": "current"},
        "cov_dump_every=1": {**KL8, "cov_dump_every": 1, "cov_dump_dir": "dump"},
    }
    found = legacy_actor.run(legacy_actor.Spec(str(untrained_model), LEGACY_LAYOUTS[:1], variants, verl=patched_verl))
    for name in variants:
        assert name in str(found[name, "whole"])
