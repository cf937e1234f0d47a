"""What a user of any release types: the configuration composes, bad values are named at start, also by main_ppo.

Runs with every release of verl (``make compat``).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from verl_cov.hooks import versions
from verl_cov.hooks.status import status

RELEASE = versions.installed_release()
LOSS = "actor_rollout_ref.actor.policy_loss"
VALIDATING = ("entropy=all", "pass_at=[1]", "greedy=true")


def compose(*overrides: str):
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


def build(*overrides: str):
    """The policy loss as a worker of this verl gets it."""
    from verl.utils.config import omega_conf_to_dataclass

    from verl_cov.hooks.asks import config_from_policy_loss

    node = compose("actor_rollout_ref.model.path=model", *overrides).actor_rollout_ref.actor.policy_loss
    return config_from_policy_loss(omega_conf_to_dataclass(node))


def test_the_plugin_is_registered_with_what_this_verl_has_a_place_for():
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    assert status.error is None
    assert {"verl_cov.clip_cov", "verl_cov.kl_cov"} <= POLICY_LOSS_REGISTRY.keys()
    assert ("train_batch" in status.registered) == RELEASE.engine
    assert ("legacy_actor" in status.registered) == RELEASE.legacy
    assert ("prime.registration" in status.registered) == RELEASE.v1


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_a_word_on_the_command_line_gives_the_papers_numbers(name):
    cov = build(f"+verl_cov={name}")
    assert cov.loss_mode == f"verl_cov.{name}"
    assert cov.ratio == {"clip_cov": 2e-4, "kl_cov": 2e-3}[name]
    assert cov.cov_scope == "mini_batch"
    assert build(f"+verl_cov={name}", f"{LOSS}.cov_seed=7").cov_seed == 7


def test_metrics_alone_and_nothing_at_all():
    assert build("+verl_cov=metrics").cov_metrics == "full"
    assert not build("+verl_cov=metrics").controls
    assert build() is None


def test_the_loss_mode_alone_is_enough():
    cov = build(f"{LOSS}.loss_mode=verl_cov.kl_cov")
    assert cov.controls
    assert cov.kl_cov_ratio == 2e-4  # verl's default


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("kl_cov_ratio=0.2", "not a percentage"),
        ("ppo_kl_coef=-1", "must not be negative"),
        *([] if RELEASE.v1 else [(f"cov_val_{what}", "needs verl 0.9 or later") for what in VALIDATING]),
        ("+cov_sede=1", "cov_sede"),
    ],
)
def test_bad_values_are_named(override, says):
    field = re.split("[=+]", override.lstrip("+"))[0]
    prefix = "+" if override.startswith("+") else ""
    with pytest.raises(Exception, match=r"(?s)" + re.escape(says)) as raised:
        build("+verl_cov=kl_cov", f"{prefix}{LOSS}.{override.lstrip('+')}")
    assert field in str(raised.value)


def main_ppo(tmp_path, *overrides: str, told: bool = True) -> str:
    """What `python -m verl.trainer.main_ppo` prints until it ends, which it must by itself and with an error."""
    environment = {name: value for name, value in os.environ.items() if name != "VERL_USE_EXTERNAL_MODULES"}
    if told:
        environment["VERL_USE_EXTERNAL_MODULES"] = "verl_cov.plugin"
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]
    command += ["ray_kwargs.ray_init.num_cpus=4", "hydra.run.dir=."]
    done = subprocess.run(
        command, cwd=tmp_path, env={**environment, "RAY_ADDRESS": "local"}, capture_output=True, text=True, timeout=480
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.skipif(RELEASE.driver_checks, reason="tests/hooks/test_start.py")
def test_main_ppo_says_at_start_what_is_wrong(tmp_path, untrained_model):
    """verl before 0.9 checks inside its Ray actor: the line must reach the terminal all the same."""
    model = f"actor_rollout_ref.model.path={untrained_model}"
    sizes = ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1", "trainer.n_gpus_per_node=1")
    common = (model, *sizes, "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1")
    bad = main_ppo(tmp_path, "+verl_cov=kl_cov", f"{LOSS}.kl_cov_ratio=0.2", *common)
    assert f"verl-cov: {LOSS}.kl_cov_ratio=0.2 must be a fraction of the tokens" in bad
    # Without the environment variable the checks do not run; the configuration's class names the field.
    untold = main_ppo(tmp_path, "+verl_cov=kl_cov", f"{LOSS}.kl_cov_ratio=0.2", *common, told=False)
    assert "kl_cov_ratio=0.2 must be a fraction of the tokens" in untold
    newer = main_ppo(tmp_path, "+verl_cov=[kl_cov,prime]", *common)
    assert ("verl-cov patch apply" if RELEASE.legacy else "PRIME (+verl_cov=prime) needs verl 0.9 or later") in newer


@pytest.mark.skipif(RELEASE.v1, reason="recipes run there")
def test_recipes_are_refused_on_a_verl_that_cannot_run_them(tmp_path):
    recipe = ["tiny", "grpo", "kl_cov", "toy"]
    for words in (["recipes", "run", *recipe], ["recipes", "check", *recipe], ["recipes", "show", *recipe]):
        command = [sys.executable, "-c", "from verl_cov.cli import main; main()", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=2000)
        assert done.returncode != 0, words
        assert "verl 0.9" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not RELEASE.engine, reason="the self-test drives engines alone")
def test_what_the_selftest_asks_of_verl_on_a_gpu_composes():
    from verl_cov.selftest import engine, hook

    config = engine.compose((*hook.ON_CUDA, *engine.WIDE), "model")
    assert config.actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype == "fp32"
