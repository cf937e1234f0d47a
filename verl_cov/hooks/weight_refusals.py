"""Refuses controls by weight where they would not be what they say; the losses that let them through.

A weight acts through the advantages: with a loss that is homogeneous in the advantage, w A gives w times the token's
loss. tests/hooks/test_homogeneity.py computes which losses of verl's registry are. Leans on ``loss_agg_mode`` and
``loss_scale_factor`` of verl's actor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from verl_cov.hooks.base_losses import RATIO
from verl_cov.hooks.loss_modes import CE_GPPO, POLICY_LOSS
from verl_cov.hooks.trainers import bypasses_old_log_probs

if TYPE_CHECKING:
    from verl_cov.hooks.config import CovPolicyLossConfig

HOMOGENEOUS = (RATIO, CE_GPPO, "vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "gpg", "cispo")
WEIGHTS = f"{POLICY_LOSS}.cov_weights"


def refuse(config: DictConfig, cov: CovPolicyLossConfig) -> None:
    """Raises ValueError for weights with a loss, or in a run, in which they would mean something else."""
    from verl.trainer.ppo import core_algos

    if not cov.weights:
        return
    names = ", ".join(cov.weights)
    loss, field = _loss(cov)
    verls = getattr(core_algos.POLICY_LOSS_REGISTRY.get(loss), "__module__", None) == core_algos.__name__
    if verls and loss not in HOMOGENEOUS:
        ours = f" (or loss_mode=verl_cov.{loss})" if loss in ("clip_cov", "kl_cov") else ""
        raise ValueError(
            f"{WEIGHTS} ({names}) cannot weigh the loss {loss}, which is not proportional to each token's advantage: "
            f"set {field} to one of {', '.join(name for name in HOMOGENEOUS if cov.controls or name != RATIO)}{ours}"
        )
    actor = config.actor_rollout_ref.actor
    width = actor.loss_agg_mode == "seq-mean-token-sum-norm"
    if width and not cov.controls and OmegaConf.select(actor, "loss_scale_factor", default=None) is None:
        raise ValueError(
            "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm divides by each micro-batch's width, so "
            f"that weights over the mini-batch ({names}) mean nothing: set actor_rollout_ref.actor.loss_scale_factor"
        )
    needed = {name for name, weight in cov.weights.items() if {"entropy", "rollout_entropy"} & set(weight.needs)}
    if needed and bypasses_old_log_probs(config):
        raise ValueError(
            f"{WEIGHTS}.{min(needed)} needs entropies, and with algorithm.rollout_correction.bypass_mode=true verl "
            "computes none: set it to false"
        )


def notices(cov: CovPolicyLossConfig) -> Iterator[str]:
    """Yields what nobody can know of a loss that is not verl's."""
    from verl.trainer.ppo import core_algos

    loss, _ = _loss(cov)
    verls = getattr(core_algos.POLICY_LOSS_REGISTRY.get(loss), "__module__", None) == core_algos.__name__
    if cov.weights and loss not in HOMOGENEOUS and not verls:
        yield (
            f"WARNING: {WEIGHTS} ({', '.join(cov.weights)}) multiply advantages, which weighs the tokens of the loss "
            f"{loss} only if that is proportional to each token's advantage: nobody has checked it"
        )
    if cov.weights and cov.cov_scope == "micro_batch":
        yield f"WARNING: {WEIGHTS} are taken within each MICRO-BATCH: they change with the micro-batch size"


def _loss(cov: CovPolicyLossConfig) -> tuple[str, str]:
    """Returns the loss that the weights multiply, and the field that names it."""
    return (
        (cov.base_loss, f"{POLICY_LOSS}.cov_base_loss") if cov.controls else (cov.loss_mode, f"{POLICY_LOSS}.loss_mode")
    )
