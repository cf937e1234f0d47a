"""The contract: which tokens are chosen, the loss and the gradient depend on the mini-batch only, not on its layout.

Runs verl's own actor worker (FSDP2 engine, gloo) on one fixed mini-batch, once for each way of laying it out.
"""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest

from tests.host import engine
from tests.host.engine import ROWS, Layout

RATIO = 0.05
LAYOUTS = (
    Layout("whole"),
    Layout("micro-batches of 4", micro=4),
    Layout("micro-batches of 1", micro=1),
    Layout("dynamic batching", tokens=64),
    Layout("rows in another order", order=tuple(reversed(range(ROWS))), micro=2),
    Layout("dense, as the legacy trainer", dense=True, micro=4),
    Layout("with padding rows", padding_row=True, micro=2),
)
CONTROLS = {
    "kl_cov": ("+verl_cov=[kl_cov,cpu]", f"actor_rollout_ref.actor.policy_loss.kl_cov_ratio={RATIO}"),
    "clip_cov": (
        "+verl_cov=[clip_cov,cpu]",
        f"actor_rollout_ref.actor.policy_loss.clip_cov_ratio={RATIO}",
        "actor_rollout_ref.actor.policy_loss.clip_cov_lb=0.1",
    ),
}


@functools.cache
def reports(model: str, control: str, ranks: int, step: int = 3) -> dict[str, engine.Report]:
    layouts = LAYOUTS if step == 3 else LAYOUTS[:1]
    return engine.run(engine.Spec(model, CONTROLS[control], layouts, ranks=ranks, step=step))


def alike(selected: set[tuple[int, int]]) -> Counter[tuple[int, int]]:
    """The selection with the two copies of one sequence (rows 4 and 5) called the same: which copy is taken is free."""
    return Counter((4 if row == 5 else row, at) for row, at in selected)


def covariances() -> dict[tuple[int, int], float]:
    """The paper's Eq. 10 on the fixed mini-batch, written down a second time, in float64."""
    tokens = {
        (row["index"], at): (float(row["old_log_prob"][at]), float(row["advantage"][at]))
        for row in engine.mini_batch()
        for at in np.flatnonzero(row["mask"])
    }
    mean = np.mean(list(tokens.values()), axis=0)
    return {key: float(np.prod(np.array(value) - mean)) for key, value in tokens.items()}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("control", CONTROLS)
def test_every_layout_gives_the_same_tokens_loss_and_gradient(untrained_model, control, ranks):
    reference = reports(str(untrained_model), control, 1)["whole"]
    for name, report in reports(str(untrained_model), control, ranks).items():
        assert alike(report.selected) == alike(reference.selected), name
        assert report.metrics["loss"] == pytest.approx(reference.metrics["loss"], rel=1e-5), name
        difference = np.linalg.norm(report.gradient - reference.gradient) / np.linalg.norm(reference.gradient)
        assert difference < 1e-5, (name, difference)


def test_kl_cov_takes_the_largest_covariances_of_the_mini_batch(untrained_model):
    covariance = covariances()
    count = int(RATIO * len(covariance))
    largest = sorted(covariance, key=covariance.__getitem__, reverse=True)[:count]
    assert reports(str(untrained_model), "kl_cov", 2)["whole"].selected == set(largest)


def test_clip_cov_draws_from_the_band_and_another_step_draws_others(untrained_model):
    covariance = covariances()
    band = {key for key, value in covariance.items() if 0.1 < value < 5}
    first = reports(str(untrained_model), "clip_cov", 1)["whole"].selected
    other = reports(str(untrained_model), "clip_cov", 1, step=4)["whole"].selected
    assert first < band
    assert other < band
    assert len(first) == len(other) == int(RATIO * len(covariance)) < len(band)
    assert first != other


def test_metrics_are_exact_in_every_layout(untrained_model):
    covariance = np.array(list(covariances().values()))
    for ranks in (1, 2):
        for name, report in reports(str(untrained_model), "kl_cov", ranks).items():
            assert report.metrics["actor/cov/tokens"] == len(covariance), name
            assert report.metrics["actor/cov/mean"] == pytest.approx(covariance.mean(), abs=1e-6), name
            assert report.metrics["actor/cov/std"] == pytest.approx(covariance.std(), rel=1e-5), name
            assert report.metrics["actor/cov/selected_tokens"] == int(RATIO * len(covariance)), name


def test_removed_tokens_and_the_penalty_change_the_gradient(untrained_model):
    """A control that did nothing would pass every test above."""
    with_control = reports(str(untrained_model), "clip_cov", 1)["whole"].gradient
    vanilla = engine.run(
        engine.Spec(
            str(untrained_model),
            ("+verl_cov=cpu", *(f"actor_rollout_ref.actor.clip_ratio{side}=1.0" for side in ("", "_low", "_high"))),
            LAYOUTS[:1],
        )
    )["whole"]
    assert vanilla.selected == set()
    assert np.linalg.norm(with_control - vanilla.gradient) > 1e-3 * np.linalg.norm(vanilla.gradient)
