"""Registers ``verl_cov.clip_cov`` and ``verl_cov.kl_cov`` in verl's policy-loss registry.

Leans on ``verl.trainer.ppo.core_algos``: ``register_policy_loss``, ``POLICY_LOSS_REGISTRY``, ``agg_loss`` and the
arguments with which ``verl.workers.utils.losses.ppo_loss`` (and before 0.8 ``dp_actor.update_policy``) calls a policy
loss. It hands a loss nothing but the padded micro-batch, so which tokens the mini-batch's selection chose arrives in a
ContextVar that :mod:`.mini_batch` sets.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from verl_cov import losses
from verl_cov.host import versions
from verl_cov.host.imports import when_imported
from verl_cov.identity import token_identity
from verl_cov.selection import Control, select_tokens


class MicroBatches:
    """Selects within each micro-batch, as verl's own ``clip_cov`` and ``kl_cov`` do, and adds up what it chose.

    ``numbers`` are the sums of :attr:`verl_cov.selection.Selected.numbers` over the micro-batches so far (0 before the
    first one). No collectives: engines call the loss on some ranks only, and not equally often.
    """

    def __init__(self, step: int = 0) -> None:
        self.step = step
        self.calls = 0
        self.numbers: Tensor | None = None

    def select(self, config: Any, cov: Any, micro_batch: dict[str, Tensor]) -> Tensor:
        """[sequences, response length] bool of a micro-batch in verl's policy-loss arguments."""
        advantages, valid = micro_batch["advantages"], micro_batch["response_mask"].bool()
        log_prob = micro_batch["log_prob" if cov.log_prob == "current" else "old_log_prob"].detach()
        barred = _clipped_by_ppo(config, micro_batch).flatten() if cov.loss_mode == "verl_cov.clip_cov" else None
        self.calls += 1

        def identity(at: Tensor) -> Tensor:
            return token_identity(torch.full_like(at, self.calls), at)

        chosen = select_tokens(
            log_prob.flatten(),
            advantages.flatten(),
            valid.flatten(),
            identity,
            control_of(cov, self.step),
            barred=barred,
        )
        self.numbers = chosen.numbers if self.numbers is None else self.numbers + chosen.numbers
        return chosen.mask.view_as(valid)


# The selection that holds for the micro-batch whose loss is being computed: [sequences, response length] bool.
_selected: ContextVar[Tensor | MicroBatches | None] = ContextVar("verl_cov_selected", default=None)


@contextmanager
def selected_tokens(selection: Tensor | MicroBatches) -> Iterator[None]:
    """Within this block, our policy losses act on the tokens of ``selection``."""
    token = _selected.set(selection)
    try:
        yield
    finally:
        _selected.reset(token)


def install() -> None:
    when_imported("verl.trainer.ppo.core_algos", _register)


def _register(core_algos: Any) -> None:
    # The names as literals: importing verl_cov.config here would pull verl's worker configuration into every process.
    for name in ("verl_cov.clip_cov", "verl_cov.kl_cov"):
        core_algos.register_policy_loss(name)(functools.partial(_policy_loss, core_algos))


def control_of(config: Any, step: int) -> Control:
    """The selection a :class:`~verl_cov.config.CovPolicyLossConfig` asks for at optimizer step ``step``."""
    band = (config.clip_cov_lb, config.clip_cov_ub) if config.loss_mode == "verl_cov.clip_cov" else None
    return Control(ratio=config.ratio, band=band, seed=config.cov_seed, step=step)


def _policy_loss(
    core_algos: Any,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """verl's policy-loss contract; all tensors [sequences, response length]. Returns the loss and its metrics."""
    from verl_cov.config import CLIP_COV, cov_config

    cov = cov_config(config.policy_loss)
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
    selected = _selected.get()
    if selected is None:
        # Never on its own: the update would be another algorithm's than the one asked for.
        if cov.cov_scope == "mini_batch":
            raise RuntimeError(
                "verl-cov: this worker shows the policy loss one micro-batch at a time, and verl-cov's hook is not in "
                "it: run `verl-cov doctor` and, for a legacy actor, `verl-cov patch apply` on every node; or set "
                "actor_rollout_ref.actor.policy_loss.cov_scope=micro_batch"
            )
        selected = _without_hook()
    if isinstance(selected, MicroBatches):
        selected = selected.select(config, cov, inputs)
    elif selected.shape != response_mask.shape:
        raise RuntimeError(
            f"verl-cov: the selection has shape {tuple(selected.shape)}, the micro-batch {tuple(response_mask.shape)}: "
            "this engine re-shards the mini-batch after train_batch saw it, which verl-cov does not support"
        )

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
    if versions.this().legacy:  # the legacy actor takes the mean of plain numbers
        metrics = {name: float(value) for name, value in metrics.items()}
    return loss, metrics


def base_losses() -> list[str]:
    """Names of the losses that a control can wrap: not verl's own clip_cov and kl_cov, nor ours, one on another."""
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    found = [name for name in POLICY_LOSS_REGISTRY if not name.endswith(("clip_cov", "kl_cov"))]
    return ["ratio", *found]


@functools.cache
def _without_hook() -> MicroBatches:
    """What selects within micro-batches, as asked, in a worker without the hook. One for all: its draws go on."""
    return MicroBatches()


def _clipped_by_ppo(config: Any, micro_batch: dict[str, Tensor]) -> Tensor:
    """Tokens whose gradient PPO's clip removes already; verl's ``clip_cov`` does not draw them."""
    low, high = _clip_range(config)
    ratio = losses.log_ratio(micro_batch["log_prob"].detach(), micro_batch["old_log_prob"]).exp()
    advantages = micro_batch["advantages"]
    return -advantages * ratio.clamp(1 - low, 1 + high) > -advantages * ratio


def _clip_range(config: Any) -> tuple[float, float]:
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    return low, high
