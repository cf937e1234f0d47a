"""What is refused of a PRIME run before anything starts: verl's own configuration, composed by Hydra."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.hooks.test_start import config
from verl_cov.hooks.checks import configuration
from verl_cov.hooks.prime import refusals
from verl_cov.selftest.batches import save_untrained_model

POLICY = (
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "data.train_batch_size=16",
    "actor_rollout_ref.rollout.n=4",
)
RUN = ("+verl_cov=[kl_cov,prime,cpu]", *POLICY)
WITHOUT = ("+verl_cov=[kl_cov,cpu]", *POLICY)


def refused(*overrides: str, base: tuple[str, ...] = RUN) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        configuration.refuse(config(*base, *overrides))
    message = str(error.value)
    assert "\n" not in message
    return message


# --- the configuration alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", ["prime,cpu", "kl_cov,prime,cpu", "clip_cov,prime,cpu", "prime,metrics,cpu"])
def test_the_composition_is_accepted_as_it_is_with_any_policy_loss(others):
    composed = config(f"+verl_cov=[{others}]", *POLICY)
    configuration.refuse(composed)
    assert refusals.is_prime_run(composed)
    assert composed.trainer.v1.trainer_mode == "verl_cov.prime"
    assert composed.prime.optim.lr == 1e-6


@pytest.mark.parametrize(
    "overrides",
    [
        ("algorithm.adv_estimator=grpo",),
        ("algorithm.adv_estimator=reinforce_plus_plus", "algorithm.gamma=0.9"),
        ("prime.mini_batch_size=8",),
        ("prime.mini_batch_size=1", "trainer.n_gpus_per_node=2"),
        ("actor_rollout_ref.rollout.n=2",),  # 1 of 2
        ("actor_rollout_ref.rollout.n=5", "prime.accuracy_low=0.2", "prime.accuracy_high=0.2"),
        ("prime.accuracy_low=0.6", "prime.accuracy_high=0.6", "actor_rollout_ref.rollout.n=5"),
        ("prime.mini_batch_size=${data.train_batch_size}", "prime.micro_batch_size_per_gpu=32"),
        ("prime.micro_batch_size_per_gpu=16", "prime.mini_batch_size=8", "trainer.n_gpus_per_node=2"),
        ("prime.micro_batch_size_per_gpu=3", "actor_rollout_ref.actor.use_dynamic_bsz=True"),
        ("prime.reference=policy",),
        ("prime.outcome=acc", "reward.reward_model.enable=True"),
        ("prime.outcome=acc", "+reward.reward_kwargs.overlong_buffer_cfg.enable=True"),
        ("+reward.reward_kwargs.overlong_buffer_cfg.enable=False",),
        ("algorithm.filter_groups.enable=False", "algorithm.filter_groups.max_num_gen_batches=0"),
        ("algorithm.filter_groups.enable=False", "prime.accuracy_low=0.4", "prime.accuracy_high=0.4"),
        ("actor_rollout_ref.rollout.temperature=0.7",),
        ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=null", "prime.micro_batch_size_per_gpu=2"),
        (
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=null",
            "actor_rollout_ref.actor.use_dynamic_bsz=True",
        ),
    ],
)
def test_what_is_sound_is_accepted(overrides):
    configuration.refuse(config(*RUN, *overrides))


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (("actor_rollout_ref.rollout.n=1",), ("actor_rollout_ref.rollout.n=1", "set it to 4")),
        (("algorithm.use_kl_in_reward=True",), ("algorithm.use_kl_in_reward=True", "use_kl_loss")),
        (("algorithm.adv_estimator=gae",), ("algorithm.adv_estimator=gae", "rloo (Eq. 5)", "grpo (Eq. 7)")),
        (("critic.enable=True",), ("critic.enable=True", "no critic")),
        (("reward.reward_model.enable=True",), ("reward.reward_model.enable=True", "[0, 1]", "prime.outcome")),
        (
            ("+reward.reward_kwargs.overlong_buffer_cfg.enable=True",),
            ("reward.reward_kwargs.overlong_buffer_cfg.enable=True", "prime.outcome=acc"),
        ),
        (("prime.mini_batch_size=6",), ("prime.mini_batch_size=6", "data.train_batch_size=16", "divisor")),
        (
            ("prime.mini_batch_size=null", "actor_rollout_ref.actor.ppo_mini_batch_size=6"),
            ("prime.mini_batch_size=6", "null: the policy's", "data.train_batch_size=16", "divisor"),
        ),
        (
            ("prime.mini_batch_size=1", "trainer.n_gpus_per_node=3"),
            ("prime.mini_batch_size=1", "rollout.n=4", "3 ranks"),
        ),
        (
            ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=null",),
            ("prime.micro_batch_size_per_gpu", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"),
        ),
        (
            ("prime.micro_batch_size_per_gpu=3",),
            ("prime.micro_batch_size_per_gpu=3", "prime.mini_batch_size=4", "rollout.n=4", "16", "divisor"),
        ),
        (
            ("prime.micro_batch_size_per_gpu=32", "prime.mini_batch_size=8", "trainer.n_gpus_per_node=2"),
            ("prime.micro_batch_size_per_gpu=32", "prime.mini_batch_size=8", "16", "divisor"),
        ),
        (("algorithm.filter_groups.max_num_gen_batches=0",), ("filter_groups.max_num_gen_batches=0", "set it to 10")),
        (
            ("algorithm.filter_groups.max_num_gen_batches=null",),
            ("algorithm.filter_groups.max_num_gen_batches", "set it to 10"),
        ),
        (
            ("prime.accuracy_low=0.4", "prime.accuracy_high=0.45"),
            ("prime.accuracy_low=0.4", "prime.accuracy_high=0.45", "rollout.n=4", "widen"),
        ),
        (
            ("prime.reference=policy", "actor_rollout_ref.rollout.temperature=0.7"),
            ("prime.reference=policy", "rollout.temperature=0.7", "prime.reference=frozen"),
        ),
        (("trainer.use_v1=False",), ("trainer.use_v1",)),
        (
            ("trainer.use_v1=False", "algorithm.filter_groups.enable=False"),
            ("trainer.v1.trainer_mode=verl_cov.prime", "trainer.use_v1=False"),
        ),
        (("+prime.no_such_thing=1",), ("prime.no_such_thing",)),
        (("+prime.bta=0.1",), ("prime.bta", "did you mean beta?")),
        (("prime.beta=0",), ("prime.beta=0",)),
        (("+prime.model.pth=model",), ("prime.model.pth", "actor_rollout_ref.model has no such field")),
        (("+prime.optim.learning_rate=1",), ("prime.optim.learning_rate", "no such field")),
        (("+prime.engine.offload=True",), ("prime.engine.offload", "no such field")),
        (("prime.whiten=no",), ("prime.whiten=no",)),
        (("prime.update=both",), ("prime.update", "after, before, reverse, none")),
        (("trainer.v1.trainer_mode=sync",), ("the node prime is set", "trainer.v1.trainer_mode=sync")),
        (("trainer.v1.trainer_mode=verl_cov.Prime",), ("verl_cov.Prime", "did you mean verl_cov.prime?")),
        (("trainer.v1.trainer_mode=VERL-COV.PRIME",), ("VERL-COV.PRIME", "did you mean verl_cov.prime?")),
        (("trainer.v1.trainer_mode=verl_cov.prme",), ("verl_cov.prme", "did you mean verl_cov.prime?")),
    ],
)
def test_bad_input_names_the_field_and_the_fix(overrides, parts):
    message = refused(*overrides)
    for part in parts:
        assert part in message, message


def test_the_mode_and_the_node_come_together():
    configuration.refuse(config(*WITHOUT))
    assert not refusals.is_prime_run(config(*WITHOUT))
    assert "the node prime is missing: add +verl_cov=prime" in refused(
        "trainer.v1.trainer_mode=verl_cov.prime", base=WITHOUT
    )
    message = refused("+verl_cov=prime", "trainer.v1.trainer_mode=sync", base=WITHOUT)
    assert "set trainer.v1.trainer_mode=verl_cov.prime" in message
    assert "take prime.* out" in message


# --- the models -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """The policy's model, one of other weights only, and one of each kind that does not go with it."""

    def save(name: str, **different) -> Path:
        return save_untrained_model(tmp_path_factory.mktemp(name), **different)

    return {
        "policy": save("policy"),
        "alike": save("alike", seed=1),
        "deeper": save("deeper", layers=3),
        "deeper reference": save("reference", layers=3, seed=1),
        "other tokens": save("tokens", more_tokens=("<more>",)),
    }


def checked(models, *overrides: str) -> None:
    composed = config(*RUN, f"actor_rollout_ref.model.path={models['policy']}", *overrides)
    configuration.refuse(composed)
    refusals.refuse_models(composed)


def models_refused(models, *overrides: str) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        checked(models, *overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_models_that_go_together_are_accepted(models):
    checked(models)
    checked(models, "prime.reference=policy")
    checked(models, f"+prime.model.path={models['alike']}")
    checked(models, f"+prime.model.path={models['alike']}", "prime.reference=policy")
    checked(models, f"prime.reference_path={models['alike']}")
    deeper, reference = f"+prime.model.path={models['deeper']}", models["deeper reference"]
    checked(models, deeper, f"prime.reference_path={models['deeper']}")
    checked(models, deeper, f"prime.reference_path={reference}")


def test_a_prm_of_another_architecture_needs_a_reference_of_its_own(models):
    message = models_refused(models, f"+prime.model.path={models['deeper']}")
    assert f"prime.model.path={models['deeper']}" in message
    assert "num_hidden_layers 3 and 2" in message
    assert "hidden_size" not in message
    assert "set prime.reference_path to the model that the PRM starts from" in message
    assert "prime.reference=frozen" not in message
    message = models_refused(models, f"prime.reference_path={models['deeper']}")
    assert "num_hidden_layers 2 and 3" in message


def test_the_policy_is_no_reference_for_a_prm_of_another_architecture(models):
    message = models_refused(models, f"+prime.model.path={models['deeper']}", "prime.reference=policy")
    assert "set prime.reference=frozen and prime.reference_path" in message
    assert "num_hidden_layers 3 and 2" in message


@pytest.mark.parametrize("field", ["prime.model.path", "prime.reference_path"])
def test_a_model_with_another_tokenizer_is_refused(models, field):
    prefix = "+" if field == "prime.model.path" else ""
    message = models_refused(models, f"{prefix}{field}={models['other tokens']}")
    assert f"{field}={models['other tokens']} has another tokenizer than the policy" in message
    assert "1 of them not the same" in message
    assert "the same family" in message


def test_the_tokenizer_that_is_read_is_the_one_that_is_named(models):
    """The policy's tokenizer_path is not the PRM's, which has its own or brings one."""
    checked(models, f"actor_rollout_ref.model.tokenizer_path={models['alike']}", f"+prime.model.path={models['alike']}")
    elsewhere = (f"actor_rollout_ref.model.tokenizer_path={models['other tokens']}",)
    assert "another tokenizer" in models_refused(models, *elsewhere, f"+prime.model.path={models['alike']}")
    checked(
        models,
        *elsewhere,
        f"+prime.model.path={models['alike']}",
        f"+prime.model.tokenizer_path={models['other tokens']}",
    )


def test_without_prime_no_model_is_read():
    refusals.refuse_models(config(*WITHOUT, "actor_rollout_ref.model.path=nowhere"))


def test_the_workers_get_what_the_node_says(models):
    """The PRM's own learning rate and model; the reference's are frozen, and its micro-batches are the PRM's."""
    from verl_cov.hooks.prime.prm_settings import prime_in, worker_config

    composed = config(
        *RUN,
        f"actor_rollout_ref.model.path={models['policy']}",
        f"+prime.model.path={models['alike']}",
        "prime.optim.lr=3e-4",
        "+prime.engine.param_offload=True",
        "prime.micro_batch_size_per_gpu=2",
        "actor_rollout_ref.actor.optim.lr=5e-7",
    )
    OmegaConf.resolve(composed)
    prime = prime_in(composed)
    prm, reference = (worker_config(composed, prime, 7, frozen) for frozen in (False, True))
    assert prm.model_config.path == str(models["alike"])
    assert reference.model_config.path == str(models["policy"])
    assert (prm.optimizer_config.lr, prm.optimizer_config.clip_grad) == (3e-4, 10.0)
    assert prm.optimizer_config.weight_decay == 0.0
    assert prm.optimizer_config.total_training_steps == 7
    assert (prm.engine_config.forward_only, reference.engine_config.forward_only) == (False, True)
    for engine in (prm.engine_config, reference.engine_config):
        assert engine.param_offload
        assert engine.micro_batch_size_per_gpu == engine.infer_micro_batch_size_per_gpu == 2
    assert not composed.actor_rollout_ref.actor.fsdp_config.param_offload
