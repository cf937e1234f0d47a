"""`+verl_cov=clip_cov` has the released code's loss also where the policy has moved far: no dual clip."""

from __future__ import annotations

import pytest
import torch

from verl_cov.recipes.compose import compose_main_ppo


def gradient(*overrides: str) -> torch.Tensor:
    """[rows, tokens], of one micro-batch whose log-ratios have a standard deviation of 1.2."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.utils.config import omega_conf_to_dataclass

    config = compose_main_ppo(("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1", *overrides))
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    actor.global_batch_info.update(dp_size=1, batch_num_tokens=None, global_batch_size=None, loss_scale_factor=None)
    torch.manual_seed(0)
    old = -4 * torch.rand(16, 200)
    advantages = torch.randn(16, 1).expand(16, 200).contiguous()
    log_prob = (old + 1.2 * torch.randn(16, 200)).requires_grad_()
    loss, _ = get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=old,
        log_prob=log_prob * 1.0,
        advantages=advantages,
        response_mask=torch.rand(16, 200) > 0.1,
        loss_agg_mode="token-mean",
        config=actor,
    )
    loss.backward()
    assert log_prob.grad is not None
    return log_prob.grad


def test_clip_cov_has_the_gradient_of_verls_own():
    """Within one micro-batch, and with a band of which all tokens are taken, so that nothing is drawn."""
    loss = "actor_rollout_ref.actor.policy_loss."
    same = (f"{loss}clip_cov_ratio=0.05", f"{loss}clip_cov_lb=2.5", f"{loss}clip_cov_ub=50")
    ours = ("+verl_cov=clip_cov", f"{loss}cov_scope=micro_batch", "trainer.default_local_dir=none", *same)
    wide = [f"actor_rollout_ref.actor.clip_ratio{side}=1.0" for side in ("", "_low", "_high")]
    verls = gradient(f"{loss}loss_mode=clip_cov", *wide, *same)
    assert verls.count_nonzero() > 1000
    torch.testing.assert_close(gradient(*ours), verls, rtol=1e-5, atol=1e-9)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            gradient(*ours, "actor_rollout_ref.actor.clip_ratio_c=10"), verls, rtol=1e-5, atol=1e-9
        )
