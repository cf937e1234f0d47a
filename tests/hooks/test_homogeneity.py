"""Which losses of verl's registry let a control weigh their tokens through the advantages: computed, not listed."""

from __future__ import annotations

import pytest
import torch
from verl.trainer.ppo import core_algos
from verl.utils.config import omega_conf_to_dataclass

from tests.hooks.engine import compose
from verl_cov.hooks.weight_refusals import HOMOGENEOUS

AGGREGATIONS = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
WEIGHTS = torch.tensor([[0.0, 0.5, 1.0, 2.0, 1.0], [3.0, 0.0, 0.25, 1.0, 1.0], [1.0, 1.1, 0.0, 7.0, 0.0]])
SIGNS = torch.tensor([[1.0], [-2.0], [0.5]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
# Ratios on either side of every clip, the dual clip's too.
MOVED = torch.tensor([[0.0, 0.5, -0.5, 0.05, 1.0], [2.0, -0.4, 0.3, 0.0, 0.0], [-1.0, 0.01, 0.4, 0.2, -0.1]])


@pytest.fixture(scope="module")
def actor():
    # verl's covariance losses select among these few tokens too.
    numbers = dict(dro_beta=0.1, clip_cov_ratio=0.3, clip_cov_lb=-50.0, clip_cov_ub=50.0, kl_cov_ratio=0.5)
    words = (f"actor_rollout_ref.actor.policy_loss.{name}={number}" for name, number in numbers.items())
    composed = compose(("+verl_cov=metrics", *words), "model")
    actor = omega_conf_to_dataclass(composed.actor_rollout_ref.actor)
    actor.global_batch_info.update(dp_size=1, batch_num_tokens=14, global_batch_size=3, loss_scale_factor=5)
    return actor


def token_gradients(loss, actor, aggregation: str, advantages: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    old = torch.linspace(-3.0, -1.5, 15).view(3, 5)
    log_prob = (old + MOVED).requires_grad_()
    value, _ = loss(old, log_prob, advantages, MASK, loss_agg_mode=aggregation, config=actor, rollout_is_weights=None)
    value.backward()
    return log_prob.grad


def weighs_tokens(name: str, actor, aggregation: str) -> bool:
    """Whether each token's gradient with w A is w times that with A: whether w weighs the token's own loss."""
    loss = core_algos.get_policy_loss_fn(name)
    without, weighted = (token_gradients(loss, actor, aggregation, SIGNS * w) for w in (torch.ones(3, 5), WEIGHTS))
    assert without.abs().sum() > 0
    return torch.allclose(weighted, WEIGHTS * without, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in core_algos.POLICY_LOSS_REGISTRY if name != "bypass_mode"])
def test_a_weight_of_the_advantage_weighs_the_tokens_loss_or_the_loss_is_refused(name, actor):
    if name in ("verl_cov.clip_cov", "verl_cov.kl_cov"):
        pytest.skip("wraps another loss, which is looked at in its place")
    assert {weighs_tokens(name, actor, aggregation) for aggregation in AGGREGATIONS} == {name in HOMOGENEOUS}


def test_our_unclipped_ratio_loss_is_homogeneous_too(actor):
    from verl_cov.core.losses import ratio_loss

    def gradients(advantages):
        log_prob = MOVED.clone().requires_grad_()
        loss, _ = ratio_loss(
            old_log_prob=torch.zeros(3, 5),
            log_prob=log_prob,
            advantages=advantages,
            response_mask=MASK,
            aggregate=lambda losses: (losses * MASK).sum(),
        )
        loss.backward()
        return log_prob.grad

    assert torch.allclose(gradients(SIGNS * WEIGHTS), WEIGHTS * gradients(SIGNS.expand(3, 5)))
