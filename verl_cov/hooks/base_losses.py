"""The policy losses that a control can wrap, and the refusal of one that verl's workers could not compute.

Leans on ``POLICY_LOSS_REGISTRY`` of ``verl.trainer.ppo.core_algos``, on the arguments of a policy loss, and on
``actor_rollout_ref.model.external_lib``, the user's modules that verl's workers, and not its driver, import before they
look a loss up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from verl_cov.hooks.loss_modes import POLICY_LOSS

if TYPE_CHECKING:
    from verl_cov.hooks.config import CovPolicyLossConfig

EXTERNAL_LIB = "actor_rollout_ref.model.external_lib"
RATIO = "ratio"
# It would run without its settings: the trainer puts them where it reads them after the workers have their copy.
BYPASS = "bypass_mode"


def known_base_losses() -> list[str]:
    """Returns the losses that a control can wrap: verl's registry without covariance controls and bypass_mode."""
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    verls = [name for name in POLICY_LOSS_REGISTRY if not name.endswith(("clip_cov", "kl_cov", BYPASS))]
    return [RATIO, *dict.fromkeys(["vanilla", *verls])]


def may_be_registered(config: DictConfig, name: str) -> bool:
    """Tells whether a worker of this run may find the policy loss ``name`` in verl's registry.

    Imports the user's external_lib, as a worker does, if the name is not there yet. True if that fails here: it may
    exist, or work, on the workers' machines only.
    """
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    return name in POLICY_LOSS_REGISTRY or _import_external_lib(config) is not None or name in POLICY_LOSS_REGISTRY


def refuse(config: DictConfig, cov: CovPolicyLossConfig) -> None:
    """Raises ValueError for a base loss that no worker knows, or that fails with the numbers of this run."""
    name = cov.base_loss
    if name == RATIO:
        return
    if name == BYPASS:
        raise ValueError(
            f"{POLICY_LOSS}.cov_base_loss={BYPASS} would run without algorithm.rollout_correction, which the trainer "
            "puts into the configuration after the workers have theirs: use vanilla"
        )
    if name.endswith(("clip_cov", "kl_cov")) or not may_be_registered(config, name):
        known = ", ".join(known_base_losses())
        raise ValueError(f"{POLICY_LOSS}.cov_base_loss={name!r} is unknown: use one of {known}")
    _refuse_missing_numbers(config, name)


def notices(config: DictConfig, cov: CovPolicyLossConfig) -> Iterator[str]:
    """Yields that nobody can say yet whether the base loss exists."""
    name = cov.base_loss if cov.controls else cov.loss_mode
    if name in (*known_base_losses(), "clip_cov", "kl_cov"):
        return
    yield (
        f"the loss {name} is left for the workers to find in {EXTERNAL_LIB}, which cannot be imported here: "
        f"{_import_external_lib(config)}"
    )


def _import_external_lib(config: DictConfig) -> str | None:
    """Imports the user's modules as verl does; returns what went wrong, in one line, or None."""
    libraries = OmegaConf.select(config, EXTERNAL_LIB, default=None)
    if OmegaConf.is_list(libraries):
        libraries = OmegaConf.to_container(libraries)
    try:
        from verl.utils.import_utils import import_external_libs

        import_external_libs(libraries)
    except Exception as error:  # anything: it is the user's code
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def _refuse_missing_numbers(config: DictConfig, name: str) -> None:
    """Computes the loss of two tokens with this run's settings, which tells what an update would tell after a rollout.

    Only for verl's own losses, which need nothing but their arguments.
    """
    import torch
    from hydra.errors import InstantiationException
    from verl.trainer.ppo import core_algos
    from verl.utils.config import omega_conf_to_dataclass

    loss = core_algos.POLICY_LOSS_REGISTRY.get(name)
    if getattr(loss, "__module__", None) != core_algos.__name__:
        return
    try:
        actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    except (InstantiationException, AssertionError, ValueError):
        return  # what verl says of the actor's own settings, it says itself
    if isinstance(batch := getattr(actor, "global_batch_info", None), dict):
        scale = getattr(actor, "loss_scale_factor", None)
        batch.update(dp_size=1, batch_num_tokens=2, global_batch_size=1, loss_scale_factor=scale)
    zeros = torch.zeros(1, 2)
    try:
        loss(zeros, zeros, zeros, zeros + 1, loss_agg_mode=actor.loss_agg_mode, config=actor, rollout_is_weights=None)
    except (ValueError, AssertionError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(f"{POLICY_LOSS}.cov_base_loss={name} cannot be computed in this run: {cause}") from None
