"""The hook as verl has it once patched; would go to verl's tests with the patch. Needs verl and pytest alone."""

from contextlib import contextmanager

import pytest
from verl.utils import mini_batch_hook
from verl.utils.mini_batch_hook import MiniBatchStep, register_mini_batch_hook


@pytest.fixture(autouse=True)
def _no_other_hooks(monkeypatch):
    monkeypatch.setattr(mini_batch_hook, "_FACTORIES", [])


class CountTokens:
    """Adds a field to the mini-batch, notes what it is called with, and reports the number of tokens."""

    def __init__(self, worker, mini_batch):
        self.events = worker
        self.tokens = sum(mini_batch["lengths"])
        mini_batch["share"] = [length / self.tokens for length in mini_batch["lengths"]]

    @contextmanager
    def micro_batch(self, micro_batch):
        self.events.append(("enter", micro_batch["share"]))
        yield
        self.events.append("leave")

    def metrics(self):
        return {"actor/tokens": self.tokens}


def test_without_hooks_the_loss_is_the_same_object():
    step = MiniBatchStep(worker=None, mini_batch={})

    def loss_fn():
        return 1.0

    assert step.around(loss_fn) is loss_fn
    assert step.metrics() == {}


def test_a_hook_sees_the_mini_batch_before_it_is_cut_and_stands_around_each_loss():
    register_mini_batch_hook(CountTokens)
    events, data = [], {"lengths": [1, 3]}
    step = MiniBatchStep(events, data)
    assert data["share"] == [0.25, 0.75]

    def loss_fn(model_output, data):
        events.append("loss")
        return model_output * sum(data["share"])

    loss = step.around(loss_fn)
    assert [loss(model_output=2.0, data={"share": [share]}) for share in data["share"]] == [0.5, 1.5]
    assert events == [("enter", [0.25]), "loss", "leave", ("enter", [0.75]), "loss", "leave"]
    assert step.metrics() == {"actor/tokens": 4}


def test_the_micro_batch_can_be_given_where_the_loss_is_not_called_with_it():
    register_mini_batch_hook(CountTokens)
    events, data = [], {"lengths": [2]}
    step = MiniBatchStep(events, data)
    assert step.around(lambda log_prob: log_prob, data)(log_prob=3.0) == 3.0
    assert events == [("enter", [1.0]), "leave"]


def test_a_call_without_a_micro_batch_passes_through():
    register_mini_batch_hook(CountTokens)
    events = []
    step = MiniBatchStep(events, {"lengths": [2]})
    assert step.around(lambda student_logits: student_logits)(student_logits=5.0) == 5.0
    assert events == []


def test_a_hook_that_has_nothing_to_do_is_left_out_and_a_factory_is_registered_once():
    calls = []

    @register_mini_batch_hook
    def nothing(worker, mini_batch):
        calls.append(mini_batch)

    register_mini_batch_hook(nothing)
    assert MiniBatchStep(None, {"lengths": []}).hooks == []
    assert len(calls) == 1


def test_an_error_in_the_loss_leaves_the_hook():
    register_mini_batch_hook(CountTokens)
    events, data = [], {"lengths": [1]}

    def loss_fn(data):
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        MiniBatchStep(events, data).around(loss_fn)(data=data)
    assert events[0] == ("enter", [1.0])
