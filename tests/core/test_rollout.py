"""Entropy, the theorems and Figure 8 of a rollout batch: against their definitions, and the theorems against what a
step really does to the entropy of a softmax policy."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ranks import run_ranks
from verl_cov.core import rollout
from verl_cov.core.rollout import Responses, row_sums


def batch(seed=0, prompts=6, responses=8):
    """Rows as dictionaries: tokens of responses to a few prompts, right with a chance that differs by prompt."""
    random = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        scores = (random.random(responses) < (prompt + 0.5) / prompts).astype(float)
        for score in scores:
            length = int(random.integers(2, 12))
            mask = np.ones(length, dtype=bool)
            mask[1 : 1 + length // 4] = False  # a tool's answer
            rows.append(
                dict(
                    mask=mask,
                    log_prob=-random.exponential(1.0, length),
                    entropy=random.exponential(1.0, length),
                    advantage=np.full(length, score - scores.mean()),
                    score=score,
                    prompt=prompt + 1,
                )
            )
    return rows


def responses_of(rows, group=None, without=()):
    """:class:`Responses` of ``rows``; ``without`` names what the batch does not carry."""

    def column(name, dtype=torch.float32):
        return torch.tensor(np.concatenate([row[name] for row in rows] or [np.zeros(0)]), dtype=dtype)

    def of_row(name, dtype):
        return None if name in without else torch.tensor([row[name] for row in rows], dtype=dtype)

    table = row_sums(
        torch.tensor([len(row["mask"]) for row in rows], dtype=torch.int64),
        column("mask", torch.bool),
        column("log_prob"),
        column("advantage"),
        None if "entropy" in without else column("entropy"),
        of_row("score", torch.float32),
        of_row("prompt", torch.int64),
        of_row("response", torch.int64) if all("response" in row for row in rows) else None,
    )
    return Responses.gather(table, group)


def everything(responses):
    return rollout.entropies(responses) | changes(responses) | rollout.prompts(responses)


def changes(responses):
    return {name: theorem.change for name, theorem in rollout.theorems(responses).items()}


def by_definition(rows):
    """The same numbers, written down again with loops."""
    per_row = []
    for row in rows:
        m = row["mask"]
        logp, ent, adv = row["log_prob"][m], row["entropy"][m], row["advantage"][m]
        per_row.append(
            (ent.mean(), ((logp + ent) * np.exp(logp) * adv).mean(), ((logp + ent) * adv).mean(), logp.mean())
        )
    entropy, one, two, log_prob = np.array(per_row).T
    prompt = np.array([row["prompt"] for row in rows])
    found = {
        "entropy": entropy.mean(),
        "entropy_sampled": -log_prob.mean(),
        "theorem1": -one.mean(),
        "theorem2": -two.mean(),
    }
    names = np.unique(prompt)
    sums = np.array([(entropy[prompt == name] - entropy.mean()).sum() for name in names])
    found["entropy_error"] = np.sqrt((sums**2).sum() * len(names) / (len(names) - 1)) / len(rows)
    statistic = {"": [], "_hard": [], "_medium": [], "_easy": []}
    for name in names:
        mine = [row for row in rows if row["prompt"] == name]
        logp = np.array([row["log_prob"][row["mask"]].mean() for row in mine])
        adv = np.array([row["advantage"][0] for row in mine])
        right = sum(row["score"] for row in mine)
        if right in (0, len(mine)):
            continue
        covariance = np.cov(logp, np.exp(logp) * adv, bias=True)[0, 1]
        difficulty = "_hard" if right <= 2 else "_easy" if right >= 6 else "_medium"
        statistic[""].append(covariance)
        statistic[difficulty].append(covariance)
    for name, values in statistic.items():
        found[f"prompts{name}"] = len(values)
        if values:
            found[f"prompt_cov{name}"] = np.mean(values)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_are_those_of_the_definitions(seed):
    rows = batch(seed)
    expected = by_definition(rows)
    assert expected["prompts"] >= 3
    assert everything(responses_of(rows)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def _share(rank, world, group, rows, owners):
    return everything(responses_of([row for row, owner in zip(rows, owners, strict=True) if owner == rank], group))


def test_ranks_and_order_of_the_rows_do_not_matter():
    rows = batch(1)
    alone = everything(responses_of(rows))
    random = np.random.default_rng(3)
    for world in (2, 4):
        order = random.permutation(len(rows))
        owners = random.integers(0, world - 1, len(rows)) if world == 4 else np.zeros(len(rows), int)  # one has none
        for found in run_ranks(_share, world, [rows[i] for i in order], owners):
            assert found == pytest.approx(alone, rel=1e-12, abs=1e-12)


def cut_into_outputs(rows):
    """The same responses as an agent loop gives them that writes several outputs in a session, in random order."""
    random = np.random.default_rng(5)
    pieces = []
    for number, row in enumerate(rows, 1):
        length = row["mask"].size
        cuts = [0, *sorted(random.choice(np.arange(1, length), size=random.integers(0, length // 2), replace=False))]
        for start, end in zip(cuts, [*cuts[1:], length], strict=True):
            by_token = {key: row[key][start:end] for key in ("mask", "log_prob", "entropy", "advantage")}
            pieces.append({**row, **by_token, "response": number})
    return [pieces[at] for at in random.permutation(len(pieces))]


def test_a_response_counts_once_however_many_rows_it_has():
    rows = batch(1)
    pieces = cut_into_outputs(rows)
    assert len(pieces) > 1.5 * len(rows)
    alone = pytest.approx(everything(responses_of(rows)), rel=1e-9, abs=1e-12)
    assert everything(responses_of(pieces)) == alone
    owners = np.random.default_rng(3).integers(0, 2, len(pieces))  # the outputs of one session on both ranks
    assert run_ranks(_share, 2, pieces, owners) == [alone, alone]


def test_padding_rows_and_tokens_that_are_not_finite_take_no_part():
    rows = batch(2)
    alone = everything(responses_of(rows))
    padding = {**rows[0], "mask": np.zeros_like(rows[0]["mask"]), "score": 99.0}
    broken = {key: np.append(value, np.nan) for key, value in rows[1].items() if key in ("log_prob", "entropy")}
    broken |= {"advantage": np.append(rows[1]["advantage"], 1.0), "mask": np.append(rows[1]["mask"], True)}
    rows[1] = rows[1] | broken
    assert everything(responses_of([*rows, padding])) == pytest.approx(alone, rel=1e-12)


def test_what_the_batch_does_not_carry_is_left_out():
    rows = batch(2)
    whole = everything(responses_of(rows))
    assert set(whole) - set(everything(responses_of(rows, without=("score",)))) == {
        f"{name}_{difficulty}" for name in ("prompts", "prompt_cov") for difficulty in ("hard", "medium", "easy")
    }
    no_prompt = everything(responses_of(rows, without=("prompt",)))
    assert not any(key.startswith("prompt") for key in no_prompt)
    assert "entropy_error" not in no_prompt
    no_entropy = everything(responses_of(rows, without=("entropy",)))
    assert {"entropy", "entropy_error"} == set(whole) - set(no_entropy)
    assert no_entropy["theorem2"] != whole["theorem2"]
    assert everything(responses_of([])) == {}


def test_without_entropies_theorem_2_is_the_covariance_over_the_batch():
    rows = [row for row in batch(4) for _ in range(1)]
    for row in rows:  # one token a response: then averages by response and by token are one
        for key in ("mask", "log_prob", "entropy", "advantage"):
            row[key] = row[key][:1]
    found = changes(responses_of(rows, without=("entropy",)))
    log_prob, advantage = (np.array([row[key][0] for row in rows]) for key in ("log_prob", "advantage"))
    assert found["theorem2"] == pytest.approx(-np.cov(log_prob, advantage, bias=True)[0, 1], rel=1e-5)
    weight = np.exp(log_prob) * advantage
    assert found["theorem1"] == pytest.approx(-np.cov(log_prob, weight, bias=True)[0, 1], rel=1e-5)


def test_prompts_that_all_go_the_same_way_are_left_out_and_one_response_is_no_group():
    rows = batch(0, prompts=2)
    for row in rows:
        row["advantage"] = np.zeros_like(row["advantage"])
    assert rollout.prompts(responses_of(rows)) == {
        "prompts": 0,
        "prompts_hard": 0,
        "prompts_medium": 0,
        "prompts_easy": 0,
    }
    assert rollout.prompts(responses_of(rows[:1])) == {"prompts": 0.0}


# --- the theorems, on a policy whose entropy is known ---------------------------------------------------------------


@given(st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=5), min_size=1, max_size=4), st.integers(0, 10**6))
def test_the_predictors_are_the_first_order_change_of_a_softmax_policys_entropy(states, seed):
    """Each state's policy has probabilities that are fractions of its counts, and the batch holds each action exactly
    as often as it is likely. Then the prediction must be the derivative of the entropy along the theorem's step."""
    random = np.random.default_rng(seed)
    rows, change = [], {"theorem1": 0.0, "theorem2": 0.0}
    step = 1e-4
    whole = np.lcm.reduce([sum(counts) for counts in states])  # as many visits to each state
    for counts in states:
        pi = np.array(counts) / sum(counts)
        advantage = random.normal(size=len(pi))
        advantage -= pi @ advantage  # Lemma 3: the mean advantage under the policy is 0
        entropy = -(pi * np.log(pi)).sum()
        for name, direction in (("theorem1", pi * advantage), ("theorem2", advantage)):
            moved = [softmax_entropy(np.log(pi) + sign * step * direction) for sign in (1, -1)]
            change[name] += (moved[0] - moved[1]) / (2 * step) / len(states)
        for p, a, count in zip(pi, advantage, counts, strict=True):
            row = dict(mask=[True], log_prob=[np.log(p)], entropy=[entropy], advantage=[a], score=0.0, prompt=1)
            rows += [row] * (count * whole // sum(counts))
    assert changes(responses_of(rows)) == pytest.approx(change, rel=1e-4, abs=1e-5)


def softmax_entropy(logits):
    log_pi = logits - np.log(np.exp(logits).sum())
    return -(np.exp(log_pi) * log_pi).sum()


def test_the_fields_of_responses_are_in_the_order_they_travel_in():
    """`Responses.gather` unpacks columns by position."""
    row = dict(mask=[True], log_prob=[-0.5], entropy=[0.25], advantage=[2.0], score=7.0, prompt=3)
    found = responses_of([row])
    p = np.exp(-0.5)
    expected = [-0.5, 2.0, 2 * p, -0.5 * 2, -0.5 * 2 * p, 0.25, 0.25 * 2, 0.25 * 2 * p, 7, 3]
    assert [float(getattr(found, field.name)[0]) for field in fields(found)] == pytest.approx(expected)


def test_an_entropy_that_is_missing_or_broken_anywhere_makes_all_fall_back():
    """Not a mix of two kinds; and the rest of the metrics does not go with it."""
    rows = batch(2)
    without = everything(responses_of(rows, without=("entropy",)))
    rows[3]["entropy"] = np.full_like(rows[3]["entropy"], np.nan)
    assert everything(responses_of(rows)) == pytest.approx(without, rel=1e-12)


def _half_share(rank, world, group, rows):
    return everything(responses_of(rows[rank::world], group, without=("entropy",) if rank else ()))


def test_a_rank_without_entropies_makes_all_ranks_fall_back():
    rows = batch(2)
    alone = everything(responses_of(rows, without=("entropy",)))
    for found in run_ranks(_half_share, 2, rows):
        assert found == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        (1, 2, "medium"),  # a third and two thirds belong to the middle
        (2, 1, "medium"),
        (1, 7, "hard"),
        (2, 6, "hard"),
        (3, 5, "medium"),
        (5, 3, "medium"),
        (6, 2, "easy"),
        (33, 66, "medium"),
        (32, 67, "hard"),
    ],
)
def test_difficulty_is_the_share_of_right_responses(right, wrong, expected):
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        scores = np.array([high] * right + [low] * wrong)
        row = dict(mask=[True], log_prob=[-0.5], entropy=[0.5], prompt=1)
        rows = [row | dict(score=score, advantage=[score - scores.mean()]) for score in scores]
        found = rollout.prompts(responses_of(rows))
        assert {name: found[f"prompts_{name}"] for name in ("hard", "medium", "easy")} == {
            **dict.fromkeys(("hard", "medium", "easy"), 0.0),
            expected: 1.0,
        }


def test_scores_that_are_no_right_or_wrong_have_no_difficulty():
    rows = batch(2)
    rows[0]["score"] = -20.0  # one response too long: no longer two values
    found = rollout.prompts(responses_of(rows))
    assert set(found) == {"prompts", "prompt_cov"}
