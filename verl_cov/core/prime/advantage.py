"""Computes PRIME's process rewards, and advantages from them and the outcome (Cui et al. 2025, Eq. 3, 5, 7, 8).

Rows are padded; a mask marks the tokens that the policy generated. Everything is computed over the whole batch, in
float64, and does not depend on the order of the rows. Knows nothing about verl.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from verl_cov.core.prime.groups import Groups

# verl's algorithm.adv_estimator -> the paper's equation.
EQUATIONS = {"rloo": "Eq. 5", "grpo": "Eq. 7", "reinforce_plus_plus": "Eq. 8"}
EPSILON = 1e-6  # of the divisions by a standard deviation and by the largest return, as in the released code
WHITEN_EPSILON = 1e-8  # verl's masked_whiten


@dataclass(frozen=True)
class Estimator:
    """How advantages are computed from rewards. Fields as in :class:`~verl_cov.core.prime.prime_config.PrimeConfig`.

    Args:
        name: a key of :data:`EQUATIONS`.
        gamma: discount of the process rewards.
        divide_by_std: whether Eq. 7 divides; verl's ``algorithm.norm_adv_by_std_in_grpo``.
    """

    name: str = "rloo"
    gamma: float = 1.0
    rloo: str = "paper"
    divide_by_std: bool = True
    reward_norm: str = "max_return"
    process_coef: float = 1.0
    outcome_coef: float = 1.0
    whiten: bool = True


@dataclass(frozen=True)
class Advantages:
    """The advantages of a batch.

    Args:
        advantages: what the policy learns from.
        returns: the same before whitening.
        scale: what the process rewards were divided by (1 without normalisation).
        compared: False for responses without another one to compare with: they give no gradient.
    """

    advantages: Float32[Tensor, "rows tokens"]
    returns: Float32[Tensor, "rows tokens"]
    scale: float
    compared: Bool[Tensor, " rows"]


def implicit_rewards(
    log_prob: Float[Tensor, "rows tokens"],
    reference_log_prob: Float[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
    beta: float,
) -> Float64[Tensor, "rows tokens"]:
    """Computes the process rewards r_t = beta (log pi_phi(y_t) - log pi_ref(y_t)), Eq. 3; 0 outside the mask."""
    return torch.where(mask, beta * (log_prob.double() - reference_log_prob.double()), 0.0)


def without_last_token(
    rewards: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
) -> Float[Tensor, "rows tokens"]:
    """Returns the rewards with 0 at each row's last response token, as in verl's recipe."""
    last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return rewards.masked_fill(last, 0.0)


def discounted_returns(
    rewards: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"], gamma: float
) -> Float[Tensor, "rows tokens"]:
    """Computes sum_{s >= t} gamma^{s-t} r_s over the tokens in the mask; 0 outside it.

    Tokens that a tool wrote in between are not discounted for.
    """
    if gamma == 1.0:
        return torch.where(mask, rewards.flip(-1).cumsum(-1).flip(-1), 0.0)
    result = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for token in range(rewards.shape[1] - 1, -1, -1):
        generated = mask[:, token]
        following = torch.where(generated, rewards[:, token] + gamma * following, following)
        result[:, token] = torch.where(generated, following, 0.0)
    return result


def advantages(
    rewards: Float[Tensor, "rows tokens"],
    outcome: Float[Tensor, " rows"],
    mask: Bool[Tensor, "rows tokens"],
    groups: Groups,
    estimator: Estimator,
) -> Advantages:
    """Computes each token's advantage: process and outcome rewards, each less the prompt's baseline, then summed.

    The advantage is 0 for a response that is alone in its group, because there is nothing to compare it with (except by
    Eq. 8, which has no baseline), and for a row without response tokens, which is in no group.

    Args:
        rewards: process rewards, 0 outside ``mask``.
        outcome: of the whole response, in [0, 1].
        mask: tokens that the policy generated.
        groups: of these rows.
    """
    scale = 1.0
    if estimator.reward_norm == "max_return":
        # The released code takes the undiscounted return here, whatever its discount.
        scale = float(discounted_returns(rewards, mask, 1.0).abs().max()) + EPSILON if rewards.numel() else 1.0
        rewards = rewards / scale
    outcome = outcome.double()
    tokens = mask.sum(-1).clamp(min=1)
    mean_reward = rewards.sum(-1) / tokens  # the paper's r-bar of a response
    compared = groups.present
    if estimator.name == "reinforce_plus_plus":
        process = rewards
    elif estimator.name == "grpo":
        compared = groups.compared
        process = _standardised(rewards, mean_reward, groups, estimator)
        outcome = _standardised(outcome, outcome, groups, estimator)
    else:  # rloo, Eq. 5: the baseline of a response is the mean over the prompt's other responses
        compared = groups.compared
        others = groups.others(mean_reward)
        if estimator.rloo == "released":
            # r_t K/(K-1) - sum_j rbar_j / (K-1), the response itself included: Eq. 5 plus (r_t - rbar_i) / (K-1).
            process = (
                rewards - others[:, None] + (rewards - mean_reward[:, None]) / (groups.size - 1).clamp(min=1)[:, None]
            )
        else:
            process = rewards - others[:, None]
        outcome = outcome - groups.others(outcome)
    valid = mask & compared[:, None]
    process = discounted_returns(torch.where(valid, process, 0.0), valid, estimator.gamma)
    total = estimator.process_coef * process + estimator.outcome_coef * outcome[:, None]
    total = torch.where(valid, total, 0.0)
    whitened = _whitened(total, valid) if estimator.whiten else total
    return Advantages(whitened.float(), total.float(), scale, compared)


def _standardised(
    values: Float[Tensor, " rows *tokens"], per_response: Float[Tensor, " rows"], groups: Groups, estimator: Estimator
) -> Float[Tensor, " rows *tokens"]:
    """Returns (values - mean) / std, with mean and standard deviation of ``per_response`` over each group."""
    mean, std = groups.means(per_response), groups.stds(per_response) + EPSILON
    if values.dim() == 2:
        mean, std = mean[:, None], std[:, None]
    return (values - mean) / std if estimator.divide_by_std else values - mean


def _whitened(values: Float[Tensor, "rows tokens"], valid: Bool[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens"]:
    """Scales values to mean 0 and variance 1 over all valid tokens of the batch, if there are at least two."""
    counted = values[valid]
    if counted.numel() < 2:
        return values
    whitened = (values - counted.mean()) * torch.rsqrt(counted.var() + WHITEN_EPSILON)
    return torch.where(valid, whitened, 0.0)
