"""Registers ``verl_cov.clip_cov`` and ``verl_cov.kl_cov`` in verl's policy-loss registry.

Leans on ``verl.trainer.ppo.core_algos``: ``register_policy_loss``, ``POLICY_LOSS_REGISTRY``, ``agg_loss`` and the
arguments with which ``verl.workers.utils.losses.ppo_loss`` calls a policy loss. ppo_loss hands a loss nothing but the
padded micro-batch, so which tokens the mini-batch's selection chose arrives in a ContextVar that :mod:`.train_batch`
sets.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from verl_cov import losses
from verl_cov.host.imports import when_imported
from verl_cov.selection import Control, select_tokens, token_identity

logger = logging.getLogger(__name__)

# [sequences, response length] bool of the micro-batch whose loss is being computed.
_selected: ContextVar[Tensor | None] = ContextVar("verl_cov_selected", default=None)


@contextmanager
def selected_tokens(mask: Tensor) -> Iterator[None]:
    """Within this block, our policy losses act on the tokens of ``mask`` ([sequences, response length] bool)."""
    token = _selected.set(mask)
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
    from verl_cov.config import CLIP_COV

    band = (config.clip_cov_lb, config.clip_cov_ub) if config.loss_mode == CLIP_COV else None
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
    """verl's policy-loss contract; all tensors [sequences, response length]."""
    from verl_cov.config import CLIP_COV, cov_config

    cov = cov_config(config.policy_loss)
    if cov is None:
        raise ValueError(f"policy_loss.loss_mode={config.policy_loss.loss_mode!r} is not one of verl-cov's losses")

    def aggregate(loss_matrix: Tensor) -> Tensor:
        return core_algos.agg_loss(
            loss_mat=loss_matrix,
            loss_mask=response_mask,
            loss_agg_mode=loss_agg_mode,
            **(getattr(config, "global_batch_info", None) or {}),
        )

    selected = _selected.get()
    if selected is None:
        selected = _select_in_micro_batch(cov, old_log_prob, advantages, response_mask)
    elif selected.shape != response_mask.shape:
        raise RuntimeError(
            f"verl-cov: the selection has shape {tuple(selected.shape)}, the micro-batch {tuple(response_mask.shape)}: "
            "this engine re-shards the mini-batch after train_batch saw it, which verl-cov does not support"
        )

    inputs = dict(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=advantages,
        response_mask=response_mask,
        rollout_is_weights=rollout_is_weights,
    )
    if cov.base_loss == "ratio":
        base_loss: losses.PolicyLoss = functools.partial(losses.ratio_loss, aggregate=aggregate)
    else:
        base_loss = core_algos.get_policy_loss_fn(cov.base_loss)
        inputs.update(loss_agg_mode=loss_agg_mode, config=config)
    if cov.loss_mode == CLIP_COV:
        return losses.clip_cov(base_loss, selected, **inputs)
    return losses.kl_cov(base_loss, selected, aggregate, coefficient=cov.ppo_kl_coef, estimator=cov.cov_kl, **inputs)


def _select_in_micro_batch(cov: Any, old_log_prob: Tensor, advantages: Tensor, response_mask: Tensor) -> Tensor:
    """The fallback when nobody selected over the mini-batch: an engine that does not go through ``train_batch``."""
    _warn_once(
        "verl-cov: this engine calls the policy loss without TrainingWorker.train_batch, so tokens are selected within "
        "each micro-batch: the update depends on the micro-batch size"
    )
    valid = response_mask.bool()
    rows, positions = torch.nonzero(valid, as_tuple=True)
    chosen = select_tokens(
        old_log_prob[valid], advantages[valid], token_identity(rows, positions), control_of(cov, step=0)
    )
    mask = torch.zeros_like(valid)
    mask[valid] = chosen.mask
    return mask


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
