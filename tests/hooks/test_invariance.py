"""The contract: which tokens are chosen, the loss and the gradient depend on the mini-batch only, not on its layout.

Runs verl's own actor worker (FSDP2 engine, gloo) on fixed mini-batches: micro-batches of 1, 2, 4, 8 and all rows,
static and dynamic, packed (remove_padding) or not, jagged (V1 trainer) and dense (legacy trainer), with padding rows,
on 1, 2 and 4 ranks with the rows dealt in different orders, ranked by old and by current log-probs, for both losses and
three seeds. Tokens, loss and gradient are compared with the self-test's oracle (:mod:`verl_cov.selftest.oracle`), that
shares no code with what it checks. So are the metrics (numpys_metrics.py).

`make test` runs a small matrix of it (:data:`SMALL`: every kind of layout, both losses and log-probs, one seed, 1 and 2
ranks); `make nightly` all layouts, seeds and ranks.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.hooks import engine
from tests.hooks.engine import ROWS, Layout
from tests.hooks.numpys_metrics import check, expected, ours
from verl_cov.hooks import versions
from verl_cov.hooks.base_losses import known_base_losses
from verl_cov.selftest import engine as driver
from verl_cov.selftest import oracle as oracles
from verl_cov.selftest.oracle import model_log_probs

SEEDS = (0, 1, 2)
STEP = 3
RATIO = 0.05
BAND = (0.1, 20.0)
RANDOM_ORDER = (7, 2, 13, 0, 9, 15, 4, 11, 1, 14, 6, 3, 12, 8, 5, 10)
LAYOUTS = (
    Layout("whole"),
    Layout("micro-batches of 8", micro=8),
    Layout("micro-batches of 4", micro=4),
    Layout("micro-batches of 2", micro=2, order=tuple(reversed(range(ROWS)))),
    Layout("micro-batches of 1", micro=1, order=RANDOM_ORDER),
    Layout("dynamic batching", tokens=64),
    Layout("dynamic batching, other order", tokens=40, order=RANDOM_ORDER),
    Layout("dense, as the legacy trainer", dense=True, micro=4),
    Layout("with padding rows", padding_row=True, micro=2),
    Layout("remove_padding", remove_padding=True),
    Layout("remove_padding, dynamic", remove_padding=True, tokens=64),
)
KL = dict(loss_mode="verl_cov.kl_cov", kl_cov_ratio=RATIO, ppo_kl_coef=0.7, cov_seed=11)
CLIP = dict(loss_mode="verl_cov.clip_cov", clip_cov_ratio=RATIO, clip_cov_lb=BAND[0], clip_cov_ub=BAND[1], cov_seed=11)
VARIANTS = {
    "kl_cov, old": KL,
    "kl_cov, current": {**KL, "cov_log_prob": "current"},
    "clip_cov, old": CLIP,
    "clip_cov, current": {**CLIP, "cov_log_prob": "current"},
}
WIDE = ("+verl_cov=cpu", *driver.WIDE)


@dataclass(frozen=True)
class Matrix:
    """Layouts and seeds of the contract. On one rank a matrix has the whole mini-batch too, which all are compared
    with."""

    layouts: tuple[Layout, ...]
    seeds: tuple[int, ...]


FULL = Matrix(LAYOUTS, SEEDS)
# Small micro-batches in another order, dynamic batching, the legacy trainer's dense batch, padding rows.
SMALL = Matrix(tuple(LAYOUTS[at] for at in (0, 3, 6, 7, 8)), SEEDS[:1])
TIERS = [
    pytest.param(SMALL, 1, id="small-1"),
    pytest.param(SMALL, 2, id="small-2"),
    *(pytest.param(FULL, ranks, id=f"full-{ranks}", marks=pytest.mark.nightly) for ranks in (1, 2, 4)),
]


@functools.cache
def reports(model: str, matrix: Matrix, ranks: int) -> dict[tuple[str, int, str], engine.Report]:
    return engine.run(
        engine.Spec(model, WIDE, matrix.layouts, ranks=ranks, step=STEP, variants=VARIANTS, seeds=matrix.seeds)
    )


# --- the oracle -------------------------------------------------------------------------------------------------------


def update(rows, log_probs, variant: str):
    """(chosen tokens, loss, mean magnitude of the token losses) by the oracle, whatever model gave the log-probs."""
    return oracles.update(rows, log_probs, asked_of_oracle(variant))


def asked_of_oracle(variant: str) -> oracles.Control:
    kind, current = variant.split("_")[0], variant.endswith("current")
    return oracles.Control(kind, RATIO, BAND, coefficient=0.7, seed=11, step=STEP << 20, current=current)


@functools.cache
def oracle(folder: str, variant: str, seed: int):
    """(chosen tokens, loss, mean magnitude of the token losses, gradient) of one mini-batch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = oracles.expected(model, engine.mini_batch(seed), asked_of_oracle(variant))
    return found.chosen, found.loss, found.magnitude, found.gradient


def alike(selected: set[tuple[int, int]]) -> Counter[tuple[int, int]]:
    """The selection with the two copies of one sequence (rows 4 and 5) called the same: which copy is taken is free."""
    return Counter((4 if row == 5 else row, at) for row, at in selected)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("matrix", "ranks"), TIERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layout_gives_the_oracles_tokens_loss_and_gradient(untrained_model, variant, matrix, ranks):
    folder = str(untrained_model)
    for seed in matrix.seeds:
        chosen, loss, magnitude, gradient = oracle(folder, variant, seed)
        first = reports(folder, matrix, 1)[variant, seed, "whole"]
        assert len(chosen) >= 3
        for layout in matrix.layouts:
            found = reports(folder, matrix, ranks)[variant, seed, layout.name]
            where = (seed, layout.name)
            assert alike(found.selected) == alike(chosen), where
            # Against the size of the terms: the loss itself is what advantages of both signs leave over.
            assert found.metrics["loss"] == pytest.approx(loss, abs=1e-6 * magnitude), where
            assert found.metrics["loss"] == pytest.approx(first.metrics["loss"], abs=1e-6 * magnitude), where
            assert relative(found.gradient, gradient) < 1e-6, where
            assert relative(found.gradient, first.gradient) < 1e-6, where


@pytest.mark.parametrize(("matrix", "ranks"), TIERS)
@pytest.mark.parametrize("variant", ["kl_cov, old", "clip_cov, old"])
def test_every_layout_reports_numpys_numbers(untrained_model, variant, matrix, ranks):
    for seed in matrix.seeds:
        for layout in matrix.layouts:
            found = ours(reports(str(untrained_model), matrix, ranks)[variant, seed, layout.name])
            check(found, expected(seed), layout.name)
            assert found["selected_tokens"] == int(RATIO * found["tokens"])


def test_current_reports_its_cost_and_how_many_tokens_old_would_have_chosen(untrained_model):
    folder = str(untrained_model)
    for seed in SMALL.seeds:
        for loss in ("kl_cov", "clip_cov"):
            current, old = (reports(folder, SMALL, 2)[f"{loss}, {by}", seed, "whole"] for by in ("current", "old"))
            shared = len(current.selected & old.selected) / len(current.selected)
            assert current.metrics["actor/cov/overlap_old"] == pytest.approx(shared)
            assert current.metrics["actor/cov/forward_seconds"] > 0
            assert "actor/cov/forward_seconds" not in old.metrics


def test_a_resumed_process_draws_what_the_uninterrupted_one_would_have(untrained_model):
    folder, variants = str(untrained_model), {"clip_cov": CLIP}
    steps = tuple(Layout(f"step {step}", step=step) for step in (STEP, STEP + 1))
    uninterrupted = engine.run(engine.Spec(folder, WIDE, steps, variants=variants))
    resumed = engine.run(engine.Spec(folder, WIDE, steps[1:], ranks=2, variants=variants))
    first, second = (uninterrupted["clip_cov", 0, layout.name].selected for layout in steps)
    assert alike(resumed["clip_cov", 0, steps[1].name].selected) == alike(second)
    assert len(first) == len(second)
    assert first != second


# --- where the policy is the rollout policy ---------------------------------------------------------------------------

ON_POLICY = {
    f"{estimator} {beta}": {**KL, "cov_kl": estimator, "ppo_kl_coef": beta}
    for estimator in ("abs", "k2", "k3")
    for beta in (0.0, 1.0)
}
RELEASED = {f"released {beta}": {**KL, "cov_kl_dead_zone": 0, "ppo_kl_coef": beta} for beta in (0.0, 1.0)}


@pytest.mark.parametrize("updates", [1, 2])
def test_rounding_of_old_log_probs_decides_no_gradient(untrained_model, updates):
    """Old log-probs by verl's engine in other micro-batches than the training's, and weights that stay: |x| < 1e-6."""
    layouts = tuple(LAYOUTS[at] for at in (0, 4, 6))
    variants = {**ON_POLICY, **RELEASED} if updates == 1 else ON_POLICY
    spec = engine.Spec(
        str(untrained_model), WIDE, layouts, variants=variants, seeds=SEEDS, old_by=ROWS, updates=updates
    )
    found = engine.run(spec)

    def apart(name: str) -> float:
        with_penalty, without = ({at: found[(f"{name} {beta}", *at)].gradient for at in at_all} for beta in (1.0, 0.0))
        return max(relative(with_penalty[at], without[at]) for at in at_all)

    at_all = [(seed, layout.name) for seed in SEEDS for layout in layouts]
    for estimator in ("abs", "k2", "k3"):
        assert apart(estimator) < 1e-6
        for seed in SEEDS:
            gradients = [found[f"{estimator} 1.0", seed, layout.name].gradient for layout in layouts]
            assert max(relative(gradient, gradients[0]) for gradient in gradients) < 1e-6
    zones = {report.metrics["actor/cov/kl_dead_zone"] for key, report in found.items() if key[0] == "abs 1.0"}
    assert zones == {1e-5}
    if updates == 1:
        assert apart("released") > 1e-3  # the fault that the zone is there for


# --- every base loss, every aggregation -------------------------------------------------------------------------------

AGGREGATIONS = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
if versions.installed_release().v1:
    AGGREGATIONS.append("token-sum")


def pairs(every: bool) -> list[tuple[str, str]]:
    """Base losses and aggregations: every pair, or each of both at least once."""
    bases = known_base_losses()
    mixed = [(base, AGGREGATIONS[at % len(AGGREGATIONS)]) for at, base in enumerate(bases)]
    return [(base, aggregation) for base in bases for aggregation in AGGREGATIONS] if every else mixed


@pytest.mark.parametrize(
    ("every", "ranks"), [(False, 1), *(pytest.param(True, ranks, marks=pytest.mark.nightly) for ranks in (1, 2))]
)
def test_every_base_loss_keeps_the_contract_with_every_aggregation(untrained_model, every, ranks):
    variants = {
        f"{control['loss_mode']} on {base}, {aggregation}": {
            **control,
            "cov_base_loss": base,
            "loss_agg_mode": aggregation,
            **({"dro_beta": 0.1} if base == "dro" else {}),
        }
        for base, aggregation in pairs(every)
        for control in (KL, CLIP)
    }
    layouts = tuple(LAYOUTS[at] for at in (0, 4, 6))
    whole = engine.run(engine.Spec(str(untrained_model), WIDE, layouts[:1], variants=variants))
    found = engine.run(engine.Spec(str(untrained_model), WIDE, layouts[1:], ranks=ranks, variants=variants))
    for (name, seed, layout), report in found.items():
        first = whole[name, seed, "whole"]
        assert relative(report.gradient, first.gradient) < 2e-6, (name, layout)
        assert alike(report.selected) == alike(first.selected), (name, layout)


# --- what the control changed -----------------------------------------------------------------------------------------


def test_a_run_knows_what_its_control_changed_and_what_current_would_have_selected(untrained_model):
    folder = str(untrained_model)
    for seed in SMALL.seeds:
        for variant in ("kl_cov, old", "clip_cov, old"):
            found = [
                reports(folder, SMALL, ranks)[variant, seed, layout.name]
                for layout in SMALL.layouts
                for ranks in (1, 2)
            ]
            current = reports(folder, SMALL, 1)[variant.replace("old", "current"), seed, "whole"].selected
            for report in found:
                overlap = len(report.selected & current) / len(report.selected)
                assert report.metrics["actor/cov/overlap_current"] == pytest.approx(overlap, abs=1 / len(current))
                share = report.metrics["actor/cov/changed_gradient_frac"]
                assert share == pytest.approx(changed_share(folder, variant, seed), rel=1e-4)


def changed_share(folder: str, variant: str, seed: int) -> float:
    """The share of the gradient by the log-probs that the control changed: from the formulas, by numpy."""
    from transformers import AutoModelForCausalLM

    rows = engine.mini_batch(seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        new = [model_log_probs(model, row).numpy() for row in rows]
    chosen = {(row, at) for row, at in update(rows, [torch.tensor(x) for x in new], variant)[0]}
    changed = total = 0.0
    for row, log_probs in zip(rows, new, strict=True):
        for at in np.flatnonzero(row["mask"]):
            x, a = float(log_probs[at]) - float(row["old_log_prob"][at]), float(row["advantage"][at])
            slope = a * np.exp(x)
            if variant.startswith("clip") and ((a > 0 and np.exp(x) > 2) or (a < 0 and np.exp(x) > 3)):
                slope = 0.0  # PPO's clip at [0, 2], and the dual clip at 3
            total += abs(slope)
            if (row["index"], int(at)) in chosen:
                changed += 0.7 if variant.startswith("kl") else abs(slope)
    return changed / total


# --- micro-batch scope, for comparison --------------------------------------------------------------------------------

UPSTREAM = {
    "verl": dict(loss_mode="kl_cov", kl_cov_ratio=RATIO, ppo_kl_coef=0.7),
    "ours": {**KL, "cov_scope": "micro_batch"},
}


@pytest.mark.parametrize("matrix", [SMALL, pytest.param(FULL, marks=pytest.mark.nightly)], ids=["small", "full"])
def test_micro_batch_scope_is_verls_own_kl_cov_and_depends_on_the_layout(untrained_model, matrix):
    spec = engine.Spec(str(untrained_model), WIDE, matrix.layouts, variants=UPSTREAM, seeds=matrix.seeds)
    found, apart = engine.run(spec), []
    for seed in matrix.seeds:
        *_, exact = oracle(str(untrained_model), "kl_cov, current", seed)
        for layout in matrix.layouts:
            ours, theirs = (found[name, seed, layout.name] for name in ("ours", "verl"))
            # With one sequence (or two that are alike) in a micro-batch every covariance is 0: all ties.
            if layout.micro >= 4 and layout.tokens is None:
                assert relative(ours.gradient, theirs.gradient) < 1e-6, layout.name
                assert ours.metrics["loss"] == pytest.approx(theirs.metrics["loss"], rel=1e-6)
            apart.append(relative(theirs.gradient, exact))
    assert min(apart) < 1e-5  # the whole mini-batch in one micro-batch
    assert max(apart) > 1e-2


# --- bad batches ------------------------------------------------------------------------------------------------------


def _mask_everything(rows):
    for row in rows:
        row["mask"] = np.zeros_like(row["mask"])


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_a_mini_batch_without_a_valid_token_gives_zero_loss_and_a_finite_gradient(untrained_model, ranks):
    variants = {**VARIANTS, "micro-batch scope": UPSTREAM["ours"]}
    spec = engine.Spec(str(untrained_model), WIDE, LAYOUTS[:2], ranks=ranks, variants=variants, edit=_mask_everything)
    for name, found in engine.run(spec).items():
        assert found.metrics["loss"] == 0, name
        assert (found.gradient == 0).all(), name
        assert found.metrics["actor/cov/tokens"] == found.metrics["actor/cov/selected_tokens"] == 0


def _mask_second_half(rows):
    for row in rows[ROWS // 2 :]:
        row["mask"] = np.zeros_like(row["mask"])


def test_a_rank_without_a_valid_token_takes_part(untrained_model):
    folder = str(untrained_model)
    one, two = (
        engine.run(engine.Spec(folder, WIDE, LAYOUTS[:1], ranks=ranks, variants=VARIANTS, edit=_mask_second_half))
        for ranks in (1, 2)
    )
    for key in one:
        assert alike(one[key].selected) == alike(two[key].selected)
        assert one[key].selected
        assert relative(two[key].gradient, one[key].gradient) < 1e-6
