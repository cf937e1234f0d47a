"""Registers ``verl_cov.clip_cov``, ``verl_cov.kl_cov`` and ``verl_cov.ce_gppo`` in verl's policy-loss registry.

Leans on ``verl.trainer.ppo.core_algos``: ``register_policy_loss``, ``POLICY_LOSS_REGISTRY``, ``agg_loss`` and the
arguments with which ``verl.workers.utils.losses.ppo_loss`` (and before 0.8 ``dp_actor.update_policy``) calls a policy
loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from verl_cov.core import losses
from verl_cov.core.controls.ce_gppo import BETAS, ce_gppo
from verl_cov.core.dead_zone import ALL, FLOOR
from verl_cov.hooks import versions
from verl_cov.hooks.asks import config_from_policy_loss
from verl_cov.hooks.loss_modes import CE_GPPO, LOSS_MODES
from verl_cov.hooks.micro_batch import InLoss, MicroBatches, clip_range, in_loss
from verl_cov.hooks.seams import Seam
from verl_cov.hooks.update_record import UpdateRecord

if TYPE_CHECKING:
    from verl.workers.config import ActorConfig

    from verl_cov.hooks.config import CovPolicyLossConfig

# Losses of verl's that take the mean over a micro-batch's rows, whatever loss_agg_mode says.
MEANS_OVER_ROWS = ("geo_mean",)

seam = Seam()


def install() -> None:
    seam.when_imported("verl.trainer.ppo.core_algos", _register)


def _register(core_algos: ModuleType) -> None:
    for name, loss in (*((name, _policy_loss) for name in LOSS_MODES), (CE_GPPO, _ce_gppo)):
        core_algos.register_policy_loss(name)(functools.partial(loss, core_algos))
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

    context = _context(cov, response_mask)
    update, batch_info = context.update, getattr(config, "global_batch_info", None) or {}
    if loss_agg_mode == "seq-mean-token-sum-norm" and update.horizon and batch_info.get("loss_scale_factor") is None:
        # verl divides by the micro-batch's width, which is that of its own longest response. verl's entropy bonus and
        # reference KL, which come after this loss, read the number here too.
        batch_info["loss_scale_factor"] = update.horizon

    aggregate = _aggregate(core_algos, response_mask, loss_agg_mode, batch_info)
    inputs: dict[str, Any] = dict(
        old_log_prob=old_log_prob,
        advantages=advantages,
        response_mask=response_mask,
        rollout_is_weights=rollout_is_weights,
    )
    selected = context.selection
    if isinstance(selected, MicroBatches):
        selected = selected.select(config, cov, inputs | {"log_prob": log_prob})
    if cov.base_loss == "ratio":
        base_loss: losses.PolicyLoss = functools.partial(losses.ratio_loss, aggregate=aggregate)
    else:
        base_loss = core_algos.get_policy_loss_fn(cov.base_loss)
        inputs.update(loss_agg_mode=loss_agg_mode, config=config)
        if cov.base_loss in MEANS_OVER_ROWS:
            base_loss = functools.partial(_sum_over_rows, base_loss, batch_info)
    control = functools.partial(cov.control.act, base_loss, selected, aggregate, update.dead_zone, **inputs)
    if cov.control.penalises and update.dead_zone == ALL:  # the update that shows the noise
        drift = torch.where(selected, losses.log_ratio(log_prob, old_log_prob), 0.0).detach().abs()
        update.add(drift=drift.sum(), selected=selected.sum())
    loss, metrics = control(log_prob=log_prob)
    if update.measures:
        _measure(loss, functools.partial(base_loss, **inputs), control, log_prob, update)
        if context.slots is not None:
            update.add_log_probs(context.slots, log_prob, response_mask.bool())
    return loss, _logged(metrics)


def _ce_gppo(
    core_algos: ModuleType,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Computes (loss, metrics) of CE-GPPO, a loss to wrap or to use alone."""
    assert config is not None
    settings = config.policy_loss
    loss, metrics = ce_gppo(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=advantages,
        response_mask=response_mask,
        aggregate=_aggregate(
            core_algos, response_mask, loss_agg_mode, getattr(config, "global_batch_info", None) or {}
        ),
        betas=(getattr(settings, "cov_gppo_beta1", BETAS[0]), getattr(settings, "cov_gppo_beta2", BETAS[1])),
        clip=clip_range(config),
        dual_clip=config.get("clip_ratio_c", 3.0),
        rollout_is_weights=rollout_is_weights,
    )
    return loss, _logged(metrics)


def _aggregate(
    core_algos: ModuleType, response_mask: Tensor, loss_agg_mode: str, batch_info: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    """Returns verl's reduction of a [sequences, length] loss matrix to a scalar, of this micro-batch."""
    return lambda loss_matrix: core_algos.agg_loss(
        loss_mat=loss_matrix, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **batch_info
    )


def _logged(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the metrics as the actor takes them; on an accelerator only the legacy one waits for the numbers."""
    if versions.installed_release().legacy:  # the legacy actor takes the mean of plain numbers
        return {name: float(value) for name, value in metrics.items()}
    return metrics


def _sum_over_rows(
    base_loss: losses.PolicyLoss, batch_info: dict[str, Any], *, log_prob: Tensor, **inputs: Any
) -> tuple[Tensor, dict[str, Any]]:
    """Makes of a loss that is the mean over a micro-batch's rows one that is the mean over the mini-batch's."""
    loss, metrics = base_loss(log_prob=log_prob, **inputs)
    if batch_info.get("global_batch_size") is not None:
        loss = loss * (len(log_prob) * batch_info.get("dp_size", 1) / batch_info["global_batch_size"])
    return loss, metrics


def _measure(
    loss: Tensor, base_loss: losses.PolicyLoss, control: losses.PolicyLoss, log_prob: Tensor, update: UpdateRecord
) -> None:
    """Records, when the backward pass reaches ``loss``, how much the control changed of its gradient.

    A loss that verl throws away is never reached.
    """
    if not loss.requires_grad:
        return
    changed, gradient = losses.gradient_change(
        lambda x: base_loss(log_prob=x)[0], lambda x: control(log_prob=x)[0], log_prob
    )

    def add(by_loss: Tensor) -> None:
        update.add(changed=changed * by_loss.abs(), gradient=gradient * by_loss.abs())

    loss.register_hook(add)


def _context(cov: CovPolicyLossConfig, response_mask: Tensor) -> InLoss:
    """Returns which tokens of this micro-batch to act on, and the record of the optimizer step."""
    context = in_loss()
    if context is None:
        # Never fall back to micro-batches silently: that is another algorithm than the configured one.
        if cov.cov_scope == "mini_batch":
            raise RuntimeError(
                "verl-cov: this worker shows the policy loss one micro-batch at a time, and verl-cov's hook is not in "
                "it: run `verl-cov doctor` and, for a legacy actor, `verl-cov patch apply` on every node; or set "
                "actor_rollout_ref.actor.policy_loss.cov_scope=micro_batch"
            )
        return InLoss(_without_hook(), UpdateRecord(dead_zone=cov.dead_zone(FLOOR)))
    shape = getattr(context.selection, "shape", response_mask.shape)
    if shape != response_mask.shape:
        raise RuntimeError(
            f"verl-cov: the selection has shape {tuple(shape)}, the micro-batch {tuple(response_mask.shape)}: "
            "this engine re-shards the mini-batch after train_batch saw it, which verl-cov does not support"
        )
    return context


@functools.cache
def _without_hook() -> MicroBatches:
    """Returns what selects in a worker without the hook. One object for all calls, so that its draws differ."""
    return MicroBatches()
