"""A run that does not name verl-cov behaves as if the package were not installed."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import verl.utils.config
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import verl_cov
from verl_cov.hooks.asks import asks_for_verl_cov

SIZES = (
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.model.path=x",
    "data.train_batch_size=64",
    "actor_rollout_ref.actor.ppo_mini_batch_size=64",
)
FILTER = ("algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=acc")
LOSS = "actor_rollout_ref.actor.policy_loss"

VERLS = (
    "trainer/config/ppo_trainer",
    "trainer/config/ppo_megatron_trainer",
    "trainer/config/_generated_ppo_trainer",
    "trainer/config/_generated_ppo_megatron_trainer",
    "trainer/config/_generated_ppo_veomni_trainer",
    "trainer/config/_generated_ppo_torchtitan_trainer",
    "experimental/fully_async_policy/config/fully_async_ppo_trainer",
    "experimental/fully_async_policy/config/fully_async_ppo_megatron_trainer",
    "experimental/one_step_off_policy/config/one_step_off_ppo_trainer",
    "experimental/one_step_off_policy/config/one_step_off_ppo_megatron_trainer",
)

# What colleagues and forks do with fields that we have a use for too.
FORKS = {
    "legacy trainer": ("trainer.use_v1=False",),
    "legacy trainer with the filter, which it ignores": ("trainer.use_v1=False", *FILTER),
    "filter without a limit": FILTER,
    "filter with a limit that verl ignores": (*FILTER, "algorithm.filter_groups.max_num_gen_batches=1"),
    "eight GPUs": ("trainer.n_gpus_per_node=8",),
    "more workers than this machine has CPUs": ("trainer.n_gpus_per_node=512",),
    "a node prime": ("+prime.x=1", "+prime.beta=wrong"),
    "a node rollout": ("+rollout.n_gpus_per_node=1", "+rollout.nnodes=1", *FILTER),
    "a node async_training": ("+async_training.mine=1", *FILTER),
    "a node recipe": ("+recipe.entropy=kl_cov",),
    "a node verl_cov": ("+verl_cov_of_mine.kl_cov=1",),
    "a field cov_weight": (f"+{LOSS}.cov_weight=1",),
    "another plugin's class": (f"{LOSS}._target_=their.package.PolicyLossConfig", f"+{LOSS}.cov_metrics=every"),
    "no class": (f"~{LOSS}._target_",),
    "verl's own kl_cov": (f"{LOSS}.loss_mode=kl_cov", f"{LOSS}.kl_cov_ratio=0.2"),
    "verl's own clip_cov": (f"{LOSS}.loss_mode=clip_cov", f"{LOSS}.clip_cov_lb=9"),
    "another trainer": ("trainer.v1.trainer_mode=my_prime",),
    "another agent loop": ("actor_rollout_ref.rollout.agent.default_agent_loop=my_loop",),
    "full determinism": ("actor_rollout_ref.rollout.full_determinism=True",),
    "another reward function": ("reward.custom_reward_function.path=pkg://mine.tasks.reward",),
    "one update a rollout": ("actor_rollout_ref.actor.ppo_epochs=1",),
    "an experiment named after us": ("trainer.project_name=verl_cov", "trainer.experiment_name=verl_cov.kl_cov"),
    "an interpolation that nothing resolves": (f"{LOSS}.loss_mode=${{oc.env:NOT_SET_ANYWHERE}}",),
}


def composed(*overrides: str, name: str = "trainer/config/ppo_trainer"):
    file = Path(verl.__file__).parent / name
    with initialize_config_dir(str(file.parent), version_base=None):
        return compose(file.name, overrides=["hydra.searchpath=[pkg://verl.trainer.config]", *overrides])


def ours_called_by(function, *arguments) -> set[str]:
    """Names of the functions of verl_cov that run while ``function`` does."""
    home, called = str(Path(verl_cov.__file__).parent), set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(home):
            called.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return called


# What may run: what stands in the place of verl's function, the question, and whether this process is on a CPU.
QUESTION = {"replacement", "_validate_config", "is_selected"}
QUESTION |= {"asks_for_verl_cov", "names_verl_cov", "_read", "<genexpr>"}


@pytest.fixture
def verls_validation(monkeypatch):
    """verl's own validation off: whether verl accepts a fork's configuration is none of this test's business."""
    monkeypatch.delenv("VERL_PLATFORM")
    wrapper = verl.utils.config.validate_config
    cell = next(cell for cell in wrapper.__closure__ if cell.cell_contents is wrapper.__wrapped__)
    seen = []
    original = cell.cell_contents
    cell.cell_contents = lambda config, *args, **kwargs: seen.append(config)
    yield seen
    cell.cell_contents = original


def assert_inert(config, verls_validation, capsys) -> None:
    assert not asks_for_verl_cov(config)
    threads, before = set(threading.enumerate()), OmegaConf.to_yaml(config)
    called = ours_called_by(verl.utils.config.validate_config, config, False, False)
    assert called <= QUESTION
    assert verls_validation == [config]
    assert OmegaConf.to_yaml(config) == before
    assert capsys.readouterr() == ("", "")
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize("name", VERLS)
def test_verls_own_configurations(name, verls_validation, capsys):
    assert_inert(composed(name=name), verls_validation, capsys)


@pytest.mark.parametrize("fork", FORKS)
def test_configurations_of_colleagues_and_forks(fork, verls_validation, capsys):
    assert_inert(composed(*SIZES, *FORKS[fork]), verls_validation, capsys)


@pytest.mark.parametrize("config", [None, {}, {"actor_rollout_ref": 3}, {"trainer": {"v1": True}}, [1]])
def test_the_question_never_raises(config):
    assert not asks_for_verl_cov(config)
    assert not asks_for_verl_cov(OmegaConf.create(config) if config is not None else None)


@pytest.mark.parametrize(
    "overrides",
    [
        ("+verl_cov=kl_cov",),
        ("+verl_cov=metrics",),
        ("+verl_cov=prime",),
        ("+verl_cov=prime", "trainer.v1.trainer_mode=sync"),  # taken back in part: better told than trained without
        (f"{LOSS}.loss_mode=verl_cov.clip_cov",),
        (f"{LOSS}.loss_mode=VERL-COV.KL_COV",),
        ("trainer.v1.trainer_mode=verl_cov.prim",),
        ("actor_rollout_ref.rollout.agent.default_agent_loop=verl_cov.single_turn",),
        ("reward.custom_reward_function.path=pkg://verl_cov/tasks/reward",),
    ],
)
def test_what_asks(overrides):
    assert asks_for_verl_cov(composed(*SIZES, *overrides))


def test_the_filter_of_a_vanilla_run_has_no_limit_of_ours(transfer_queue):
    from verl.trainer.ppo.v1 import get_trainer_cls

    limited = (*FILTER, "algorithm.filter_groups.max_num_gen_batches=1")
    bound = {}
    for name, asked in (("vanilla", ()), ("ours", ("+verl_cov=metrics",))):
        trainer = get_trainer_cls("sync").__new__(get_trainer_cls("sync"))
        trainer.config = composed(*SIZES, *limited, *asked)
        trainer.trainer_mode = "sync"
        trainer._add_prompts_to_generate = print
        bound[name] = "_evict_terminal_groups" in vars(trainer._build_replay_buffer())
    assert bound == {"vanilla": False, "ours": True}
