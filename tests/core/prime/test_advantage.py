"""Process rewards and advantages against the paper's formulas, written again as plain loops over rows and tokens."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_cov.core.prime.advantage import (
    Estimator,
    advantages,
    discounted_returns,
    implicit_rewards,
    without_last_token,
)
from verl_cov.core.prime.groups import Groups

LAST = Estimator(reward_norm="none", whiten=False)


@dataclass(frozen=True)
class Batch:
    """Rows in any order; process rewards are 0 where the mask is."""

    rewards: np.ndarray
    outcome: np.ndarray
    mask: np.ndarray
    prompts: list[str]

    def take(self, rows) -> Batch:
        rows = list(rows)
        return Batch(self.rewards[rows], self.outcome[rows], self.mask[rows], [self.prompts[row] for row in rows])

    def of_size_above_one(self) -> list[int]:
        present = [row for row in range(len(self.prompts)) if self.mask[row].any()]
        return [r for r in present if sum(self.prompts[other] == self.prompts[r] for other in present) > 1]


@st.composite
def batches(draw) -> Batch:
    """Groups of one to five in random order, masks with holes (a tool's tokens), rows without any response token."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    width = draw(st.integers(1, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prompts = [f"prompt {number}" for number, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(prompts)
    rows = len(prompts)
    mask = random.random((rows, width)) < draw(st.sampled_from([0.5, 0.8, 1.0]))
    mask &= np.arange(width) < random.integers(0, width + 1, (rows, 1))
    rewards = random.normal(size=(rows, width)) * draw(st.sampled_from([0.01, 1.0, 30.0]))
    outcome = random.integers(0, 3, rows) / 2 if draw(st.booleans()) else random.random(rows)
    return Batch(np.where(mask, rewards, 0.0), outcome, mask, prompts)


ESTIMATORS = st.builds(
    Estimator,
    name=st.sampled_from(["rloo", "grpo", "reinforce_plus_plus"]),
    gamma=st.sampled_from([1.0, 0.99, 0.7, 0.0]),
    rloo=st.sampled_from(["paper", "released"]),
    divide_by_std=st.booleans(),
    reward_norm=st.sampled_from(["max_return", "none"]),
    process_coef=st.sampled_from([0.0, 1.0, 2.5]),
    outcome_coef=st.sampled_from([0.5, 1.0, 5.0]),
    whiten=st.booleans(),
)


def found(batch: Batch, estimator: Estimator):
    mask = torch.from_numpy(batch.mask)
    groups = Groups.from_prompts(batch.prompts, mask)
    return advantages(torch.from_numpy(batch.rewards), torch.from_numpy(batch.outcome), mask, groups, estimator)


# --- the oracle -------------------------------------------------------------------------------------------------------


def mean(values) -> float:
    return math.fsum(values) / len(values)


def sample_std(values) -> float:
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def oracle(batch: Batch, e: Estimator) -> tuple[np.ndarray, np.ndarray]:
    """(advantages, the same before whitening), token by token."""
    count, width = batch.mask.shape
    own = [[t for t in range(width) if batch.mask[row, t]] for row in range(count)]
    rewards = {(row, t): float(batch.rewards[row, t]) for row in range(count) for t in own[row]}
    if e.reward_norm == "max_return":
        largest = max(
            (abs(math.fsum(rewards[row, s] for s in own[row] if s >= t)) for row, t in rewards),
            default=0.0,
        )
        rewards = {token: reward / (largest + 1e-6) for token, reward in rewards.items()}
    before = np.zeros((count, width))
    filled = []
    for row in range(count):
        group = [j for j in range(count) if own[j] and batch.prompts[j] == batch.prompts[row]]
        if not own[row] or (len(group) == 1 and e.name != "reinforce_plus_plus"):
            continue
        means = {j: mean([rewards[j, t] for t in own[j]]) for j in group}
        others = [j for j in group if j != row]
        outcome = float(batch.outcome[row])
        process = {}
        for t in own[row]:
            reward = rewards[row, t]
            if e.name == "rloo" and e.rloo == "paper":  # Eq. 5
                process[t] = reward - math.fsum(means[j] for j in others) / len(others)
            elif e.name == "rloo":  # released: r_t K/(K-1) - sum_j rbar_j / (K-1) over all of the group
                size = len(group)
                process[t] = reward * size / (size - 1) - math.fsum(means.values()) / (size - 1)
            elif e.name == "grpo":  # Eq. 7
                spread = sample_std(list(means.values())) + 1e-6 if e.divide_by_std else 1.0
                process[t] = (reward - mean(list(means.values()))) / spread
            else:  # Eq. 8
                process[t] = reward
        if e.name == "rloo":
            outcome -= math.fsum(float(batch.outcome[j]) for j in others) / len(others)
        elif e.name == "grpo":
            outcomes = [float(batch.outcome[j]) for j in group]
            spread = sample_std(outcomes) + 1e-6 if e.divide_by_std else 1.0
            outcome = (outcome - mean(outcomes)) / spread
        for at, t in enumerate(own[row]):
            later = own[row][at:]
            discounted = math.fsum(e.gamma**steps * process[s] for steps, s in enumerate(later))
            before[row, t] = e.process_coef * discounted + e.outcome_coef * outcome
            filled.append((row, t))
    after = before.copy()
    if e.whiten and len(filled) > 1:
        values = [before[token] for token in filled]
        centre, variance = mean(values), sample_std(values) ** 2
        for token in filled:
            after[token] = (before[token] - centre) / math.sqrt(variance + 1e-8)
    return after, before


def assert_alike(actual: torch.Tensor, expected) -> None:
    """To float32, in which advantages are given, relative to the largest of them."""
    expected = torch.as_tensor(expected)
    size = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=1e-6 * max(size, 1.0))


# --- against the formulas ---------------------------------------------------------------------------------------------


@settings(max_examples=400)
@given(batches(), ESTIMATORS)
def test_advantages_are_the_papers(batch, estimator):
    result = found(batch, estimator)
    after, before = oracle(batch, estimator)
    assert_alike(result.returns, before)
    assert_alike(result.advantages, after)
    assert result.advantages.dtype == result.returns.dtype == torch.float32


def test_an_example_by_hand():
    """Two responses of two tokens and of one, K = 2: each is compared with the other's mean."""
    batch = Batch(
        np.array([[1.0, 3.0], [4.0, 0.0]]), np.array([1.0, 0.0]), np.array([[True, True], [True, False]]), ["a", "a"]
    )
    # Row 0: (1 - 4) + (3 - 4) + 1 - 0, then (3 - 4) + 1; row 1: 4 - 2 + 0 - 1.
    assert found(batch, LAST).returns.tolist() == [[-3.0, 0.0], [1.0, 0.0]]
    discounted = replace(LAST, gamma=0.5)
    assert found(batch, discounted).returns.tolist() == [[-3 - 0.5 + 1, 0.0], [1.0, 0.0]]
    # The largest return is 4: row 0's sum and row 1's.
    assert found(batch, replace(LAST, reward_norm="max_return")).scale == pytest.approx(4 + 1e-6)
    released = found(batch, replace(LAST, rloo="released")).returns
    assert released.tolist() == [[(2 - 6) + (6 - 6) + 1, (6 - 6) + 1], [8 - 6 - 1, 0.0]]


@given(batches(), st.sampled_from(["max_return", "none"]))
def test_the_released_baseline_is_eq_5_and_what_a_token_has_over_its_response(batch, norm):
    """Before whitening, with gamma = 1: plus the returns of (r_t - rbar_i) / (K - 1)."""
    paper, released = (
        found(batch, Estimator(whiten=False, reward_norm=norm, rloo=variant)) for variant in ("paper", "released")
    )
    rewards = batch.rewards / paper.scale
    extra = np.zeros_like(rewards)
    compared = batch.of_size_above_one()
    for row in compared:
        own = np.flatnonzero(batch.mask[row])
        size = sum(batch.prompts[other] == batch.prompts[row] for other in compared)
        over = (rewards[row, own] - rewards[row, own].mean()) / (size - 1)
        for at, t in enumerate(own):
            extra[row, t] = over[at:].sum()
    assert_alike(released.returns, paper.returns.double().numpy() + extra)


@given(batches(), st.sampled_from(["rloo", "grpo"]), st.booleans())
def test_without_process_rewards_it_is_verls_own_advantage(batch, name, divide):
    from verl.trainer.ppo import core_algos

    batch = batch.take(batch.of_size_above_one())  # verl gives a single response its own outcome
    if not batch.prompts:
        return
    mask = torch.from_numpy(batch.mask).float()
    last = [int(np.flatnonzero(row)[-1]) for row in batch.mask]
    scores = torch.zeros(mask.shape)
    scores[range(len(last)), last] = torch.from_numpy(batch.outcome).float()
    index = np.array(batch.prompts, dtype=object)
    if name == "rloo":
        theirs, _ = core_algos.compute_rloo_outcome_advantage(scores, mask, index)
    else:
        theirs, _ = core_algos.compute_grpo_outcome_advantage(scores, mask, index, norm_adv_by_std_in_grpo=divide)
    nothing = replace(batch, rewards=np.zeros_like(batch.rewards))
    ours = found(nothing, Estimator(name=name, divide_by_std=divide, whiten=False)).advantages
    # Equal outcomes: float32 leaves 1e-7 of them, and the division by 1e-6 makes that a tenth.
    outcomes: dict[str, set[float]] = {}
    for prompt, value in zip(batch.prompts, batch.outcome, strict=True):
        outcomes.setdefault(prompt, set()).add(float(value))
    apart = [len(outcomes[prompt]) > 1 for prompt in batch.prompts]
    torch.testing.assert_close(ours[apart], theirs[apart], rtol=1e-3, atol=1e-4)


@given(batches(), ESTIMATORS)
def test_no_process_rewards_give_exactly_the_outcomes_advantages(batch, estimator):
    nothing = replace(batch, rewards=np.zeros_like(batch.rewards))
    estimator = replace(estimator, reward_norm="max_return")
    result, outcome_only = (found(nothing, replace(estimator, process_coef=coef)) for coef in (1.0, 0.0))
    assert torch.equal(result.advantages, outcome_only.advantages)
    assert torch.isfinite(result.advantages).all()
    assert result.scale == pytest.approx(1e-6)
    # A coefficient of 0 takes out process rewards that there are.
    assert_alike(found(batch, replace(estimator, process_coef=0.0)).returns, outcome_only.returns)


# --- what does not matter ---------------------------------------------------------------------------------------------


@given(batches(), ESTIMATORS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(batch, estimator, random):
    order = list(range(len(batch.prompts)))
    random.shuffle(order)
    result, permuted = found(batch, estimator), found(batch.take(order), estimator)
    assert_alike(permuted.advantages, result.advantages[order])
    assert permuted.scale == pytest.approx(result.scale, rel=1e-12)
    assert torch.equal(permuted.compared, result.compared[order])


@given(batches(), ESTIMATORS, st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_padding_rows_change_nothing(batch, estimator, places):
    """All masked, of a prompt of their own or, as verl copies them, of a prompt that there is."""
    rows = list(range(len(batch.prompts)))
    for place in places:
        rows.insert(place % (len(rows) + 1), -1)
    real = [at for at, row in enumerate(rows) if row >= 0]
    padded = batch.take(rows)
    copies = [at for at, row in enumerate(rows) if row < 0]
    padded.mask[copies], padded.rewards[copies], padded.outcome[copies] = False, 0.0, 0.7
    for prompts in (
        padded.prompts,
        [f"padding {at}" if row < 0 else batch.prompts[row] for at, row in enumerate(rows)],
    ):
        result, with_padding = found(batch, estimator), found(replace(padded, prompts=prompts), estimator)
        assert torch.equal(with_padding.advantages[real], result.advantages)
        assert (with_padding.advantages[copies] == 0).all()
        assert with_padding.scale == result.scale
        assert not with_padding.compared[copies].any()


@given(batches(), ESTIMATORS)
def test_what_has_nothing_to_be_compared_with_has_exactly_no_advantage(batch, estimator):
    result = found(batch, estimator)
    masked = torch.from_numpy(~batch.mask)
    assert (result.advantages[masked] == 0).all()
    assert (result.returns[masked] == 0).all()
    compared = batch.of_size_above_one()
    if estimator.name == "reinforce_plus_plus":
        compared = [row for row in range(len(batch.prompts)) if batch.mask[row].any()]
    assert result.compared.nonzero().flatten().tolist() == compared
    assert (result.advantages[~result.compared] == 0).all()
    assert (result.returns[~result.compared] == 0).all()


@given(batches(), ESTIMATORS)
def test_whitened_advantages_have_mean_0_and_variance_1(batch, estimator):
    result = found(batch, replace(estimator, whiten=True))
    valid = torch.from_numpy(batch.mask) & result.compared[:, None]
    values, returns = result.advantages[valid].double(), result.returns[valid].double()
    if len(values) < 2 or returns.var() < 1e-2:
        return
    assert float(values.mean()) == pytest.approx(0, abs=1e-5)
    assert float(values.var()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["rloo", "grpo", "reinforce_plus_plus"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_without_a_token_is_no_error(name, masked):
    rows = 3 if masked else 0
    empty = Batch(np.zeros((rows, 4)), np.zeros(rows), np.zeros((rows, 4), dtype=bool), ["a"] * rows)
    result = found(empty, Estimator(name=name))
    assert result.advantages.shape == (rows, 4)
    assert (result.advantages == 0).all()


# --- process rewards --------------------------------------------------------------------------------------------------


def test_the_reward_of_a_token_is_beta_times_the_log_ratio_and_0_outside():
    log_prob = torch.tensor([[-1.0, -2.0, -torch.inf], [-0.5, torch.nan, -3.0]])
    reference = torch.tensor([[-2.0, -1.5, -torch.inf], [-0.5, -1.0, -1.0]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    rewards = implicit_rewards(log_prob, reference, mask, beta=0.05)
    torch.testing.assert_close(
        rewards, torch.tensor([[0.05, -0.025, 0.0], [0.0, 0.0, -0.1]], dtype=torch.float64), rtol=0, atol=1e-12
    )


@given(batches())
def test_the_last_token_of_a_response_is_its_last_own_one(batch):
    kept = without_last_token(torch.from_numpy(batch.rewards), torch.from_numpy(batch.mask)).numpy()
    for row, t in itertools.product(*map(range, batch.mask.shape)):
        is_last = batch.mask[row, t] and not batch.mask[row, t + 1 :].any()
        assert kept[row, t] == (0.0 if is_last else batch.rewards[row, t])


def test_the_last_token_before_a_hole_keeps_its_reward_and_the_last_one_of_all_has_none():
    rewards = torch.tensor([[1.0, 2.0, 0.0, 3.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    assert without_last_token(rewards, mask).tolist() == [[1, 2, 0, 0, 0], [0] * 5, [0] * 5]


@given(batches(), st.sampled_from([1.0, 0.9, 0.0]))
def test_what_a_tool_wrote_takes_no_time(batch, gamma):
    """The returns are those of the response with the holes cut out."""
    returns = discounted_returns(torch.from_numpy(batch.rewards), torch.from_numpy(batch.mask), gamma).numpy()
    for row in range(len(batch.prompts)):
        own = np.flatnonzero(batch.mask[row])
        following = 0.0
        for t in reversed(own):
            following = batch.rewards[row, t] + gamma * following
            assert returns[row, t] == pytest.approx(following, rel=1e-9, abs=1e-9)
        assert (returns[row, ~batch.mask[row]] == 0).all()
