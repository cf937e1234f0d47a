"""Values that PRIME refuses, and the composition's defaults."""

from __future__ import annotations

import math
from dataclasses import fields
from importlib import resources

import pytest
from omegaconf import OmegaConf

from verl_cov.core.prime.prime_config import PrimeConfig


def composed() -> dict:
    text = resources.files("verl_cov.conf.verl_cov").joinpath("prime.yaml").read_text()
    policy = OmegaConf.create({"actor_rollout_ref": {"actor": {"ppo_mini_batch_size": 64}}})
    return OmegaConf.to_container(OmegaConf.merge(policy, OmegaConf.create(text)), resolve=True)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"update": "both"}, ("prime.update", "both", "after, before, reverse, none")),
        ({"update": "befor"}, ("prime.update", "did you mean before?")),
        ({"update": None}, ("prime.update", "None")),
        ({"loss": "bce"}, ("prime.loss", "bce", "ce")),
        ({"rloo": "papr"}, ("prime.rloo", "did you mean paper?")),
        ({"reward_norm": "batch_norm"}, ("prime.reward_norm", "batch_norm", "max_return, none")),
        ({"reference": "old"}, ("prime.reference", "old", "frozen, policy")),
        ({"process_coef": -1}, ("prime.process_coef=-1", "at least 0")),
        ({"outcome_coef": math.nan}, ("prime.outcome_coef=nan", "number")),
        ({"outcome_coef": "1"}, ("prime.outcome_coef=1", "number")),
        ({"process_coef": 0, "outcome_coef": 0.0}, ("prime.process_coef", "prime.outcome_coef", "nothing to learn")),
        ({"beta": 0}, ("prime.beta=0", "above 0")),
        ({"beta": -0.05}, ("prime.beta=-0.05", "above 0")),
        ({"beta": math.inf}, ("prime.beta=inf",)),
        ({"beta": True}, ("prime.beta=True",)),
        ({"beta": None}, ("prime.beta=None",)),
        ({"epochs": 0}, ("prime.epochs=0", "whole number of at least 1")),
        ({"epochs": None}, ("prime.epochs=None",)),
        ({"epochs": True}, ("prime.epochs=True",)),
        ({"mini_batch_size": 0}, ("prime.mini_batch_size=0",)),
        ({"mini_batch_size": 1.5}, ("prime.mini_batch_size=1.5", "whole number")),
        ({"micro_batch_size_per_gpu": -2}, ("prime.micro_batch_size_per_gpu=-2",)),
        ({"max_token_len_per_gpu": "4096"}, ("prime.max_token_len_per_gpu=4096", "whole number")),
        ({"accuracy_low": 0.9}, ("prime.accuracy_low=0.9", "accuracy_low <= accuracy_high")),
        ({"accuracy_low": -0.1}, ("prime.accuracy_low=-0.1",)),
        ({"accuracy_high": 1.1}, ("prime.accuracy_high=1.1",)),
        ({"accuracy_high": None}, ("prime.accuracy_high=None",)),
        ({"outcome": ""}, ("prime.outcome=",)),
        ({"outcome": None}, ("prime.outcome=None", "reward")),
        ({"reference": "policy", "reference_path": "model"}, ("prime.reference_path", "prime.reference=policy")),
        # Anything but true and false would be taken as true, also "no" and "off" of a command line.
        ({"whiten": "no"}, ("prime.whiten=no", "true or false")),
        ({"reward_last_token": "off"}, ("prime.reward_last_token=off", "true or false")),
        ({"whiten": None}, ("prime.whiten=None", "true or false")),
        ({"model": None}, ("prime.model=None", "{}")),
        ({"model": "some/model"}, ("prime.model=some/model", "prime.model.path=some/model")),
        ({"optim": 1e-6}, ("prime.optim=1e-06", "{}")),
        ({"engine": ["param_offload"]}, ("prime.engine=", "{}")),
        ({"updates": "after"}, ("prime.updates", "did you mean update?")),
        ({"no_such_thing": 1}, ("prime.no_such_thing",)),
    ],
)
def test_each_refusal_is_one_line_that_names_the_field(values, parts):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the parts are looked for below)
        PrimeConfig.from_node({**composed()["prime"], **values})
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    "values",
    [
        {"accuracy_low": 0, "accuracy_high": 1},
        {"accuracy_low": 0.5, "accuracy_high": 0.5},
        {"process_coef": 0},
        {"outcome_coef": 0},
        {"beta": 1},
        {"mini_batch_size": 1, "micro_batch_size_per_gpu": 1, "max_token_len_per_gpu": 1, "epochs": 3},
        {"reference": "policy"},
        {"reference_path": "some/model"},
        {"outcome": "acc"},
        {"model": {"path": "some/model"}, "optim": {"lr": 1e-5}, "engine": {"param_offload": True}},
        *({"update": update} for update in ("after", "before", "reverse", "none")),
    ],
)
def test_what_is_at_the_bounds_is_accepted(values):
    found = PrimeConfig.from_node({**composed()["prime"], **values})
    assert {name: getattr(found, name) for name in values} == values


def test_the_composition_has_every_field_with_the_papers_default():
    node = composed()["prime"]
    assert set(node) == {"_target_", *(field.name for field in fields(PrimeConfig))}
    default, found = PrimeConfig(), PrimeConfig.from_node(node)
    assert node["mini_batch_size"] == 64  # as many updates as the policy makes
    for name in set(node) - {"optim", "_target_", "mini_batch_size"}:
        assert getattr(found, name) == getattr(default, name), name
    # Of the released code's script: not the policy's learning rate, nor its clip.
    assert found.optim == {"lr": 1e-6, "clip_grad": 10.0, "weight_decay": 0.0}
    assert (found.beta, found.accuracy_low, found.accuracy_high) == (0.05, 0.2, 0.8)


def test_the_composition_is_the_papers_algorithm():
    node = composed()
    assert node["algorithm"] == {
        "adv_estimator": "rloo",
        "gamma": 1.0,
        "use_kl_in_reward": False,
        "filter_groups": {"enable": True, "metric": "acc", "max_num_gen_batches": 10},
    }
    assert node["trainer"] == {"use_v1": True, "v1": {"trainer_mode": "verl_cov.prime"}}
