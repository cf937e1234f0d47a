"""The losses against verl's own, on the tokens verl would choose, and what makes them composable."""

from __future__ import annotations

import math

import pytest
import torch
import verl.trainer.ppo.core_algos as core_algos
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from verl_cov.core import covariance, dead_zone, losses
from verl_cov.hooks import versions
from verl_cov.hooks.base_losses import known_base_losses
from verl_cov.hooks.config import CovPolicyLossConfig
from verl_cov.hooks.micro_batch import MicroBatches, selected_tokens

RELEASE = versions.installed_release()
AGGREGATIONS = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
if not RELEASE.v1:
    AGGREGATIONS.remove("token-sum")  # verl 0.9 brought it


def batch(seed=0, rows=6, width=11):
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(rows, width, generator=generator) * 4
    new = old + 0.3 * torch.randn(rows, width, generator=generator)
    advantages = torch.randn(rows, 1, generator=generator).expand(rows, width).contiguous()
    mask = torch.arange(width) < torch.randint(3, width + 1, (rows, 1), generator=generator)
    return dict(old_log_prob=old, log_prob=new.requires_grad_(), advantages=advantages, response_mask=mask)


def actor(**policy_loss):
    """The configuration that a policy loss is called with, as the verl at hand makes it."""
    settings = dict(clip_ratio=1.0, clip_ratio_low=1.0, clip_ratio_high=1.0)
    from verl.workers.config import FSDPActorConfig

    loss = CovPolicyLossConfig(**policy_loss)
    return FSDPActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=loss, **settings)


def change(config, **fields):
    """Set fields of a configuration that is frozen."""
    config.__dict__.update(fields)


def run(name, config, inputs, agg="token-mean", weights=None):
    """(loss, gradient of log_prob) of a policy loss, called as the verl at hand calls it."""
    inputs["log_prob"].grad = None
    loss_fn = core_algos.get_policy_loss_fn(name)
    loss, metrics = loss_fn(**inputs, loss_agg_mode=agg, config=config, rollout_is_weights=weights)
    assert all(math.isfinite(float(value)) for value in metrics.values())
    loss.backward()
    return loss.detach(), inputs["log_prob"].grad.clone()


def covariance_of(inputs):
    """Eq. 10 with the current log-probs, as verl's own losses rank; [rows, width], -inf where masked."""
    valid = inputs["response_mask"]
    log_prob, advantage = inputs["log_prob"].detach()[valid], inputs["advantages"][valid]
    means = covariance.means(
        covariance.fixed_point_sums(log_prob, advantage, torch.ones_like(log_prob, dtype=torch.bool))
    )
    cov = torch.full(valid.shape, -torch.inf)
    cov[valid] = covariance.token_covariance(log_prob, advantage, *means).float()
    return cov


@pytest.mark.parametrize("agg", AGGREGATIONS[:-1])
@pytest.mark.parametrize("weighted", [False, True])
def test_kl_cov_is_verls_on_the_tokens_verl_chooses(agg, weighted):
    inputs = batch()
    count = int(0.05 * inputs["response_mask"].sum())
    assert count >= 2
    cov = covariance_of(inputs)
    selected = cov >= cov.flatten().topk(count).values[-1]
    weights = torch.rand(cov.shape) + 0.5 if weighted else None
    config = actor(loss_mode="verl_cov.kl_cov", kl_cov_ratio=0.05, ppo_kl_coef=0.7)
    theirs = run("kl_cov", config, inputs, agg, weights)
    with selected_tokens(selected):
        ours = run("verl_cov.kl_cov", config, inputs, agg, weights)
    torch.testing.assert_close(ours, theirs)


def test_clip_cov_has_verls_gradient_where_verl_takes_the_whole_band():
    inputs = batch()
    cov = covariance_of(inputs)
    low = float(cov.flatten().topk(3).values[-1]) - 1e-4  # three candidates, and a quota of more: no draw
    config, verls = (
        actor(loss_mode="verl_cov.clip_cov", clip_cov_ratio=0.05, clip_cov_lb=low, clip_cov_ub=99) for _ in range(2)
    )
    change(verls.policy_loss, clip_cov_ratio=0.5)  # past our own limit, for verl's function only
    _, theirs = run("clip_cov", verls, inputs)
    with selected_tokens(cov > low):
        _, ours = run("verl_cov.clip_cov", config, inputs)
    # The released code keeps a PPO clip but no dual clip; at these ratios neither acts below ratio 2.
    torch.testing.assert_close(ours, theirs)
    assert (ours[cov > low] == 0).all()


BASES = ["vanilla", "ratio", "gspo", "gpg", "geo_mean", "cispo", "dppo_kl", "dppo_tv", "sapo"]
if RELEASE.v1:
    assert set(BASES) <= set(known_base_losses())
BASES = [name for name in BASES if name in known_base_losses()]


@pytest.mark.parametrize("base", BASES)
def test_removed_tokens_have_no_gradient_and_leave_the_loss_alone(base):
    inputs = batch()
    selected = torch.zeros_like(inputs["response_mask"])
    selected[2, 1] = selected[4, 0] = True
    config = actor(loss_mode="verl_cov.clip_cov", cov_base_loss=base)
    with selected_tokens(torch.zeros_like(selected)):
        whole = run("verl_cov.clip_cov", config, inputs)
    with selected_tokens(selected):
        cut = run("verl_cov.clip_cov", config, inputs)
    assert cut[0] == whole[0]
    if base != "geo_mean" and base != "gspo":  # their ratio belongs to the sequence: other tokens of the row may move
        torch.testing.assert_close(cut[1][~selected], whole[1][~selected])
    assert (cut[1][selected] == 0).all()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("estimator", ["abs", "k2", "k3"])
def test_kl_cov_adds_one_aggregated_term(base, estimator):
    inputs = batch()
    selected = torch.zeros_like(inputs["response_mask"])
    selected[2, 1] = selected[4, 0] = True
    config = actor(loss_mode="verl_cov.kl_cov", cov_base_loss=base, cov_kl=estimator, ppo_kl_coef=0.7)
    with selected_tokens(torch.zeros_like(selected)):
        without = run("verl_cov.kl_cov", config, inputs)
    with selected_tokens(selected):
        with_term = run("verl_cov.kl_cov", config, inputs)
    x = (inputs["log_prob"] - inputs["old_log_prob"]).detach()[selected]
    term = {"abs": x.abs(), "k2": x**2 / 2, "k3": (-x).exp() - 1 + x}[estimator].sum()
    tokens = inputs["response_mask"].sum()
    torch.testing.assert_close(with_term[0] - without[0], 0.7 * term / tokens, rtol=1e-4, atol=1e-6)
    slope = {"abs": x.sign(), "k2": x, "k3": 1 - (-x).exp()}[estimator]
    torch.testing.assert_close((with_term[1] - without[1])[selected], 0.7 * slope / tokens, rtol=1e-4, atol=1e-6)


def test_the_penalty_is_flat_where_only_rounding_moves_the_ratio():
    """Why KL-Cov does nothing with one update per rollout, and what its absolute penalty needs a dead zone for."""
    for estimator in ("abs", "k2", "k3"):
        x = torch.tensor([0.0, 3e-7, -3e-7, 1e-5, -1e-5], requires_grad=True)
        losses.kl_penalty(x, estimator, dead_zone=1e-5).sum().backward()
        assert (x.grad.abs() < 2e-5).all()
    x = torch.tensor([3e-7, -3e-7, 0.2, -0.2], requires_grad=True)
    losses.kl_penalty(x, "abs", dead_zone=1e-5).sum().backward()
    assert x.grad.tolist() == [0, 0, 1, -1]
    assert losses.kl_penalty(x, "abs", dead_zone=1e-5).tolist() == pytest.approx([0, 0, 0.2, 0.2])
    x.grad = None
    losses.kl_penalty(x, "abs").sum().backward()  # the released code
    assert x.grad.tolist() == [1, -1, 1, -1]


@given(st.floats(0, 10) | st.just(math.nan) | st.just(math.inf))
def test_the_dead_zone_covers_the_noise_and_is_one_for_layouts_that_differ_a_little(noise):
    zone = dead_zone.from_noise(noise)
    assert zone >= dead_zone.FLOOR
    if math.isfinite(noise):
        assert dead_zone.MULTIPLE * noise <= zone * (1 + 1e-9)
        assert zone <= max(2 * dead_zone.MULTIPLE * noise, dead_zone.FLOOR) * (1 + 1e-9)
    assert math.log2(zone / dead_zone.FLOOR) % 1 == pytest.approx(0)


def test_an_outlier_ratio_stays_finite():
    inputs = batch()
    with torch.no_grad():
        inputs["log_prob"][0, 0], inputs["old_log_prob"][0, 0] = 0.0, -500.0
    with selected_tokens(torch.ones_like(inputs["response_mask"])):
        loss, gradient = run("verl_cov.kl_cov", actor(loss_mode="verl_cov.kl_cov", cov_kl="k3"), inputs)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_without_the_hook_it_selects_within_micro_batches_only_if_told_to():
    """Another algorithm than the one asked for must not be trained with, whatever worker calls the loss."""
    whole = actor(loss_mode="verl_cov.kl_cov", kl_cov_ratio=0.05)
    with pytest.raises(RuntimeError, match="cov_scope=micro_batch"):
        run("verl_cov.kl_cov", whole, batch())
    part = actor(loss_mode="verl_cov.kl_cov", kl_cov_ratio=0.05, cov_scope="micro_batch", ppo_kl_coef=0.7)
    ours, verls = (run(name, part, batch()) for name in ("verl_cov.kl_cov", "kl_cov"))
    torch.testing.assert_close(ours, verls)


def test_a_selection_of_another_shape_is_refused():
    with selected_tokens(torch.zeros(1, 2, dtype=torch.bool)), pytest.raises(RuntimeError, match="re-shards"):
        run("verl_cov.kl_cov", actor(loss_mode="verl_cov.kl_cov"), batch())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("agg", AGGREGATIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_an_empty_selection_is_the_base_loss_in_every_composition(base, agg, weighted):
    """Every aggregation mode, rollout-correction weights, an asymmetric clip: the wrapper itself changes nothing."""
    inputs = batch()
    weights = torch.rand(inputs["log_prob"].shape) + 0.5 if weighted else None
    nothing = torch.zeros_like(inputs["response_mask"])
    for mode in ("verl_cov.clip_cov", "verl_cov.kl_cov"):
        config = actor(loss_mode=mode, cov_base_loss=base)
        change(config, clip_ratio_low=0.1, clip_ratio_high=0.3)
        with selected_tokens(nothing):
            ours = run(mode, config, inputs, agg, weights)
        if base != "ratio":
            torch.testing.assert_close(ours, run(base, config, inputs, agg, weights))
        with selected_tokens(inputs["response_mask"]):
            loss, gradient = run(mode, config, inputs, agg, weights)
        if mode == "verl_cov.clip_cov":
            assert loss == ours[0]  # no normaliser moved
            assert (gradient == 0).all()


def test_micro_batch_scope_draws_as_verls_clip_cov_does():
    """The same count, from the same candidates, each equally often; another draw in each micro-batch."""
    inputs = batch(rows=8, width=20)
    with torch.no_grad():  # two tokens that PPO's own clip cuts: verl does not draw them
        inputs["log_prob"][0, 0] = inputs["old_log_prob"][0, 0] + 1.5
        inputs["log_prob"][1, 0] = inputs["old_log_prob"][1, 0] + 1.5
    cov = covariance_of(inputs)
    clipped = torch.zeros_like(inputs["response_mask"])
    clipped[:2, 0] = inputs["advantages"][:2, 0] > 0
    band = (float(cov.flatten().topk(25).values[-1]) - 1e-4, float(cov.max()) + 1)
    candidates = (cov > band[0]) & ~clipped
    settings = dict(clip_cov_ratio=0.05, clip_cov_lb=band[0], clip_cov_ub=band[1])
    ours = actor(loss_mode="verl_cov.clip_cov", cov_scope="micro_batch", **settings)
    draws, scope = 1500, MicroBatches()
    frequency = {"ours": torch.zeros(cov.shape), "verl": torch.zeros(cov.shape)}
    counts = set()
    for _ in range(draws):
        with selected_tokens(scope):
            _, gradient = run("verl_cov.clip_cov", ours, inputs)
        removed = (gradient == 0) & candidates
        frequency["ours"] += removed
        _, gradient = run("clip_cov", ours, inputs)
        frequency["verl"] += (gradient == 0) & candidates
        counts.add(int(removed.sum()))
    assert counts == {int(0.05 * inputs["response_mask"].sum())}
    assert frequency["ours"].sum() == frequency["verl"].sum()
    assert (frequency["ours"][~candidates] == 0).all()
    expected = frequency["ours"].sum() / candidates.sum()
    for found in frequency.values():
        assert float(((found[candidates] - expected) ** 2 / expected).sum()) < stats.chi2.isf(
            1e-4, int(candidates.sum())
        )
    assert scope.numbers[0] == draws * inputs["response_mask"].sum()


@pytest.mark.skipif(not RELEASE.v1, reason="the batch is laid out as verl 0.9 has it")
def test_entropy_and_kl_terms_of_verls_ppo_loss_are_left_alone():
    """Through verl's ppo_loss: a removed token keeps its entropy bonus and its KL to the reference, nothing else."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.losses import ppo_loss

    from tests.hooks.engine import mini_batch, to_tensordict

    rows = mini_batch(seed=4)[:6]
    selected = torch.zeros(6, max(len(row["response"]) for row in rows), dtype=torch.bool)
    selected[1, 1] = selected[3, 0] = True

    def gradients(**settings):
        data = to_tensordict(rows, dense=False)
        data["ref_log_prob"] = data["old_log_probs"] - 0.3
        tokens = sum(int(row["mask"].sum()) for row in rows)
        tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=tokens, global_batch_size=6)
        lengths = data["input_ids"].offsets()
        torch.manual_seed(0)
        log_prob, entropy = ((-torch.rand(int(lengths[-1])) * 4).requires_grad_() for _ in range(2))
        output = {"log_probs": log_prob, "entropy": entropy}
        output = {name: torch.nested.nested_tensor_from_jagged(value, lengths) for name, value in output.items()}
        config = actor(loss_mode="verl_cov.clip_cov")
        config.__dict__.update(
            {"entropy_coeff": 0.0, "use_kl_loss": False, "kl_loss_coef": 0.1, "kl_loss_type": "k2", **settings}
        )
        with selected_tokens(selected):
            loss, _ = ppo_loss(config, output, data)
        loss.backward()
        assert torch.isfinite(loss)
        return log_prob.grad, entropy.grad, lengths

    plain, _, lengths = gradients()
    both, entropy, _ = gradients(entropy_coeff=0.05, use_kl_loss=True)
    # The model's output at t belongs to token t + 1.
    at = [int(lengths[row]) + len(rows[row]["prompt"]) + position - 1 for row, position in ((1, 1), (3, 0))]
    assert (plain[at] == 0).all()
    assert (both[at] != 0).all()
    assert (entropy[at] != 0).all()
