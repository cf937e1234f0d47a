"""Process rewards and the advantages that PRIME makes of them and of the outcome (Cui et al. 2025, Eq. 3, 5, 7, 8).

Tensors are [rows, tokens] (padded, with a mask of the response's own tokens) or [rows]. All is over the whole batch, in
float64, and does not depend on the order of the rows. No verl.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verl_cov.core.prime.groups import Groups

# verl's algorithm.adv_estimator -> the paper's equation.
EQUATIONS = {"rloo": "Eq. 5", "grpo": "Eq. 7", "reinforce_plus_plus": "Eq. 8"}
EPSILON = 1e-6  # of the divisions by a standard deviation and by the largest return, as in the released code
WHITEN_EPSILON = 1e-8  # verl's masked_whiten


@dataclass(frozen=True)
class Estimator:
    """How advantages are made of rewards. Fields as in :class:`~verl_cov.core.prime.prime_config.PrimeConfig`.

    Args:
        name: a key of :data:`EQUATIONS`. gamma: discount of the process rewards.
        divide_by_std: of Eq. 7; verl's ``algorithm.norm_adv_by_std_in_grpo``.
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
    """Args:
    advantages: [rows, tokens] what the policy learns from. returns: the same before whitening.
    scale: what the process rewards were divided by (1 without normalisation).
    compared: [rows] False for what had nothing to be compared with: no gradient comes from it.
    """

    advantages: Tensor
    returns: Tensor
    scale: float
    compared: Tensor


def implicit_rewards(
    log_prob: Tensor,
    reference_log_prob: Tensor,
    mask: Tensor,
    beta: float,
) -> Tensor:
    """r_t = beta (log pi_phi(y_t) - log pi_ref(y_t)), Eq. 3, float64; 0 outside the mask. All are [rows, tokens]."""
    return torch.where(mask, beta * (log_prob.double() - reference_log_prob.double()), 0.0)


def without_last_token(rewards: Tensor, mask: Tensor) -> Tensor:
    """``rewards`` with 0 at each row's last response token, as verl's recipe leaves it."""
    last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return rewards.masked_fill(last, 0.0)


def returns_of(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """sum_{s >= t} gamma^{s-t} r_s over the response's own tokens; what a tool wrote in between takes no time. 0
    outside the mask."""
    if gamma == 1.0:
        return torch.where(mask, rewards.flip(-1).cumsum(-1).flip(-1), 0.0)
    result = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for token in range(rewards.shape[1] - 1, -1, -1):
        here = mask[:, token]
        following = torch.where(here, rewards[:, token] + gamma * following, following)
        result[:, token] = torch.where(here, following, 0.0)
    return result


def advantages(
    rewards: Tensor,
    outcome: Tensor,
    mask: Tensor,
    groups: Groups,
    estimator: Estimator,
) -> Advantages:
    """The advantage of each token: process and outcome rewards, each against the prompt's responses, then summed.

    A response that is alone in its group has nothing to be compared with: its advantage is 0 (Eq. 8, which has no
    baseline, compares with nothing). So is that of a row without response tokens, which is in no group.

    Args:
        rewards: process rewards, 0 outside ``mask``. outcome: of the whole response, in [0, 1].
        mask: the response's own tokens. groups: of these rows.
    """
    scale = 1.0
    if estimator.reward_norm == "max_return":
        # The released code takes the undiscounted return here, whatever its discount.
        scale = float(returns_of(rewards, mask, 1.0).abs().max()) + EPSILON if rewards.numel() else 1.0
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
    else:
        compared = groups.compared
        others = groups.others(mean_reward)
        if estimator.rloo == "released":
            # r_t K/(K-1) - sum_j rbar_j / (K-1), itself included: Eq. 5 plus (r_t - rbar_i) / (K-1).
            process = (
                rewards - others[:, None] + (rewards - mean_reward[:, None]) / (groups.size - 1).clamp(min=1)[:, None]
            )
        else:
            process = rewards - others[:, None]
        outcome = outcome - groups.others(outcome)
    valid = mask & compared[:, None]
    process = returns_of(torch.where(valid, process, 0.0), valid, estimator.gamma)
    total = estimator.process_coef * process + estimator.outcome_coef * outcome[:, None]
    total = torch.where(valid, total, 0.0)
    whitened = _whitened(total, valid) if estimator.whiten else total
    return Advantages(whitened.float(), total.float(), scale, compared)


def _standardised(values: Tensor, of_response: Tensor, groups: Groups, estimator: Estimator) -> Tensor:
    """(values - mean) / std, over the group, of what ``of_response`` has one of each response."""
    mean, std = groups.means(of_response), groups.stds(of_response) + EPSILON
    if values.dim() == 2:
        mean, std = mean[:, None], std[:, None]
    return (values - mean) / std if estimator.divide_by_std else values - mean


def _whitened(values: Tensor, valid: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all valid tokens of the batch; as they are if there are fewer than two."""
    found = values[valid]
    if found.numel() < 2:
        return values
    whitened = (values - found.mean()) * torch.rsqrt(found.var() + WHITEN_EPSILON)
    return torch.where(valid, whitened, 0.0)
