"""Which generations of a validation are measured, and that their entropies are read and averaged as the paper does.

The forward itself runs in tests/e2e/test_evaluation.py; here the actor's answer is known.
"""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.hooks.test_start import RUN, config
from verl_cov.hooks.validation import entropy
from verl_cov.hooks.validation.entropy import Entropies, _measuring_each_batch, chosen, share_of

prompts = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=30)


@given(prompts, st.integers(1, 40), st.randoms())
def test_the_same_prompts_are_chosen_however_the_generations_come(rows, wanted, random):
    share = share_of(wanted, len(rows))
    at = chosen(rows, share)
    assert len(at) == min(wanted, len(rows))
    assert at == sorted(set(at))
    shuffled = random.sample(rows, len(rows))
    assert sorted(rows[row] for row in at) == sorted(shuffled[row] for row in chosen(shuffled, share))
    assert chosen(rows, share_of("all", len(rows))) == list(range(len(rows)))


def test_a_sample_has_prompts_of_every_set_and_not_all_copies_of_a_few():
    rows = [b"aime %d" % (at % 30) for at in range(960)] + [b"math %d" % at for at in range(500)]
    at = chosen(rows, share_of(146, len(rows)))
    assert len(at) == 146
    assert 70 < sum(row < 960 for row in at) < 120  # 96 expected
    assert len({rows[row] for row in at if row < 960}) > 25


def test_the_mean_is_over_all_responses_and_over_each_set():
    found = Entropies()
    assert found.named() == {}
    found.add(["a", "a", "b"], [1.0, 2.0, 6.0])
    found.add(["b"], [7.0])
    named = found.named()
    assert named.pop("val-cov/entropy_seconds") == 0
    assert named == {
        "val-cov/entropy": 4.0,
        "val-cov/entropy_generations": 4,
        "val-cov/entropy/a": 1.5,
        "val-cov/entropy/b": 6.5,
    }


# --- a validation batch in TransferQueue ------------------------------------------------------------------------------

LENGTHS = [(3, 4), (5, 1), (2, 6), (4, 3), (6, 2)]  # prompt, response
MASKED = (2, 1)  # generation 2: its second response token was written by a tool
RANKS, MICRO = 2, 4


def entropies_of(generation: int) -> torch.Tensor:
    """What the actor says at each position of the sequence: the entropy of the token that comes next."""
    return 10.0 * generation + torch.arange(sum(LENGTHS[generation]), dtype=torch.float32)


class Actor:
    """Stands in for the actor's workers: notes what it is asked, and writes entropies of whole sequences."""

    def __init__(self, tq, keys, calls):
        self.tq, self.keys, self.calls, self._dispatch_info = tq, keys, calls, {}

    def _query_dispatch_info(self, mesh):
        assert mesh == "actor"
        return list(range(RANKS))

    def compute_log_prob(self, batch):
        self.calls.append(("forward", len(batch), dict(batch.extra_info)))
        data = self.tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["input_ids"])
        values = [
            entropies_of(self.keys.index(key)) if key in self.keys else torch.zeros(len(ids))
            for key, ids in zip(batch.keys, data["input_ids"].unbind(), strict=True)
        ]
        from verl.utils import tensordict_utils as tu

        fields = tu.get_tensordict({"entropy": torch.nested.as_nested_tensor(values, layout=torch.jagged)})
        self.tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


KEYS = tuple(f"uid-{generation}_0_0" for generation in range(len(LENGTHS)))


@pytest.fixture(params=[KEYS])
def batch(request, transfer_queue):
    from transfer_queue import KVBatchMeta
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    rows = []
    for generation, (prompt, response) in enumerate(LENGTHS):
        mask = torch.ones(response, dtype=torch.int64)
        if generation == MASKED[0]:
            mask[MASKED[1]] = 0
        ids = torch.arange(prompt + response)
        rows.append(
            dict(
                input_ids=ids,
                position_ids=ids,
                prompts=ids[:prompt] + generation,
                responses=ids[prompt:],
                response_mask=mask,
                loss_mask=mask,
                data_source="even" if generation % 2 == 0 else "odd",
                uid=f"uid-{generation}",
            )
        )
    keys = list(request.param)
    tags = [{"status": "success", "seq_len": sum(lengths)} for lengths in LENGTHS]
    transfer_queue.kv_batch_put(keys=keys, partition_id="val", fields=list_of_dict_to_tensordict(rows), tags=tags)
    yield KVBatchMeta(partition_id="val", keys=keys, tags=tags)
    transfer_queue.kv_clear(keys=list(transfer_queue.kv_list("val")["val"]), partition_id="val")


@pytest.fixture
def trainer(transfer_queue, batch):
    """A trainer whose replay buffer hands out ``batch``; ``trainer.calls`` is what was asked of it."""
    calls: list = []
    return types.SimpleNamespace(
        calls=calls,
        actor_rollout_wg=Actor(transfer_queue, batch.keys, calls),
        checkpoint_manager=types.SimpleNamespace(
            sleep_replicas=lambda: calls.append("sleep"), update_weights=lambda step: calls.append(f"wake {step}")
        ),
        config=config(*RUN, f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={MICRO}"),
        global_steps=7,
        tokenizer=types.SimpleNamespace(eos_token_id=0),
        val_dataset=range(len(batch.keys)),
        replay_buffer=Buffer(batch),
    )


def measure(trainer, wanted) -> Entropies:
    found = Entropies()
    with _measuring_each_batch(trainer, wanted, found):
        given = trainer.replay_buffer.sample(global_steps=7, partition_id="val", batch_size=5)
        assert given == (trainer.replay_buffer.batch, {})
    assert "sample" not in vars(trainer.replay_buffer)
    return found


def tokens_of(generation: int) -> list[float]:
    """The entropies of a generation's own tokens: a token's distribution stands one position before it."""
    prompt, response = LENGTHS[generation]
    return [10.0 * generation + prompt - 1 + at for at in range(response) if (generation, at) != MASKED]


@pytest.mark.parametrize("wanted", ["all", 3])
def test_what_the_actor_says_of_each_response_token_is_averaged(transfer_queue, batch, trainer, wanted):
    found = measure(trainer, wanted)
    count = 5 if wanted == "all" else wanted
    settings = {"calculate_entropy": True, "compute_loss": False, "temperature": 1.0}
    assert trainer.calls == ["sleep", ("forward", RANKS * MICRO, settings), "wake 7"]
    expected = [np.mean(tokens_of(generation)) for generation in range(len(LENGTHS))]
    values = [value for name in ("even", "odd") for value in found.values[name]]
    assert len(values) == count
    assert set(values) <= set(expected)
    if wanted == "all":
        assert found.values == {"even": expected[::2], "odd": expected[1::2]}
        assert found.named()["val-cov/entropy"] == pytest.approx(np.mean(expected))
    assert found.seconds > 0
    # The rows that filled up the micro-batches are gone.
    assert sorted(transfer_queue.kv_list("val")["val"]) == sorted(batch.keys)


SESSIONS = ("uid-0_0_0", "uid-0_1_0", "uid-0_0_2", "uid-1_0_0", "uid-0_0_1")  # rows 0, 2 and 4 are one response


@pytest.mark.parametrize("batch", [SESSIONS], indirect=True)
def test_the_outputs_of_a_session_are_one_response(batch, trainer):
    whole = measure(trainer, "all").values
    assert whole["even"] == [pytest.approx(np.mean([*tokens_of(0), *tokens_of(2), *tokens_of(4)]))]
    assert whole["odd"] == [np.mean(tokens_of(1)), np.mean(tokens_of(3))]
    trainer.val_dataset = range(3)
    for wanted in (1, 2):
        some = measure(trainer, wanted).values
        assert sum(map(len, some.values())) == wanted
        assert set(some["even"]) <= set(whole["even"])


def fail(*_, **__):
    raise RuntimeError("on purpose")


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        ("trainer", "tokenizer", []),  # before the rollout's servers sleep
        ("trainer.actor_rollout_wg", "compute_log_prob", ["sleep", "wake 7"]),
        ("entropy", "_read", ["sleep", "forward", "wake 7"]),
    ],
)
def test_a_failure_leaves_the_entropy_out_and_the_servers_awake(
    transfer_queue, batch, trainer, monkeypatch, owner, name, calls
):
    monkeypatch.setattr({"trainer": trainer, "entropy": entropy}.get(owner) or trainer.actor_rollout_wg, name, fail)
    found = measure(trainer, "all")
    assert [call if isinstance(call, str) else call[0] for call in trainer.calls] == calls
    assert sorted(transfer_queue.kv_list("val")["val"]) == sorted(batch.keys)
    found.add(["another batch"], [1.0])
    assert found.named() == {}


@pytest.mark.parametrize("name", ["sleep_replicas", "update_weights"])
def test_servers_that_cannot_sleep_or_wake_end_the_run(trainer, name):
    setattr(trainer.checkpoint_manager, name, fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        measure(trainer, "all")


class Buffer:
    """Stands in for verl's replay buffer: hands out a batch that is in TransferQueue already."""

    def __init__(self, batch):
        self.batch = batch

    def sample(self, global_steps, partition_id, batch_size):
        return self.batch, {}
