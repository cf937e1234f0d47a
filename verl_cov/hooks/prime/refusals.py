"""Refuses a PRIME run that could not start or learn: a ValueError names the field and the fix.

Leans on verl's ``hf_tokenizer`` and ``copy_to_local``, with which its workers load a model.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cov.core.prime.advantage import EQUATIONS
from verl_cov.core.prime.prime_config import TRAINER_MODE, PrimeConfig
from verl_cov.hooks.asks import names_verl_cov
from verl_cov.hooks.prime.accuracy_band import Band
from verl_cov.hooks.prime.prm_settings import (
    check_fields,
    micro_batch_size,
    mini_batch_size,
    prime_in,
    prm_model,
    reference_model,
)
from verl_cov.hooks.trainers import other_trainer
from verl_cov.hooks.versions import installed_release, require_v1

_MODE_FIELD = "trainer.v1.trainer_mode"


def is_prime_run(config: DictConfig) -> bool:
    """True if the run is PRIME's. Raises ValueError if it is meant to be, and is not."""
    mode = str(OmegaConf.select(config, _MODE_FIELD, default=""))
    if mode == TRAINER_MODE:
        return True
    if names_verl_cov(mode):
        raise ValueError(f"{_MODE_FIELD}={mode} is unknown: did you mean {TRAINER_MODE}?")
    if names_verl_cov(OmegaConf.select(config, "prime._target_", default=None)):  # not a node of somebody else's
        raise ValueError(
            f"the node prime is set, and {_MODE_FIELD}={mode or 'sync'} trains without it: set "
            f"{_MODE_FIELD}={TRAINER_MODE} (it is in +verl_cov=prime), or take prime.* out"
        )
    return False


def refuse(config: DictConfig) -> None:
    """Raises ValueError for a PRIME run that could not start or would learn nothing, by the configuration alone."""
    if not installed_release().v1:
        if str(OmegaConf.select(config, _MODE_FIELD, default="")) == TRAINER_MODE:
            require_v1("PRIME (+verl_cov=prime)")
        return
    if not is_prime_run(config):
        return
    if (other := other_trainer(config)) is not None:
        raise ValueError(
            f"{_MODE_FIELD}={TRAINER_MODE} does nothing in {other}, which has a trainer of its own: "
            "start with python -m verl.trainer.main_ppo"
        )
    prime = prime_in(config)
    select = functools.partial(OmegaConf.select, config)
    if select("trainer.use_v1") is False:
        raise ValueError(
            f"{_MODE_FIELD}={TRAINER_MODE} is a trainer of verl's V1, and trainer.use_v1=False: set it to True"
        )
    n = int(config.actor_rollout_ref.rollout.n)
    if n < 2:
        raise ValueError(
            f"actor_rollout_ref.rollout.n={n}: PRIME compares the responses to a prompt with each other, and its "
            "filter needs right and wrong ones: set it to 4 (the paper's) or more"
        )
    estimator = str(config.algorithm.adv_estimator)
    if estimator not in EQUATIONS:
        known = ", ".join(f"{name} ({equation})" for name, equation in EQUATIONS.items())
        raise ValueError(f"algorithm.adv_estimator={estimator} has no PRIME form: use one of {known}")
    if select("algorithm.use_kl_in_reward", default=False):
        raise ValueError(
            "algorithm.use_kl_in_reward=True would not reach PRIME's advantages: set it to False, and "
            "actor_rollout_ref.actor.use_kl_loss=True for a penalty in the loss"
        )
    if select("critic.enable", default=False):
        raise ValueError("critic.enable=True: PRIME's advantages need no critic, and it would only take memory: False")
    _check_outcome(config, prime)
    _check_sizes(config, prime, n)
    _check_filter(config, prime, n)
    _check_reference(config, prime)
    check_fields(config, prime)


def _check_outcome(config: DictConfig, prime: PrimeConfig) -> None:
    """Rewards that cannot all lie in [0, 1]; what a reward function returns shows with the first rollout."""
    if prime.outcome != "reward":
        return
    if OmegaConf.select(config, "reward.reward_model.enable", default=False):
        raise ValueError(
            "reward.reward_model.enable=True: a reward model's score is not in [0, 1], and PRIME's outcome must be: "
            "set it to False, or name a key of the result by prime.outcome"
        )
    overlong = OmegaConf.select(config, "reward.reward_kwargs.overlong_buffer_cfg.enable", default=False)
    if overlong:
        raise ValueError(
            "reward.reward_kwargs.overlong_buffer_cfg.enable=True takes a penalty off the reward, which then leaves "
            "[0, 1]: set prime.outcome=acc, or the penalty to False"
        )


def _check_sizes(config: DictConfig, prime: PrimeConfig, n: int) -> None:
    prompts, size = int(config.data.train_batch_size), mini_batch_size(config, prime)
    if prompts % size:
        raise ValueError(
            f"prime.mini_batch_size={size} (prompts; null: the policy's) does not divide "
            f"data.train_batch_size={prompts}: take a divisor"
        )
    ranks = int(config.trainer.n_gpus_per_node) * int(config.trainer.nnodes)
    if size * n % ranks:
        raise ValueError(
            f"prime.mini_batch_size={size} x rollout.n={n} responses cannot be dealt to {ranks} ranks: take a multiple"
        )
    if OmegaConf.select(config, "actor_rollout_ref.actor.use_dynamic_bsz", default=False):
        return
    if prime.micro_batch_size_per_gpu is None and config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu is None:
        raise ValueError(
            "neither prime.micro_batch_size_per_gpu nor actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu is set"
        )
    micro, share = micro_batch_size(config, prime), size * n // ranks
    if micro is not None and share % micro:
        raise ValueError(
            f"prime.micro_batch_size_per_gpu={micro} (null: the policy's) does not divide a rank's share of "
            f"prime.mini_batch_size={size} x rollout.n={n} responses, {share}: take a divisor"
        )


def _check_filter(config: DictConfig, prime: PrimeConfig, n: int) -> None:
    groups = OmegaConf.select(config, "algorithm.filter_groups", default=None) or {}
    if not groups.get("enable"):
        return
    if not groups.get("max_num_gen_batches"):
        raise ValueError(
            "algorithm.filter_groups.max_num_gen_batches=0 lets the filter drop prompts without end: set it to 10"
        )
    band = Band(prime.accuracy_low, prime.accuracy_high, str(groups.get("metric")))
    if not any(float(Fraction(right, n)) in band for right in range(n + 1)):
        raise ValueError(
            f"prime.accuracy_low={band.low:g}, prime.accuracy_high={band.high:g}: with rollout.n={n} responses no "
            "share of right ones is in between: widen them, or raise actor_rollout_ref.rollout.n"
        )


def _check_reference(config: DictConfig, prime: PrimeConfig) -> None:
    temperature = float(config.actor_rollout_ref.rollout.temperature)
    if prime.reference == "policy" and temperature != 1.0:
        raise ValueError(
            "prime.reference=policy takes the policy's old log-probs, which verl computes at "
            f"actor_rollout_ref.rollout.temperature={temperature:g}; the PRM's are at 1: set it to 1.0, or "
            "prime.reference=frozen"
        )


def refuse_models(config: DictConfig) -> None:
    """Raises ValueError unless policy, PRM and reference read the same tokens, and PRM and reference are alike.

    Reads the models' files: only on the machine that trains.
    """
    if not is_prime_run(config):
        return
    prime = prime_in(config)
    policy, own = config.actor_rollout_ref.model, prm_model(config, prime)
    compared = {"prime.model.path": own}
    if prime.reference == "frozen":
        compared["prime.reference_path"] = reference_model(config, prime)
    for field, model in compared.items():
        if _tokenizer_path(model) != _tokenizer_path(policy):
            _check_tokenizer(field, model, policy)
    reference = reference_model(config, prime) if prime.reference == "frozen" else policy
    if own.path == reference.path:
        return
    prms, wanted = _architecture(own), _architecture(reference)
    if prms != wanted:
        differs = ", ".join(f"{name} {prms[name]} and {wanted[name]}" for name in prms if prms[name] != wanted[name])
        fix = (
            "set prime.reference=frozen and prime.reference_path to the model that the PRM starts from"
            if prime.reference == "policy"
            else "set prime.reference_path to the model that the PRM starts from"
        )
        raise ValueError(f"prime.model.path={own.path} is another kind of model than its reference ({differs}): {fix}")


def _tokenizer_path(model: DictConfig) -> str:
    return str(model.get("tokenizer_path") or model.path)


def _check_tokenizer(field: str, model: DictConfig, policy: DictConfig) -> None:
    from verl.utils import hf_tokenizer
    from verl.utils.fs import copy_to_local

    def vocabulary(node: DictConfig) -> Mapping[str, int]:
        folder = copy_to_local(_tokenizer_path(node), use_shm=node.get("use_shm", False))
        return hf_tokenizer(folder, trust_remote_code=node.get("trust_remote_code", False)).get_vocab()

    prms, policys = vocabulary(model), vocabulary(policy)
    if prms != policys:
        differing = sum(policys.get(token) != number for token, number in prms.items())
        raise ValueError(
            f"{field}={model.path} has another tokenizer than the policy ({policy.path}): {len(prms)} and "
            f"{len(policys)} tokens, {differing} of them not the same; a PRM scores the policy's own tokens. Take a "
            "model of the same family"
        )


def _architecture(model: DictConfig) -> dict[str, Any]:
    from transformers import AutoConfig
    from verl.utils.fs import copy_to_local

    folder = copy_to_local(model.get("hf_config_path") or model.path, use_shm=model.get("use_shm", False))
    read = AutoConfig.from_pretrained(folder, trust_remote_code=model.get("trust_remote_code", False))
    names = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    return {name: getattr(read, name, None) for name in names}
