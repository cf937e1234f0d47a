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

    def __init__(self, tq, calls):
        self.tq, self.calls, self._dispatch_info = tq, calls, {}

    def _query_dispatch_info(self, mesh):
        assert mesh == "actor"
        return list(range(RANKS))

    def compute_log_prob(self, batch):
        self.calls.append(("forward", len(batch), dict(batch.extra_info)))
        data = self.tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["input_ids"])
        values = [
            entropies_of(int(key.split("-")[1].split("_")[0])) if key.startswith("uid") else torch.zeros(len(ids))
            for key, ids in zip(batch.keys, data["input_ids"].unbind(), strict=True)
        ]
        from verl.utils import tensordict_utils as tu

        entropy = torch.nested.as_nested_tensor(values, layout=torch.jagged)
        self.tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=tu.get_tensordict({"entropy": entropy})
        )


@pytest.fixture
def batch(transfer_queue):
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
    keys = [f"uid-{generation}_0_0" for generation in range(len(rows))]
    tags = [{"status": "success", "seq_len": sum(lengths)} for lengths in LENGTHS]
    transfer_queue.kv_batch_put(keys=keys, partition_id="val", fields=list_of_dict_to_tensordict(rows), tags=tags)
    yield KVBatchMeta(partition_id="val", keys=keys, tags=tags)
    transfer_queue.kv_clear(keys=list(transfer_queue.kv_list("val")["val"]), partition_id="val")


@pytest.mark.parametrize("wanted", ["all", 3])
def test_what_the_actor_says_of_each_response_token_is_averaged(transfer_queue, batch, wanted):
    calls: list = []
    trainer = types.SimpleNamespace(
        actor_rollout_wg=Actor(transfer_queue, calls),
        checkpoint_manager=types.SimpleNamespace(
            sleep_replicas=lambda: calls.append("sleep"), update_weights=lambda step: calls.append(f"wake {step}")
        ),
        config=config(*RUN, f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={MICRO}"),
        global_steps=7,
        tokenizer=types.SimpleNamespace(eos_token_id=0),
        val_dataset=range(len(LENGTHS)),
        replay_buffer=Buffer(batch),
    )
    found = Entropies()
    with _measuring_each_batch(trainer, wanted, found):
        assert trainer.replay_buffer.sample(global_steps=7, partition_id="val", batch_size=5) == (batch, {})
    assert "sample" not in vars(trainer.replay_buffer)

    count = 5 if wanted == "all" else wanted
    settings = {"calculate_entropy": True, "compute_loss": False, "temperature": 1.0}
    assert calls == ["sleep", ("forward", RANKS * MICRO, settings), "wake 7"]
    expected = []
    for generation, (prompt, response) in enumerate(LENGTHS):
        # The entropy of a response token's distribution stands one position before the token.
        positions = [at for at in range(response) if (generation, at) != MASKED]
        expected.append(np.mean([10 * generation + prompt - 1 + at for at in positions]))
    values = [value for name in ("even", "odd") for value in found.values[name]]
    assert len(values) == count
    assert set(values) <= set(expected)
    if wanted == "all":
        assert found.values == {"even": expected[::2], "odd": expected[1::2]}
        assert found.named()["val-cov/entropy"] == pytest.approx(np.mean(expected))
    assert found.seconds > 0
    # The rows that filled up the micro-batches are gone.
    assert sorted(transfer_queue.kv_list("val")["val"]) == sorted(batch.keys)


class Buffer:
    """Stands in for verl's replay buffer: hands out a batch that is in TransferQueue already."""

    def __init__(self, batch):
        self.batch = batch

    def sample(self, global_steps, partition_id, batch_size):
        return self.batch, {}
