"""The PRM's worker on verl's own engine: its loss, gradient and scores do not depend on the batch's layout.

On one and two ranks, micro-batches of several sizes, static, dynamic and packed, with padding rows. Compared with the
plain transformers model and the losses written down again in numpy.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from tests.hooks import prm_engine
from tests.hooks.engine import ROWS
from tests.hooks.prm_engine import BETA, Case

SHUFFLED = (7, 2, 13, 0, 9, 15, 4, 11, 1, 14, 6, 3, 12, 8, 5, 10)
LATER = tuple(range(ROWS // 2, ROWS))
ALIKE = (
    Case("whole"),
    Case("micro-batches of 4", micro=4),
    Case("micro-batches of 1", micro=1, order=SHUFFLED),
    Case("dynamic batching", tokens=48, order=SHUFFLED),
    Case("packed", packed=True, micro=2),
    Case("with padding rows", padding=2, micro=2),
)
DPO = (Case("dpo", loss="dpo"), Case("dpo, small", loss="dpo", micro=2, order=SHUFFLED, padding=2))
# With two ranks the second has no row that counts.
EMPTY = (
    Case("half of the rows are padding", empty=LATER),
    Case("half of the rows are padding, small", empty=LATER, micro=2),
)
OTHERS = (
    Case("all rows are padding", empty=tuple(range(ROWS)), micro=4),
    Case("mini-batches", mini=4, micro=1, shuffle=True, lr=0.0, epochs=2),
    Case("mini-batches, dynamic", mini=8, tokens=40, shuffle=True, lr=0.0),
    Case("mini-batches that learn", mini=8, micro=4, lr=1e-2),
    Case("epochs", micro=4, epochs=3, lr=1e-2),
    Case("own reference", reference="own", micro=4),
    Case("own reference, dpo", loss="dpo", reference="own", micro=2),
    Case("own reference, dynamic", reference="own", tokens=48, order=SHUFFLED),
    Case("own reference, packed", reference="own", packed=True, micro=4),
)
CASES = (*ALIKE, *DPO, *EMPTY, *OTHERS)


@functools.cache
def reports(model: str, ranks: int) -> dict[str, prm_engine.Report]:
    return prm_engine.run(prm_engine.Spec(model, CASES, ranks))


@pytest.fixture(params=[1, 2], ids=["1 rank", "2 ranks"])
def found(request, untrained_model):
    return reports(str(untrained_model), request.param)


# --- the oracle -------------------------------------------------------------------------------------------------------


@functools.cache
def plain_log_probs(folder: str) -> dict[int, np.ndarray]:
    """{row: log-probs of its response} of the plain transformers model."""
    return {index: log_probs.detach().numpy() for index, log_probs in _forward(folder)[1].items()}


def _forward(folder: str):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    log_probs = {}
    for row in prm_engine.rows():
        ids = torch.from_numpy(np.concatenate([row["prompt"], row["response"]]))
        every = model(ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        log_probs[row["index"]] = every[len(row["prompt"]) - 1 :]
    return model, log_probs


@functools.cache
def oracle(folder: str, kind: str, empty: tuple[int, ...]) -> tuple[float, np.ndarray]:
    """(loss, gradient): the mean over responses, with the derivative dL/dQ of each put in by hand."""
    model, log_probs = _forward(folder)
    rows = [row for row in prm_engine.rows() if row["index"] not in empty]
    losses, surrogate = [], torch.zeros(())
    for row in rows:
        mask = torch.from_numpy(row["mask"]).bool()
        total = (log_probs[row["index"]] - torch.from_numpy(row["reference"]))[mask].sum()
        q, outcome = BETA * float(total.detach()), row["outcome"]
        if kind == "ce":
            losses.append(outcome * np.logaddexp(0, -q) + (1 - outcome) * np.logaddexp(0, q))
            slope = 1 / (1 + math.exp(-q)) - outcome
        else:
            sign = 1 if outcome > 0 else -1
            margin = sign * (q - row["opponent"])
            losses.append(np.logaddexp(0, -margin))
            slope = -sign / (1 + math.exp(margin))
        surrogate = surrogate + slope * BETA * total / len(rows)
    surrogate.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return float(np.mean(losses)), gradient.double().numpy()


def apart(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> float:
    """The largest difference between two sets of log-probs of the same rows."""
    assert one.keys() == other.keys()
    return max(float(np.abs(one[index] - other[index]).max()) for index in one)


# --- loss, gradient and update ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*ALIKE, *DPO, *EMPTY], ids=lambda case: case.name)
def test_every_layout_has_the_oracles_loss_and_gradient(found, untrained_model, case):
    loss, gradient = oracle(str(untrained_model), case.loss, case.empty)
    report = found[case.name]
    assert report.updates == 1
    assert report.losses == pytest.approx([loss], rel=1e-6)
    assert report.grad_norms == pytest.approx([np.linalg.norm(gradient)], rel=1e-5)
    assert np.linalg.norm(report.gradient - gradient) < 1e-5 * np.linalg.norm(gradient)


@pytest.mark.parametrize("cases", [ALIKE, DPO, EMPTY], ids=["ce", "dpo", "padding"])
def test_every_layout_on_any_ranks_leads_to_the_same_prm(untrained_model, cases):
    first = reports(str(untrained_model), 1)[cases[0].name]
    assert apart(first.after, first.scored) > 1e-2  # it learnt something
    for ranks in (1, 2):
        for case in cases:
            report = reports(str(untrained_model), ranks)[case.name]
            assert report.losses == pytest.approx(first.losses, rel=1e-6), case.name
            assert report.grad_norms == pytest.approx(first.grad_norms, rel=1e-6), case.name
            assert apart(report.after, first.after) < 1e-5, (case.name, ranks)


def test_the_update_makes_right_responses_likelier_than_wrong_ones(found):
    """Q rises with an outcome of 1 and falls with one of 0: the sign of all this."""
    changes: dict[float, list[float]] = {0.0: [], 1.0: []}
    for row in prm_engine.rows():
        if row["outcome"] in changes:
            mask = row["mask"] == 1
            report = found["whole"]
            change = report.after[row["index"]] - report.scored[row["index"]]
            changes[row["outcome"]].append(float(change[mask].sum()))
    assert np.mean(changes[1.0]) > 0 > np.mean(changes[0.0])


def test_a_batch_of_padding_alone_teaches_nothing(found):
    report = found["all rows are padding"]
    assert report.losses == [0.0]
    assert (report.gradient == 0).all()


# --- the scores -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_scores_are_the_models_own_before_the_update_in_the_order_of_the_rows(found, untrained_model, case):
    expected = plain_log_probs(str(untrained_model))
    assert apart(found[case.name].reference, expected) < 1e-5
    if case.name == "mini-batches that learn":  # looked at below
        return
    assert found[case.name].scored.keys() == set(range(ROWS))
    assert apart(found[case.name].scored, expected) < 1e-5


def test_a_later_mini_batch_is_scored_by_a_prm_that_has_learnt_from_the_earlier_ones(found, untrained_model):
    report, expected = found["mini-batches that learn"], plain_log_probs(str(untrained_model))
    assert report.updates == len(report.losses) == 2
    differences = {index: float(np.abs(report.scored[index] - expected[index]).max()) for index in range(ROWS)}
    early = [index for index, difference in differences.items() if difference < 1e-5]
    assert len(early) == 8
    assert {0, 1, 2, 3} <= set(early)  # each rank's first rows
    assert min(differences[index] for index in set(range(ROWS)) - set(early)) > 1e-3


def test_mini_batches_and_epochs_are_updates_of_their_own(found):
    assert found["mini-batches"].updates == 2 * ROWS // 4
    assert found["mini-batches, dynamic"].updates == ROWS // 8
    epochs = found["epochs"]
    assert epochs.updates == len(epochs.losses) == 3
    assert epochs.losses[0] == pytest.approx(found["whole"].losses[0], rel=1e-6)
    assert epochs.losses[2] < epochs.losses[1] < epochs.losses[0]


# --- a PRM that equals its reference ----------------------------------------------------------------------------------

OWN = [case for case in OTHERS if case.reference == "own"]


@pytest.mark.parametrize("case", OWN, ids=lambda case: case.name)
def test_a_prm_that_equals_its_reference_gives_rewards_of_exactly_0(found, case):
    """The reference's worker never trains; both read the same micro-batches."""
    report = found[case.name]
    for index in range(ROWS):
        assert np.array_equal(report.scored[index], report.reference[index]), index
    assert apart(report.after, report.reference) > 1e-3


@pytest.mark.parametrize("case", OWN, ids=lambda case: case.name)
def test_its_first_loss_is_ln_2(found, case):
    expected = math.log(2)
    if case.loss == "dpo":  # each is compared with its opponent
        signs = [(1 if row["outcome"] > 0 else -1, row["opponent"]) for row in prm_engine.rows()]
        expected = float(np.mean([np.logaddexp(0, sign * opponent) for sign, opponent in signs]))
    assert found[case.name].losses == pytest.approx([expected], rel=1e-6)
