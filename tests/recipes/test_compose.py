"""What recipes compose to, with the installed verl: the paper's numbers, in any order of groups."""

from __future__ import annotations

import itertools

import pytest
from omegaconf import OmegaConf

from verl_cov.recipes import catalogue, compose
from verl_cov.recipes.catalogue import parse


def config(*words: str, scale: str | None = None):
    return compose.resolved(compose.compose(parse(words, scale).hydra_overrides()))


# paper-facts: Sec. 4.3's table, by hand.
@pytest.mark.parametrize(
    ("experiment", "lr", "nodes", "kl_cov_ratio", "steps"),
    [("sec4-7b", 5e-7, 1, 2e-3, 325), ("sec4-32b", 1e-6, 4, 2e-4, 136)],
)
def test_section_4(experiment, lr, nodes, kl_cov_ratio, steps):
    for control in ("none", "clip_higher", "clip_cov", "kl_cov"):
        found = config(f"{experiment}/{control}")
        actor, rollout, data = found.actor_rollout_ref.actor, found.actor_rollout_ref.rollout, found.data
        assert (data.train_batch_size, rollout.n, actor.ppo_mini_batch_size, actor.ppo_epochs) == (256, 8, 32, 1)
        assert (data.max_prompt_length, data.max_response_length) == (2048, 8192)
        assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1.0, -1)
        assert (actor.optim.lr, actor.optim.weight_decay, actor.optim.clip_grad) == (lr, 0, 1)
        assert (actor.entropy_coeff, actor.use_kl_loss, actor.loss_agg_mode) == (0, False, "token-mean")
        assert found.algorithm.filter_groups == OmegaConf.merge(
            found.algorithm.filter_groups, {"enable": True, "metric": "acc", "max_num_gen_batches": 10}
        )
        assert (found.trainer.nnodes, found.trainer.n_gpus_per_node, found.trainer.test_freq) == (nodes, 8, 4)
        stops_early = experiment == "sec4-7b" and control == "clip_cov"  # Fig. 11
        assert found.trainer.total_training_steps == (279 if stops_early else steps)
        assert len(data.val_files) == 7
        low_high = {"none": (0.2, 0.2), "clip_higher": (0.2, 0.28), "clip_cov": (1, 1), "kl_cov": (0.2, 0.2)}[control]
        assert (actor.clip_ratio_low, actor.clip_ratio_high) == low_high
        loss = actor.policy_loss
        if control == "clip_cov":
            assert (loss.loss_mode, loss.cov_base_loss) == ("verl_cov.clip_cov", "vanilla")
            assert (loss.clip_cov_ratio, loss.clip_cov_lb, loss.clip_cov_ub) == (2e-4, 1, 5)
        elif control == "kl_cov":
            assert (loss.loss_mode, loss.cov_base_loss) == ("verl_cov.kl_cov", "ratio")
            assert (loss.kl_cov_ratio, loss.ppo_kl_coef, loss.cov_kl) == (kl_cov_ratio, 1, "abs")
        else:
            assert loss.loss_mode == "vanilla"


def test_section_2():
    for run in ("qwen2.5-0.5b", "mistral-small-24b", "llama3.1-8b"):
        found = config(f"sec2-math/{run}")
        assert found.actor_rollout_ref.actor.optim.lr == 5e-7
        qwen = run.startswith("qwen") or run == "mistral-small-24b"
        assert found.recipe.task == ("eurus_math" if qwen else "gsm8k")
        assert len(found.data.val_files) == 5
        assert found.actor_rollout_ref.actor.policy_loss.loss_mode == "vanilla"


@pytest.mark.parametrize("which", [slice(None, None, 3), pytest.param(slice(None), marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    ("experiment", "key", "values"),
    [
        ("fig9-entropy_bonus", "actor.entropy_coeff", [0, 1e-4, 1e-3, 5e-3, 1e-2]),
        ("fig12-clip_cov", "actor.policy_loss.clip_cov_ratio", [2e-4, 4e-4, 5e-4, 7e-4]),
        ("fig12-kl_cov", "actor.policy_loss.ppo_kl_coef", [0, 0.05, 0.1, 0.5, 1]),
    ],
)
def test_sweeps(experiment, key, values, which):
    runs = list(catalogue.experiment(experiment).runs)[: len(values)][which]
    found = [OmegaConf.select(config(f"{experiment}/{run}").actor_rollout_ref, key) for run in runs]
    assert found == pytest.approx(values[which])


def test_figure_10_starts_without_a_reference():
    found = [
        config(f"fig10-reference_kl/{run}").actor_rollout_ref.actor
        for run in catalogue.experiment("fig10-reference_kl").runs
    ]
    assert [actor.use_kl_loss for actor in found] == [False, True, True, True, True]
    assert [actor.kl_loss_coef for actor in found[1:]] == [1e-3, 1e-2, 5e-2, 1e-1]


def test_on_policy_is_one_update_a_rollout():
    for scale in ("cpu", "node8"):
        found = config("tiny", "on_policy", "none", "toy", scale=scale)
        assert found.data.train_batch_size == found.actor_rollout_ref.actor.ppo_mini_batch_size


def test_one_seed_reaches_every_seed():
    found = config("qwen2.5-7b", "grpo", "kl_cov", "math", "recipe.seed=7")
    actor = found.actor_rollout_ref.actor
    seeds = [found.data.seed, found.actor_rollout_ref.rollout.seed, actor.data_loader_seed, actor.fsdp_config.seed]
    assert [*seeds, actor.policy_loss.cov_seed] == [7] * 5


def test_groups_compose_to_the_same_in_any_order():
    words = parse(["tiny", "rloo", "clip_cov", "toy"]).hydra_overrides()
    configs = [
        OmegaConf.to_yaml(compose.resolved(compose.compose(order)), sort_keys=True)
        for order in list(itertools.permutations(words))[::40]
    ]
    assert len(configs) == 3
    assert len(set(configs)) == 1


def test_an_experiment_equals_its_groups():
    one = config("sec4-7b/kl_cov")
    other = config("qwen2.5-7b", "grpo", "kl_cov", "dapo_math")
    differ = {key for key, value in compose.flat(one).items() if compose.flat(other).get(key, "") != value}
    assert {key for key in differ if not key.startswith("recipe.")} == set()
    assert {"recipe.experiment"} < differ


def test_changes_have_sources_and_values():
    changes = {change.key: change for change in compose.changes(parse(["sec4-32b/kl_cov", "trainer.save_freq=5"]))}
    ratio = changes["actor_rollout_ref.actor.policy_loss.kl_cov_ratio"]
    assert (ratio.value, ratio.setting.file) == (2e-4, "recipe/entropy/kl_cov.yaml")
    # An interpolation has the source of what it points to.
    rate = changes["actor_rollout_ref.actor.optim.lr"]
    assert (rate.value, rate.setting.file, rate.same) == (1e-6, "recipe/model/qwen2.5-32b.yaml", True)
    assert "32B" in rate.setting.why
    assert changes["trainer.save_freq"].setting is None
    assert changes["trainer.save_freq"].value == 5
    assert changes["data.max_response_length"].default == 512
    # What the run of a sweep sets is the run's own, also through an interpolation.
    sweep = {change.key: change for change in compose.changes(parse(["fig12-kl_cov/beta-0.5"]))}
    assert sweep["actor_rollout_ref.actor.policy_loss.ppo_kl_coef"].setting is None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("actor_rollout_ref.actor.optim.lrr=1", "did you mean actor_rollout_ref.actor.optim.lr"),
        ("recipe.kl_cov_rato=0.01", "there is no field 'recipe.kl_cov_rato': did you mean recipe.k"),
        ("data.train_batch_size=${nowhere}", "nowhere"),
        ("data.max_prompt_length=[1", "data.max_prompt_length=[1 is not in Hydra's grammar"),
    ],
)
def test_bad_overrides_are_one_line(override, says):
    with pytest.raises(ValueError, match=r".") as raised:
        config("sec4-7b", override)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_base_models_without_a_template_get_a_plain_one():
    """Rendered by verl's own builder of prompts, for a tokenizer with and without a first token."""
    from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder

    from verl_cov.tasks import tiny_model

    tokenizer = tiny_model.tokenizer()
    tokenizer.chat_template = config(
        "llama3.1-8b", "grpo", "none", "gsm8k"
    ).actor_rollout_ref.model.custom_chat_template
    asked = [{"role": "user", "content": "What is 1 + 1?"}]
    builder = ContinuousTokenBuilder(tokenizer)
    assert tokenizer.decode(builder.build_initial_tokens(asked)) == "Question:\nWhat is 1 + 1?\n\nAnswer:\n"
    tokenizer.bos_token = "<|user|>"
    text = tokenizer.decode(builder.build_initial_tokens([{"role": "system", "content": "Be brief."}, *asked]))
    assert text == "<|user|>Be brief.\n\nQuestion:\nWhat is 1 + 1?\n\nAnswer:\n"
    assert config("qwen2.5-7b", "grpo", "none", "gsm8k").actor_rollout_ref.model.custom_chat_template is None
