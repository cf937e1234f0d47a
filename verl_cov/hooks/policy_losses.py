"""Registers ``verl_cov.clip_cov`` and ``verl_cov.kl_cov`` in verl's policy-loss registry.

Leans on ``verl.trainer.ppo.core_algos``: ``register_policy_loss``, ``POLICY_LOSS_REGISTRY``, ``agg_loss`` and the
arguments with which ``verl.workers.utils.losses.ppo_loss`` (and before 0.8 ``dp_actor.update_policy``) calls a policy
loss.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from verl_cov.core import losses
from verl_cov.hooks import versions
from verl_cov.hooks.asks import config_from_policy_loss
from verl_cov.hooks.loss_modes import CLIP_COV, LOSS_MODES
from verl_cov.hooks.micro_batch import MicroBatches, current_selection
from verl_cov.hooks.seams import Seam

if TYPE_CHECKING:
    from verl.workers.config import ActorConfig

    from verl_cov.hooks.config import CovPolicyLossConfig

seam = Seam()


def install() -> None:
    seam.when_imported("verl.trainer.ppo.core_algos", _register)


def _register(core_algos: ModuleType) -> None:
    for name in LOSS_MODES:
        core_algos.register_policy_loss(name)(functools.partial(_policy_loss, core_algos))
        seam.on_uninstall(functools.partial(core_algos.POLICY_LOSS_REGISTRY.pop, name, None))


def _policy_loss(
    core_algos: ModuleType,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Computes (loss, metrics) of a micro-batch, as verl calls a policy loss; tensors are [sequences, length]."""
    assert config is not None  # verl always passes it
    cov = config_from_policy_loss(config.policy_loss)
    if cov is None or not cov.controls:
        raise ValueError(f"policy_loss.loss_mode={config.policy_loss.loss_mode!r} is not one of verl-cov's losses")

    def aggregate(loss_matrix: Tensor) -> Tensor:
        return core_algos.agg_loss(
            loss_mat=loss_matrix,
            loss_mask=response_mask,
            loss_agg_mode=loss_agg_mode,
            **(getattr(config, "global_batch_info", None) or {}),
        )

    inputs: dict[str, Any] = dict(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=advantages,
        response_mask=response_mask,
        rollout_is_weights=rollout_is_weights,
    )
    selected = _selection(cov, config, inputs)
    if cov.base_loss == "ratio":
        base_loss: losses.PolicyLoss = functools.partial(losses.ratio_loss, aggregate=aggregate)
    else:
        base_loss = core_algos.get_policy_loss_fn(cov.base_loss)
        inputs.update(loss_agg_mode=loss_agg_mode, config=config)
    if cov.loss_mode == CLIP_COV:
        loss, metrics = losses.clip_cov(base_loss, selected, **inputs)
    else:
        penalty = dict(coefficient=cov.ppo_kl_coef, estimator=cov.cov_kl)
        loss, metrics = losses.kl_cov(base_loss, selected, aggregate, **penalty, **inputs)
    if versions.installed_release().legacy:  # the legacy actor takes the mean of plain numbers
        metrics = {name: float(value) for name, value in metrics.items()}
    return loss, metrics


def _selection(cov: CovPolicyLossConfig, actor_config: ActorConfig, inputs: dict[str, Any]) -> Tensor:
    """Returns [sequences, length] bool: the tokens of this micro-batch that the control acts on."""
    selected = current_selection()
    if selected is None:
        # Never fall back to micro-batches silently: that is another algorithm than the configured one.
        if cov.cov_scope == "mini_batch":
            raise RuntimeError(
                "verl-cov: this worker shows the policy loss one micro-batch at a time, and verl-cov's hook is not in "
                "it: run `verl-cov doctor` and, for a legacy actor, `verl-cov patch apply` on every node; or set "
                "actor_rollout_ref.actor.policy_loss.cov_scope=micro_batch"
            )
        selected = _without_hook()
    if isinstance(selected, MicroBatches):
        return selected.select(actor_config, cov, inputs)
    expected = inputs["response_mask"].shape
    if selected.shape != expected:
        raise RuntimeError(
            f"verl-cov: the selection has shape {tuple(selected.shape)}, the micro-batch {tuple(expected)}: "
            "this engine re-shards the mini-batch after train_batch saw it, which verl-cov does not support"
        )
    return selected


@functools.cache
def _without_hook() -> MicroBatches:
    """Returns what selects in a worker without the hook. One object for all calls, so that its draws differ."""
    return MicroBatches()
