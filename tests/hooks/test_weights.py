"""Controls by weight through verl's engine: every layout gives the loss and gradient of an oracle in numpy.

The oracle's weights are tests/core/controls/oracles.py, its log-probs and gradient the plain transformers model's.
`make test` looks at two controls in a few layouts, `make nightly` at all in all.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.core.controls import oracles
from tests.hooks import engine
from tests.hooks.numpys_metrics import check, expected, ours
from tests.hooks.test_invariance import FULL, KL, LAYOUTS, SMALL, WIDE, Matrix, model_log_probs, relative
from tests.hooks.test_start import ACTOR, LOSS, RUN, refused, validate
from verl_cov.core.controls import catalogue
from verl_cov.hooks.batch import RankTokens
from verl_cov.hooks.checks import start
from verl_cov.hooks.config import CovPolicyLossConfig
from verl_cov.hooks.weights import Weighing

STARE = {"share": 0.1, "promote": 1.5, "damp": 0.5, "below_entropy": 10.0}
# Name: cov_weights, its oracle. Tokens that tie are in two rows alike, so that the hash's choice changes no gradient.
CONTROLS = {
    "high_entropy": ({"high_entropy": {}}, oracles.high_entropy),
    "stare": ({"stare": STARE}, lambda c: oracles.stare(c, 0.1, 1.5, 0.5)),
    "steer": ({"steer": {}}, oracles.steer),
    "repo": ({"repo": {"zeta": 0.1}}, lambda c: oracles.repo(c, 0.1)),
    "positive_advantage": ({"positive_advantage": {}}, oracles.positive_advantage),
    "clip_b": ({"clip_b": {"mu": 1.0}}, lambda c: oracles.clip_b(c, 1.0)),
    "cov_weight": ({"cov_weight": {"share": 0.05}}, lambda c: oracles.cov_weight(c, 0.05)),
    "two at once": (
        {"high_entropy": {"share": 0.5}, "repo": {"zeta": 0.1}},
        lambda c: oracles.high_entropy(c, 0.5) * oracles.repo(c, 0.1),
    ),
}
FEW = ("stare", "two at once")


def variants(names, **more):
    fields = {"loss_mode": "gpg", "cov_metrics": "full", **more}
    return {name: {**fields, "cov_weights": CONTROLS[name][0]} for name in names}


@functools.cache
def model(folder: str):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@functools.cache
def oracle(folder: str, name: str, seed: int, chunk: int = engine.ROWS, current: bool = False):
    """(weights of the valid tokens, loss, mean magnitude of the token losses, gradient) of one mini-batch.

    chunk: rows among which the weights are taken.
    """
    rows = engine.mini_batch(seed)
    log_probs = [model_log_probs(model(folder), row) for row in rows]
    weights = []
    for first in range(0, len(rows), chunk):
        columns = {"log_prob": [], "old_log_prob": [], "advantage": [], "entropy": []}
        for row, present in zip(rows[first : first + chunk], log_probs[first : first + chunk], strict=True):
            on = row["mask"] == 1
            for column in ("old_log_prob", "advantage", "entropy"):
                columns[column].append(row[column][on])
            columns["log_prob"].append(present.detach().numpy()[on] if current else row["old_log_prob"][on])
        weights.append(CONTROLS[name][1]({key: np.concatenate(parts).astype(float) for key, parts in columns.items()}))
    weights = np.concatenate(weights)
    on = [row["mask"] == 1 for row in rows]
    advantages = np.concatenate([row["advantage"][mask] for row, mask in zip(rows, on, strict=True)])
    valid = torch.cat([present[torch.from_numpy(mask)] for present, mask in zip(log_probs, on, strict=True)])
    losses = -torch.from_numpy(weights * advantages).float() * valid  # verl's gpg: every token has a gradient
    model(folder).zero_grad()
    losses.mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in model(folder).parameters() if p.grad is not None])
    return weights, float(losses.detach().mean()), float(losses.detach().abs().mean()), gradient.double().numpy()


# --- the contract -----------------------------------------------------------------------------------------------------

TINY = Matrix(tuple(LAYOUTS[at] for at in (0, 4, 6, 7)), SMALL.seeds)
TIERS = [
    pytest.param(FEW, TINY, 1, id="small-1"),
    pytest.param(FEW, TINY, 2, id="small-2"),
    *(pytest.param(tuple(CONTROLS), FULL, n, id=f"full-{n}", marks=pytest.mark.nightly) for n in (1, 2, 4)),
]


@pytest.mark.parametrize(("names", "matrix", "ranks"), TIERS)
def test_every_layout_gives_the_oracles_loss_and_gradient(untrained_model, names, matrix, ranks):
    folder = str(untrained_model)
    spec = engine.Spec(folder, WIDE, matrix.layouts, ranks=ranks, variants=variants(names), seeds=matrix.seeds)
    for (name, seed, layout), found in engine.run(spec).items():
        weights, loss, magnitude, gradient = oracle(folder, name, seed)
        where = (name, seed, layout)
        assert (weights != 1).sum() >= 3, where
        assert relative(found.gradient, gradient) < 2e-6, where
        assert found.metrics["loss"] == pytest.approx(loss, abs=2e-6 * magnitude), where
        if len(CONTROLS[name][0]) == 1:
            (control,) = CONTROLS[name][0]
            assert found.metrics[f"actor/cov/{control}/weight"] == pytest.approx(weights.mean(), rel=1e-5)
        # Covariances, kinds and ladder are those of the advantages as they were.
        check(ours(found), expected(seed), layout)


def test_current_log_probs_and_micro_batch_scope_are_what_they_say(untrained_model):
    folder, micro = str(untrained_model), LAYOUTS[2]
    asked = {
        "current": variants(["stare"], cov_log_prob="current")["stare"],
        "micro-batches": variants(["stare"], cov_scope="micro_batch")["stare"],
    }
    found = engine.run(engine.Spec(folder, WIDE, (micro,), variants=asked))
    *_, gradient = oracle(folder, "stare", 0, current=True)
    assert relative(found["current", 0, micro.name].gradient, gradient) < 2e-6
    weights, *_, gradient = oracle(folder, "stare", 0, chunk=micro.micro)
    report = found["micro-batches", 0, micro.name]
    assert relative(report.gradient, gradient) < 2e-6
    assert report.metrics["actor/cov/stare/weight"] == pytest.approx(weights.mean(), rel=1e-5)
    assert relative(gradient, oracle(folder, "stare", 0)[3]) > 1e-3


def test_a_selection_is_made_by_the_unweighted_advantages(untrained_model):
    weighted = {**KL, "cov_weights": {"positive_advantage": {"weight": 0.0}}}
    spec = engine.Spec(str(untrained_model), WIDE, LAYOUTS[4:5], variants={"with": weighted, "without": KL})
    by, without = (engine.run(spec)[name, 0, LAYOUTS[4].name] for name in ("with", "without"))
    assert by.selected == without.selected
    assert relative(by.gradient, without.gradient) > 1e-3


# --- one step ---------------------------------------------------------------------------------------------------------


def dense(**more):
    ones = torch.ones(2, 3)
    return {
        "response_mask": ones.long(),
        "old_log_probs": -ones,
        "advantages": ones.to(torch.float64),
        "input_ids": torch.arange(6).view(2, 3),
        **more,
    }


def weighing(data, **fields):
    cov = CovPolicyLossConfig(**fields)
    return Weighing(SimpleNamespace(group=None, data=data, worker=SimpleNamespace()), cov, 1, RankTokens.read(data))


def test_the_batch_gets_its_own_advantages_back_for_a_second_epoch():
    data = dense()
    before = data["advantages"]
    step = weighing(data, cov_weights={"positive_advantage": {"weight": 0.5}})
    assert (data["advantages"] == 0.5).all()
    assert data["advantages"].dtype == torch.float64
    metrics = step.finish()
    assert data["advantages"] is before
    assert metrics["actor/cov/positive_advantage/weight"] == 0.5


def test_a_batch_without_what_a_control_needs_ends_with_its_name():
    for name, needed in (("high_entropy", "the entropy at each token"), ("stare", "the rollout's mean entropy")):
        with pytest.raises(RuntimeError, match=f"cov_weights .{name}. needs {needed}"):
            weighing(dense(), cov_weights={name: {}})


# --- at start ---------------------------------------------------------------------------------------------------------

WEIGHTS = f"{LOSS}cov_weights."


@pytest.fixture(autouse=True)
def _no_watch(monkeypatch):
    monkeypatch.setattr(start, "watch", lambda own_cluster: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def run_of(controls: str) -> tuple[str, ...]:
    return (f"+verl_cov=[{controls},cpu]", *RUN[1:])


def test_each_name_composes_and_the_first_line_says_what_it_does(capsys):
    for name in catalogue.CONTROLS:
        validate(*run_of(name))
        numbers = catalogue.make(name, {}).describe()
        line = capsys.readouterr().out
        assert "is active: loss_mode=vanilla, advantages of the whole mini-batch of all ranks weighed by " in line
        assert f" weighed by {name} ({numbers})" in line
    validate(*run_of("ce_gppo"))
    assert "is active: loss_mode=verl_cov.ce_gppo, beta1=0.75, beta2=1" in capsys.readouterr().out
    validate(*run_of("clip_higher"))
    validate(*run_of("stare"), f"{WEIGHTS}stare=null")
    assert "cov_metrics=full on loss_mode=vanilla, which is verl's own" in capsys.readouterr().out
    validate(*run_of("clip_b"), f"{LOSS}cov_scope=micro_batch")
    assert "they change with the micro-batch size" in capsys.readouterr().out


def test_controls_compose_with_each_other_and_with_one_that_sets_the_loss(capsys):
    validate(*run_of("high_entropy,kl_cov,repo"), f"{WEIGHTS}high_entropy.share=0.4")
    line = capsys.readouterr().out
    assert "loss_mode=verl_cov.kl_cov on ratio" in line
    assert "weighed by high_entropy (share=0.4) x repo (" in line
    validate(*run_of("kl_cov"), f"{LOSS}cov_base_loss=verl_cov.ce_gppo")
    message = refused(*run_of("kl_cov,ce_gppo"))
    assert "two controls are composed, kl_cov and ce_gppo" in message
    assert "cov_base_loss=verl_cov.ce_gppo" in message
    assert "clip_cov and clip_higher" in refused(*run_of("clip_cov,clip_higher"))


@pytest.mark.parametrize(
    ("control", "overrides", "words"),
    [
        (
            "high_entropy",
            (f"{WEIGHTS}high_entropy.share=2",),
            "cov_weights.high_entropy.share=2 must be",
        ),
        ("stare", (f"+{WEIGHTS}stare.shares=2",), "cov_weights.stare.shares is unknown: did you mean share?"),
        ("stare", (f"+{WEIGHTS}steer=0.3",), "cov_weights.steer=0.3 must be {NUMBER: VALUE}"),
        ("stare", (f"+{WEIGHTS}stear.least=0.3",), "cov_weights.stear is unknown: did you mean"),
        ("high_entropy", (f"{LOSS}loss_mode=geo_mean",), "(high_entropy) cannot weigh the loss geo_mean"),
        ("high_entropy", (f"{LOSS}loss_mode=kl_cov",), "or loss_mode=verl_cov.kl_cov"),
        ("high_entropy,kl_cov", (f"{LOSS}cov_base_loss=geo_mean",), "policy_loss.cov_base_loss to one of ratio"),
        ("steer", ("algorithm.rollout_correction.bypass_mode=true",), "cov_weights.steer needs entropies"),
        (
            "repo",
            (f"{ACTOR}loss_agg_mode=seq-mean-token-sum-norm",),
            f"set {ACTOR}loss_scale_factor",
        ),
        ("repo", (f"{LOSS}cov_scope=micro_batch", f"{LOSS}cov_log_prob=current"), "cov_log_prob=current"),
        ("ce_gppo", (f"{LOSS}cov_gppo_beta1=-1",), "cov_gppo_beta1=-1 must be a finite number of at least 0"),
    ],
)
def test_what_contradicts_is_refused_with_the_fix(control, overrides, words):
    assert words in refused(*run_of(control), *overrides)
