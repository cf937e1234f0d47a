"""What is plainly wrong on a command line is refused before verl is imported, and nobody else's words are looked at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from verl_cov.hooks import policy_loss_values
from verl_cov.hooks.checks import command_line
from verl_cov.hooks.config import CovPolicyLossConfig

ROOT = Path(__file__).parents[2]
LOSS = "actor_rollout_ref.actor.policy_loss."


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["+verl_cov=kl_cov", f"{LOSS}kl_cov_ratio=0.2"], "for 0.2 % write 0.002"),
        (["+verl_cov=[kl_cov,cpu]", f"{LOSS}kl_cov_ratio=0.2%"], "for 0.2 % write 0.002"),
        (["+verl_cov=[cpu,clip_cov]", f"{LOSS}clip_cov_ratio=2"], "for 2 % write 0.02"),
        ([f"{LOSS}loss_mode=verl_cov.kl_cov", f"{LOSS}kl_cov_ratio=-1"], "above 0 and at most 0.05"),
        (["+experiment=fig12-kl_cov", "recipe.kl_cov_ratio=0.2"], "recipe.kl_cov_ratio=0.2 must be a fraction"),
        (["+recipe/entropy=kl_cov", f"{LOSS}kl_cov_ratio=0.2"], "for 0.2 % write 0.002"),
        (["+verl_cov=kl_cov", f"{LOSS}kl_cov_rato=0.002"], "kl_cov_rato is unknown: did you mean kl_cov_ratio?"),
        (["+verl_cov=metrics", f"{LOSS}cov_metrcs=full"], "cov_metrcs is unknown: did you mean cov_metrics?"),
        (["+verl_cov=metrics", f"+{LOSS}cov_metrics=all"], "use one of off, basic, full"),
        (["+verl_cov=klcov"], "+verl_cov=klcov is unknown: did you mean kl_cov?"),
        (["+verl_cov=[klcov,cpu]"], "+verl_cov=klcov is unknown: did you mean kl_cov?"),
        (["++verl_cov=gpu"], "did you mean cpu?"),
        (["+verl_cov="], "+verl_cov= names nothing: give one of ce_gppo, clip_b, clip_cov"),
        (["+verl_cov=[]"], "names nothing"),
        (["+verl_cov=kl_cov", "target.target_entropy=0.6"], "not composed: give +verl_cov=[kl_cov,target]"),
        (["+verl_cov=[kl_cov,cpu]", "target.hold=1"], "target.hold is a number of target, which is not composed"),
        (["+verl_cov=kl_cov", f"{LOSS}cov_weights.stare.share=0.1"], "give +verl_cov=[kl_cov,stare]"),
        (["+verl_cov=stare", f"{LOSS}cov_weights.repo.zeta=0.1"], "give +verl_cov=[stare,repo]"),
    ],
)
def test_what_is_wrong_is_said(words, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        command_line.refuse(words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        [f"{LOSS}kl_cov_ratio=0.2"],  # verl's own loss, by somebody who never heard of us
        ["+experiment=theirs", f"{LOSS}kl_cov_ratio=0.2", f"{LOSS}new_field=1"],
        ["experiment=sec4-7b-of-mine", f"{LOSS}kl_cov_ratio=0.2"],
        ["+recipe/entropy=none", f"{LOSS}kl_cov_ratio=0.2"],
        ["+verl_cov=metrics", f"{LOSS}loss_mode=kl_cov", f"{LOSS}kl_cov_ratio=0.2"],
        ["+verl_cov=kl_cov", f"{LOSS}loss_mode=kl_cov", f"{LOSS}kl_cov_ratio=0.2"],
        ["+verl_cov=clip_cov", f"{LOSS}kl_cov_ratio=0.2"],  # of the control that is off
        ["+verl_cov=kl_cov", f"{LOSS}kl_cov_ratio=${{recipe.k}}", f"{LOSS}dro_beta=1", f"{LOSS}cov_metrics=false"],
        ["+verl_cov=mine", "--config-dir=conf"],
        ["+verl_cov=kl_cov", "--config-name=mine", f"{LOSS}my_field=1"],
        ["+verl_cov=kl_cov", f"{LOSS}_target_=mine.Loss", f"+{LOSS}my_field=1"],
        ["+verl_cov=kl_cov", "not in the grammar ["],
        ["+verl_cov=kl_cov", f"~{LOSS}kl_cov_rato"],
        ["+verl_cov=[kl_cov,target,stare]", "target.hold=1", f"{LOSS}cov_weights.stare.share=0.1"],
        ["+verl_cov=kl_cov", f"+{LOSS}cov_weights.stare.share=0.1", "+target.hold=1"],
        ["+verl_cov=kl_cov", "+recipe/entropy=mine", "target.hold=1"],
    ],
    ids=" ".join,
)
def test_the_rest_is_left_to_others(words):
    command_line.refuse(words)


def test_words_of_others_are_not_even_parsed(monkeypatch):
    monkeypatch.setattr(command_line, "_values", lambda words: pytest.fail("parsed"))
    command_line.refuse(["trainer.total_epochs=1", f"{LOSS}kl_cov_ratio=0.2"])


def test_every_field_of_ours_is_known_and_its_default_passes():
    defaults = CovPolicyLossConfig()
    own = {name for name in vars(defaults) if name.startswith("cov_")}
    # Nodes, or any text.
    assert own - set(policy_loss_values.FIELDS) == {"cov_base_loss", "cov_dump_dir", "cov_target", "cov_weights"}
    for name in policy_loss_values.FIELDS:
        policy_loss_values.check_value(name, getattr(defaults, name))


def test_verls_command_ends_before_verl_has_been_imported():
    """What verl's package itself imports cannot be avoided; its trainer, the losses and Hydra's composition can."""
    words = ["+verl_cov=kl_cov", f"{LOSS}kl_cov_ratio=0.2%"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "verl.trainer.main_ppo", *words],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert lines[-1].startswith(f"verl-cov: {LOSS}kl_cov_ratio='0.2%' must be")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "verl.protocol" in imported
    assert not imported & {"verl.trainer.ppo.core_algos", "verl.workers.config", "verl.trainer.ppo.utils"}
