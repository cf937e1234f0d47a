"""A target that cannot be held, or that says nothing, ends the run at start with one line: the field and the fix."""

from __future__ import annotations

import json

import pytest

from tests.hooks.test_start import ACTOR, LOSS, RUN, refused, validate
from verl_cov.hooks import target_refusals
from verl_cov.hooks.checks import start

ON = ("+verl_cov=[kl_cov,target,cpu]", *RUN[1:])
HALF = "target.target_entropy=0.5"


@pytest.fixture(autouse=True)
def _no_watch(monkeypatch):
    monkeypatch.setattr(start, "watch", lambda own_cluster: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ((), ("say which entropy in one way", "target.target_entropy=0.3")),
        ((HALF, "target.fraction=0.5"), ("2 are set: target.target_entropy, target.fraction",)),
        (("target.target_entropy=50%",), ("target.target_entropy='50%'", "not a percentage", "target.fraction=0.5")),
        (("target.target_entropy=-1",), ("target.target_entropy=-1", "above 0, nats per token")),
        (("target.target_entropy=nan",), ("target.target_entropy=nan", "must be a number")),
        (("target.fraction=50",), ("target.fraction=50", "for 50 % write 0.5")),
        (("target.hold=0",), ("target.hold=0", "whole number of rollouts")),
        (("target.hold=2.5",), ("target.hold=2.5", "whole number of rollouts")),
        (("target.path=0.5",), ("target.path must be a list of [rollout, value]",)),
        (("target.path=[[0,1.0],[10,null],[20,0.3]]",), ("point 2 is [10, None], a hole in the path",)),
        (("target.path=[[0,1.0],[20]]",), ("point 2 is [20], a hole in the path",)),
        (("target.path=[[5,1.0],[9,0.5]]",), ("must begin at rollout 0",)),
        (("target.path=[[0,1.0],[20,0.5],[10,0.3]]",), ("must ascend", "rollout 10 comes after 20")),
        (("target.path=[[0,1.0],[20,0]]",), ("target.path has 0", "above 0 nats")),
        (("target.path=[[0,1.0],[20,0.5]]", "target.shape=cosin"), ("target.shape='cosin'", "did you mean cosine?")),
        ((HALF, "target.min=3", "target.max=1"), ("target.min=3 is above target.max=1",)),
        ((HALF, "target.min=1", "target.max=1"), ("could not move",)),
        ((HALF, "target.min=2"), ("ppo_kl_coef=1 is below target.min=2", "set target.start")),
        ((HALF, "target.start=1000", "target.max=10"), ("target.start=1000 is above target.max=10: set",)),
        (("target.target_entropy=50",), ("asks for 50 nats per token, above the logarithm of the vocabulary",)),
        ((HALF, "target.min=0"), ("target.min=0", "rule=pi multiplies")),
        ((HALF, f"{LOSS}ppo_kl_coef=0"), ("rule=pi multiplies the knob", "target.start")),
        ((HALF, "target.max=5%"), ("target.max='5%'", "not a percentage")),
        ((HALF, "target.rule=pid"), ("target.rule='pid'", "did you mean pi?")),
        ((HALF, "target.measure=sample"), ("target.measure='sample'", "did you mean sampled?")),
        ((HALF, "target.gain=0", "target.integral=0"), ("would never move",)),
        ((HALF, "target.approach=-1"), ("target.approach=-1 must be a whole number of rollouts", "0 for at once")),
        ((HALF, "target.approach=2.5"), ("target.approach=2.5 must be a whole number of rollouts", "0 for at once")),
        ((HALF, "target.knob=ppo_kl_coeff"), ("target.knob=ppo_kl_coeff", "did you mean ppo_kl_coef?")),
        ((HALF, "target.knob=clip_cov_ratio"), ("a number of verl_cov.clip_cov", "use ppo_kl_coef or kl_cov_ratio")),
        ((HALF, "target.knob=ratio", "target.max=2"), ("target.max=2", "kl_cov_ratio is at most 0.05")),
        ((HALF, "target.knob=repo.zeta"), ("a number of repo", "use ppo_kl_coef or kl_cov_ratio or entropy_coeff")),
        ((HALF, "target.knob=entropy_coeff"), (f"{ACTOR}entropy_coeff=0", "1e-3")),
        ((HALF, "+target.gian=3"), ("target.gian is unknown", "did you mean gain?")),
        (
            (HALF, "algorithm.rollout_correction.bypass_mode=true"),
            ("bypass_mode=True", "exact entropies", "target.measure=sampled"),
        ),
        (
            (HALF, "trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=4"),
            ("parameter_sync_step=4", "set it to 1"),
        ),
        (
            (HALF, f"{LOSS}ppo_kl_coef={{start:1,end:0,over:100}}"),
            ("ppo_kl_coef is a schedule, and target.knob=ppo_kl_coef moves it too",),
        ),
        ((HALF, f"{LOSS}ppo_kl_coef={{start:1,end:0,over:10%}}"), ("ppo_kl_coef.over='10%'", "whole number")),
        ((HALF, f"{LOSS}ppo_kl_coef={{start:1,end:0,ovr:10}}"), ("ppo_kl_coef.ovr is unknown", "did you mean over?")),
        ((HALF, f"{LOSS}ppo_kl_coef={{start:1,end:-1,over:10}}"), ("ppo_kl_coef.end=-1", "negative")),
        ((HALF, f"{LOSS}ppo_kl_coef={{start:1,over:10}}"), ("ppo_kl_coef.end=None",)),
        ((HALF, f"{LOSS}kl_cov_ratio={{start:1,end:0.01,over:9}}"), ("kl_cov_ratio.start=1", "not a percentage")),
        ((HALF, f"{LOSS}clip_cov_ratio={{start:1e-2,end:1e-3,over:9}}"), ("no number of the run's control",)),
    ],
)
def test_bad_targets_and_schedules(overrides, parts):
    message = refused(*ON, *overrides)
    for part in parts:
        assert part in message, message


def test_a_target_above_the_logarithm_of_the_vocabulary(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 100}))
    model = f"actor_rollout_ref.model.path={tmp_path}"
    assert "ln 100 = 4.61" in refused(*ON, model, "target.target_entropy=5")
    assert "target.path asks for 6 nats" in refused(*ON, model, "target.path=[[0,6],[9,0.5]]")


def test_the_legacy_actor_cannot_follow(monkeypatch):
    from tests.hooks.test_start import config
    from verl_cov.hooks import versions

    run = config(*ON, HALF)
    for release, fix in (("0.7.1", "use_legacy_worker_impl=disable"), ("0.6.1", "verl 0.7.1 or later")):
        monkeypatch.setattr(versions, "installed_release", lambda release=release: versions.release_of(release))
        with pytest.raises(ValueError, match=fix):
            target_refusals.refuse(run)


def test_the_start_up_line_says_target_and_schedule(capsys):
    validate(*ON, HALF, f"{LOSS}cov_metrics=off")
    assert "cov_metrics=off, target: entropy 0.5 by ppo_kl_coef (pi)" in capsys.readouterr().out
    bonus = ("+verl_cov=[metrics,target,cpu]", *RUN[1:], "target.fraction=0.5", "target.knob=entropy_coeff")
    validate(*bonus, f"{ACTOR}entropy_coeff=1e-3")
    assert "target: 0.5 of the first entropy by entropy_coeff (pi)" in capsys.readouterr().out
    validate(*RUN, f"{LOSS}ppo_kl_coef={{start:1,end:0,over:100,shape:cosine}}")
    assert "is active" in (out := capsys.readouterr().out)
    assert "ppo_kl_coef cosine from 1 at 0, 0 at 100" in out
    validate(*ON, HALF, "target.knob=ratio", "algorithm.rollout_correction.bypass_mode=true", "target.measure=sampled")
    assert "by kl_cov_ratio (pi)" in capsys.readouterr().out
    ends = ("target.start=0.01", "target.max=0.05")
    validate("+verl_cov=[repo,target,cpu]", *RUN[1:], HALF, "target.knob=repo.zeta", *ends)
    assert "zeta=" not in (out := capsys.readouterr().out)
    assert "repo (zeta by the target" in out
    assert "by repo.zeta (pi) from 0.01 within 0.0001 to 0.05" in out


def test_a_fraction_above_one_is_told_and_refused_where_the_knob_only_holds(capsys):
    validate(*ON, "target.fraction=1.5")
    assert "WARNING: target.fraction=1.5 asks for more entropy than" in capsys.readouterr().out
    validate(*ON, "target.fraction=1")
    assert "WARNING: target" not in capsys.readouterr().out
    clip = ("+verl_cov=[clip_cov,target,cpu]", *RUN[1:], "target.knob=ratio", f"{LOSS}clip_cov_ratio=0.001")
    message = refused(*clip, "target.fraction=1.5")
    assert "target.fraction=1.5 asks for more entropy than the first rollout has: clip_cov_ratio takes" in message
