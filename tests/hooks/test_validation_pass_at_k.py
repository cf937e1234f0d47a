"""pass@k and the greedy accuracy, by the methods of verl's own trainers: what they log, and that nothing else changes.

The servers are stand-ins that answer as a table says; batches, TransferQueue, replay buffer and validation are verl's.
"""

from __future__ import annotations

import asyncio
import re
import types
from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch

from tests.hooks.test_start import LOSS
from tests.hooks.test_validation_metrics import COUNTS_THE_LOST, trainer
from verl_cov.hooks import reporting
from verl_cov.hooks.validation.agent_loop import sampling_params_for
from verl_cov.hooks.validation.pass_at_k import PREFIX

N = "actor_rollout_ref.rollout.val_kwargs.n"
SAMPLED = (
    "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
    "actor_rollout_ref.rollout.val_kwargs.do_sample=True",
)
LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop=verl_cov.single_turn"


def validated(version: str, hits: dict[str, list[int]], n: int, *overrides: str, **infos) -> dict[str, float]:
    """What verl logs of n responses to each prompt of the sets {set: successes of each prompt}, ``acc`` unless other
    lists are given."""
    names = [name for name, its in hits.items() for _ in its for _ in range(n)]
    uids = [f"{name}{at}" for name, its in hits.items() for at in range(len(its)) for _ in range(n)]
    right = [float(at < c) for its in hits.values() for c in its for at in range(n)]
    made = trainer(version, f"{N}={n}", *SAMPLED, *overrides)
    return made._val_metrics_update(np.array(names), uids, infos or {"reward": right, "acc": right}, [])


def ours(found: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in found.items() if key.startswith(("val-cov/pass", "val-cov/greedy"))}


def exact(n: int, hits: list[int], k: int) -> float:
    return float(sum(1 - Fraction(comb(n - c, k), comb(n, k)) for c in hits) / len(hits))


HITS = {"a": [0, 1, 4, 16], "b": [2, 0]}


@pytest.mark.parametrize("version", ["V1", "legacy"])
def test_the_usual_k_that_n_allows_are_logged_for_each_set_and_for_all(version):
    found = validated(version, HITS, 16)
    expected = {}
    for k in (1, 4, 16):
        expected[f"val-cov/pass@{k}"] = exact(16, HITS["a"] + HITS["b"], k)
        expected |= {f"val-cov/pass@{k}/{name}": exact(16, its, k) for name, its in HITS.items()}
    assert ours(found) == pytest.approx(expected)
    assert found["val-cov/pass@1/a"] == pytest.approx(found["val-core/a/acc/mean@16"])
    # verl's best@4 is the mean over draws with replacement: another number, which stays as it is.
    assert found["val-aux/a/acc/best@4/mean"] != pytest.approx(found["val-cov/pass@4/a"], abs=1e-4)


@pytest.mark.parametrize("version", ["V1", "legacy"])
def test_other_k_are_a_list_and_off_is_off(version):
    field = f"{LOSS}cov_val_pass_at"
    assert set(ours(validated(version, {"a": [1]}, 6, f"{field}=[2,6]"))) == {
        f"val-cov/pass@{k}{of}" for k in (2, 6) for of in ("", "/a")
    }
    assert not ours(validated(version, HITS, 16, f"{field}=off"))
    assert not ours(validated(version, HITS, 16, f"{LOSS}cov_metrics=off"))
    assert not ours(validated(version, HITS, 1))  # one sample a prompt: verl's mean@1 says it
    assert not ours(validated(version, HITS, 4, "actor_rollout_ref.rollout.val_kwargs.temperature=0", SAMPLED[1]))
    assert ours(validated(version, HITS, 4, "actor_rollout_ref.rollout.val_kwargs.temperature=0", SAMPLED[1], LOOP))


def said(caplog) -> list[str]:
    return [record.message for record in caplog.records if "verl-cov" in record.message]


@pytest.fixture
def _not_yet_said(monkeypatch):
    monkeypatch.setattr(reporting, "_warned", set())


@pytest.mark.parametrize("version", ["V1", "legacy"])
@pytest.mark.usefixtures("_not_yet_said")
def test_a_score_that_is_not_0_or_1_is_left_out_until_a_threshold_is_given(version, caplog):
    graded = [0.5, 1.0, 0.25, 0.0, 0.0, 1.0]
    infos = {"reward": graded, "acc": graded}
    names, uids = np.array(["a"] * 4 + ["b"] * 2), ["p", "p", "q", "q", "r", "r"]
    run = (f"{N}=2", *SAMPLED, f"{LOSS}cov_val_pass_at=[1,2]")
    for _ in range(2):
        found = trainer(version, *run)._val_metrics_update(names, uids, infos, [])
        assert ours(found) == {f"val-cov/pass@{k}{of}": v for k, v in ((1, 0.5), (2, 1.0)) for of in ("", "/b")}
        assert found["val-core/a/acc/mean@2"] == pytest.approx(0.4375)
    (message,) = said(caplog)
    for part in ("set a", "acc 0.5 is neither 0 nor 1", "actor.policy_loss.cov_val_success", "the run goes on"):
        assert part in message
    for least, of_a, of_both in ((0.5, 0.5, 2 / 3), (0.25, 1.0, 1.0), (1.0, 0.5, 2 / 3), (1.5, 0.0, 0.0)):
        found = trainer(version, *run, f"{LOSS}cov_val_success={least}")._val_metrics_update(names, uids, infos, [])
        assert found["val-cov/pass@2/a"] == of_a
        assert found["val-cov/pass@2"] == pytest.approx(of_both)


@pytest.mark.parametrize("version", ["V1", "legacy"])
@pytest.mark.usefixtures("_not_yet_said")
def test_acc_decides_where_a_set_has_one_and_else_the_score(version, caplog):
    names, uids = np.array(["a", "a", "b", "b"]), ["p", "p", "q", "q"]
    infos = {"reward": [-1.0, 1.0, 0.0, 1.0], "acc": [0.0, 0.0, None, None]}  # a: what is trained on, and what is right
    run = trainer(version, f"{N}=2", *SAMPLED, f"{LOSS}cov_val_pass_at=[2]")
    assert ours(run._val_metrics_update(names, uids, infos, [])) == {
        "val-cov/pass@2": 0.5,
        "val-cov/pass@2/a": 0.0,
        "val-cov/pass@2/b": 1.0,
    }
    assert not said(caplog)
    without = {"reward": [-1.0, 1.0, 0.0, 1.0]}
    assert set(ours(run._val_metrics_update(names, uids, without, []))) == {"val-cov/pass@2", "val-cov/pass@2/b"}
    (message,) = said(caplog)
    assert "reward -1 is neither 0 nor 1: set actor_rollout_ref.actor.policy_loss.cov_val_success to the" in message
    assert "lowest reward that is a success" in message


@pytest.mark.parametrize("version", ["V1", "legacy"])
@pytest.mark.parametrize(
    ("infos", "words"),
    [
        ({"reward": [1.0] * 2, "acc": ["yes", "no"]}, "acc 'yes' is no number"),
        ({"reward": [1.0, float("nan")]}, "reward nan is no finite number"),
        ({"reward": [1.0, 0.0, 1.0, 0.0], "acc": [None] * 2}, "4 values of reward for 2 responses"),
        ({"reward": [None, None]}, "neither acc nor a score"),
    ],
)
@pytest.mark.usefixtures("_not_yet_said")
def test_values_that_cannot_be_read_leave_verls_numbers_alone(version, infos, words, caplog, monkeypatch):
    from verl.trainer.ppo import ray_trainer
    from verl.trainer.ppo.v1 import trainer_base

    for module in (trainer_base, ray_trainer):  # which could not read all of these lists itself
        monkeypatch.setattr(module, "process_validation_metrics", lambda *_, **__: {"a": {"acc": {"mean@2": 0.5}}})
    for least in ("null", "0.5"):
        reporting._warned.clear()
        run = trainer(version, f"{N}=2", *SAMPLED, f"{LOSS}cov_val_pass_at=[2]", f"{LOSS}cov_val_success={least}")
        found = run._val_metrics_update(np.array(["a", "a"]), ["p", "p"], infos, [])
        assert found["val-core/a/acc/mean@2"] == 0.5
        assert not ours(found)
        (message,) = said(caplog)
        assert words in message
        assert "cov_val_success" not in message  # a threshold would not help
        caplog.clear()


def test_responses_that_never_came_count_as_wrong():
    run = trainer("V1", f"{N}=4", *SAMPLED)
    expected = {"expected_acc_counts": {("a", "p"): 4, ("a", "q"): 4}} if COUNTS_THE_LOST else {}
    found = run._val_metrics_update(
        ["a"] * 3, ["p"] * 3, {"reward": [1.0, 1.0, 0.0], "acc": [1.0, 1.0, 0.0]}, [], **expected
    )
    assert found["val-cov/pass@4"] == (0.5 if COUNTS_THE_LOST else 1.0)
    assert found["val-cov/pass@1"] == (0.25 if COUNTS_THE_LOST else 0.5)


def test_nothing_is_logged_in_a_run_that_asks_for_nothing_of_ours():
    made = trainer("V1", f"{N}=4", *SAMPLED)
    for policy_loss in ({"loss_mode": "vanilla", "_target_": "verl.workers.config.PolicyLossConfig"}, {}, None):
        made.config.actor_rollout_ref.actor.policy_loss = policy_loss
        right = {"acc": [1.0] * 4, "reward": [1.0] * 4}
        assert not any(PREFIX in key for key in made._val_metrics_update(["a"] * 4, ["u"] * 4, right, []))


# --- greedy: verl's whole validation, answered by stand-ins ----------------------------------------------------------

QUESTIONS = {  # question: (set, successes of two samples, whether the greedy response is right)
    "1+1": ("a", [1, 0], True),
    "2+2": ("a", [0, 0], True),
    "3+3": ("a", [1, 1], False),
    "4+4": ("b", [0, 1], False),
}
ROWS = ["1+1", "2+2", "3+3", "3+3", "4+4"]  # 3+3 stands there twice
GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": -1}


def rows() -> dict:
    """A batch of verl's validation loader."""

    def objects(values):
        column = np.empty(len(ROWS), dtype=object)
        column[:] = values
        return column

    return {
        "dummy_tensor": torch.zeros(len(ROWS), 1, dtype=torch.uint8),
        "raw_prompt": objects([[{"role": "user", "content": question}] for question in ROWS]),
        "data_source": objects([QUESTIONS[question][0] for question in ROWS]),
        "reward_model": objects([{"ground_truth": question} for question in ROWS]),
        "extra_info": objects([{"index": at} for at in range(len(ROWS))]),
        "index": objects(range(len(ROWS))),
    }


class Server:
    """Answers requests by the table, and notes the sampling parameters of each."""

    def __init__(self):
        self.asked: dict[str, list[dict]] = {question: [] for question in QUESTIONS}
        self.samples = dict.fromkeys(QUESTIONS, 0)

    def answer(self, fields: dict) -> float:
        """The score of one more response to a row with these fields."""
        question = fields["raw_prompt"][0]["content"]
        params = sampling_params_for({"temperature": 1.0, "top_p": 0.9, "top_k": 5}, fields["extra_info"])
        self.asked[question].append(params)
        _, samples, greedy = QUESTIONS[question]
        if params == GREEDY:
            return float(greedy)
        self.samples[question] += 1
        return float(samples[(self.samples[question] - 1) % 2])


def validation(version: str, server: Server, tokenizer, *overrides: str):
    """A trainer that can validate, and its `_validate` result."""
    made = trainer(version, f"{N}=2", *SAMPLED, LOOP, *overrides)
    made.tokenizer, made.global_steps, made.use_rm = tokenizer, 3, False
    made.val_dataloader = [rows(), rows()]
    made.reward_loop_manager = types.SimpleNamespace(reward_loop_worker_handles=[object()])
    return made


@pytest.fixture(scope="module")
def tokenizer(untrained_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(untrained_model)


@pytest.fixture
def _v1(transfer_queue):
    return transfer_queue


def v1(server, tokenizer, tq, *overrides, lose=()):
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    made = validation("V1", server, tokenizer, *overrides)

    class Worker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
        """verl's worker, of which only the agent loop is another."""

        def __init__(self):
            self.config, self.background_tasks = made.config, set()

        async def _run_agent_loop(self, params, trajectory, *, agent_name, trace, session_id, **fields):
            assert agent_name == "verl_cov.single_turn"
            score = server.answer(fields)
            if server.asked[fields["raw_prompt"][0]["content"]][-1] == GREEDY and fields["data_source"] in lose:
                raise RuntimeError("on purpose")
            ids = torch.arange(2)
            row = dict(fields, prompts=ids, responses=ids, rm_scores=torch.tensor([0.0, score]), num_turns=2)
            row["extra_fields"] = {"reward_extra_info": {"acc": score}}
            key = f"{fields['uid']}_{session_id}_0"
            tag = {"status": "success", "global_steps": 3}
            await tq.async_kv_batch_put(
                keys=[key], partition_id="val", fields=list_of_dict_to_tensordict([row]), tags=[tag]
            )

    class Manager:
        def generate_sequences(self, batch):
            async def run():
                worker = Worker()
                await worker.generate_sequences(batch.clone())
                await asyncio.gather(*worker.background_tasks)

            asyncio.run(run())

    made.agent_loop_manager, made.trainer_mode = Manager(), "sync"
    made.replay_buffer = ReplayBuffer("sync", None, 1, "drop", {}, poll_interval=0.01)
    return made


def legacy(server, tokenizer, tq, *overrides, lose=()):
    from verl import DataProto

    made = validation("legacy", server, tokenizer, "actor_rollout_ref.rollout.agent.num_workers=4", *overrides)

    class Manager:
        def generate_sequences(self, batch):
            assert len(batch) % 4 == 0
            columns = batch.non_tensor_batch
            scores = [server.answer({key: columns[key][at] for key in columns}) for at in range(len(batch))]
            ids = torch.arange(2).repeat(len(batch), 1)
            rewards = torch.tensor([[0.0, score] for score in scores])
            return DataProto.from_dict(
                tensors={"prompts": ids, "responses": ids, "rm_scores": rewards},
                non_tensors={"acc": np.array(scores), "__num_turns__": np.full(len(batch), 2)},
                meta_info={"reward_extra_keys": ["acc"], "timing": {}},
            )

    made.async_rollout_manager = Manager()
    return made


def settled(found: dict[str, float]) -> dict[str, float]:
    """Without the values of verl's bootstrap, which depend on the order in which the responses come."""
    return {key: 0 if re.search("(best|worst)@", key) else value for key, value in found.items()}


TRAINERS = {"V1": v1, "legacy": legacy}
ASKED = f"{LOSS}cov_val_greedy=True"


@pytest.mark.parametrize("version", TRAINERS)
def test_greedy_responses_come_in_the_same_pass_and_verls_numbers_stay(version, tokenizer, transfer_queue):
    before, server = Server(), Server()
    without = TRAINERS[version](before, tokenizer, transfer_queue)._validate()
    made = TRAINERS[version](server, tokenizer, transfer_queue, ASKED)
    found = made._validate()
    greedy = {key: found.pop(key) for key in list(found) if "greedy" in key}
    assert greedy == pytest.approx({"val-cov/greedy": 0.5, "val-cov/greedy/a": 2 / 3, "val-cov/greedy/b": 0.0})
    assert settled(found) == pytest.approx(settled(without))
    assert found["val-cov/pass@1/b"] == 0.5
    for question, (_, samples, _) in QUESTIONS.items():
        requests = server.asked[question]
        assert requests.count(GREEDY) == 2  # once for each of the two batches
        padding = len(before.asked[question]) - 2 * ROWS.count(question) * len(samples)
        assert len(requests) - requests.count(GREEDY) >= 2 * ROWS.count(question) * len(samples)
        assert padding >= 0
    manager = made.agent_loop_manager if version == "V1" else made.async_rollout_manager
    assert "generate_sequences" not in vars(manager)
    assert not (transfer_queue.kv_list("val") or {}).get("val")


@pytest.mark.parametrize("version", TRAINERS)
@pytest.mark.usefixtures("_not_yet_said")
def test_a_greedy_part_that_fails_leaves_verls_validation_as_it_is(
    version, tokenizer, transfer_queue, monkeypatch, caplog
):
    from verl_cov.hooks.validation import greedy

    without = TRAINERS[version](Server(), tokenizer, transfer_queue)._validate()
    for broken in ("_distinct", "counts_of_sets"):
        with monkeypatch.context() as patch:
            patch.setattr(greedy, broken, lambda *_: 1 / 0)
            found = TRAINERS[version](Server(), tokenizer, transfer_queue, ASKED)._validate()
            assert settled(found) == pytest.approx(settled(without))
    (message,) = said(caplog)
    assert "the greedy accuracy of a validation failed and is left out; the run goes on" in message
    assert not (transfer_queue.kv_list("val") or {}).get("val")


def test_a_greedy_response_that_never_came_counts_as_wrong(tokenizer, transfer_queue):
    found = v1(Server(), tokenizer, transfer_queue, ASKED, lose=("b",))._validate()
    assert found["val-cov/greedy/a"] == pytest.approx(2 / 3)
    assert "val-cov/greedy/b" not in found  # nothing came of b at all
    assert found["val-cov/pass@1/b"] == 0.5


def test_the_entropy_of_a_validation_does_not_see_the_greedy_responses(tokenizer, transfer_queue, monkeypatch):
    from verl_cov.hooks.validation import entropy

    seen = []
    monkeypatch.setattr(entropy, "_measure", lambda trainer, batch, *_: bool(seen.append(len(batch))) or True)
    made = v1(Server(), tokenizer, transfer_queue, ASKED, f"{LOSS}cov_val_entropy=all")
    made._validate()
    assert seen == [2 * len(ROWS)] * 2
    assert "sample" not in vars(made.replay_buffer)
