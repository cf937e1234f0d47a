"""The fast way of single-turn rollouts on a CPU gives the trainers what verl's own way gives them, field by field.

verl's classes run as they are, the TransferQueue and the reward workers too; only Ray's messages are replaced (by
pickling), and vLLM's server, whose answer is a function of the request. tests/e2e/test_fast_rollouts.py has vLLM.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from ray import cloudpickle
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.protocol import DataProto
from verl.utils import tensordict_utils
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.router import GlobalRequestLoadBalancer

from verl_cov.hooks.cpu import batch_calls
from verl_cov.hooks.validation.temperatures import AGENT_LOOP

REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    if "unscorable" in data_source:
        raise ValueError("no score")
    extra_info["seen"] = extra_info.get("seen", 0) + 1  # a function may do so, and must see no other response's change
    return {"score": len(solution_str) + float(ground_truth), "acc": 1.0, "seen": extra_info["seen"],
            "turns": int(extra_info["num_turns"]), "keys": sorted(extra_info)}
"""
EMPTY, BROKEN = 7, 8  # prompts of these many characters get no token, and an error


class Far:
    """An actor: what it is given and what it returns is pickled, as Ray does."""

    def __init__(self, actor: object):
        self._actor, self.calls = actor, []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)

        def remote(*args, **kwargs):
            self.calls.append(name)
            args, kwargs = cloudpickle.loads(cloudpickle.dumps((args, kwargs)))

            async def call():
                result = method(*args, **kwargs)
                return cloudpickle.loads(cloudpickle.dumps(await result if inspect.isawaitable(result) else result))

            return asyncio.ensure_future(call())

        return SimpleNamespace(remote=remote)

    def __reduce__(self):
        return _known, (id(self),)


_actors: dict[int, Far] = {}


def _known(number: int) -> Far:
    return _actors[number]


def far(actor: object) -> Far:
    known = Far(actor)
    _actors[id(known)] = known
    return known


class Server:
    """Answers with tokens that depend on the whole request, and on nothing else."""

    verl_cov_generate_all = batch_calls.generate_all

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    async def generate(
        self, prompt_ids, sampling_params, request_id, image_data=None, video_data=None, priority=0
    ) -> TokenOutput:
        assert (image_data, video_data) == (None, None)
        told = sampling_params.pop("logprobs")  # as vLLM's server: the dictionary is its own
        self.requests.append(
            {"prompt_ids": prompt_ids, "params": sampling_params, "priority": priority, "logprobs": told}
        )
        length = len(prompt_ids) % 10
        if length == BROKEN:
            raise RuntimeError("the engine is gone")
        await asyncio.sleep(0.001 * (sum(prompt_ids) % 7))  # they end in another order than they began
        tokens = [] if length == EMPTY else [1 + (sum(prompt_ids) + at) % 50 for at in range(2 + sum(prompt_ids) % 9)]
        tokens = [token + (sampling_params["temperature"] == 0) for token in tokens]
        return TokenOutput(
            token_ids=tokens,
            log_probs=[-0.5 * token for token in tokens] if told else None,
            stop_reason="completed",
            extra_fields={"global_steps": 3, "num_cached_tokens": length},
        )


_loop = asyncio.new_event_loop()  # verl's workers keep the one that they find when they are made
run = _loop.run_until_complete


@pytest.fixture(autouse=True)
def _one_event_loop():
    logging.getLogger("transfer_queue").setLevel(logging.ERROR)
    asyncio.set_event_loop(_loop)
    yield
    asyncio.set_event_loop(None)


@pytest.fixture(scope="module")
def config(tmp_path_factory, untrained_model):
    reward = tmp_path_factory.mktemp("reward") / "reward.py"
    reward.write_text(REWARD)
    overrides = [
        "+verl_cov=cpu",
        f"actor_rollout_ref.model.path={untrained_model}",
        f"reward.custom_reward_function.path={reward}",
        "actor_rollout_ref.rollout.n=3",
        "actor_rollout_ref.rollout.val_kwargs.n=2",
        "actor_rollout_ref.rollout.temperature=0.7",
        "actor_rollout_ref.rollout.val_kwargs.temperature=0.3",
        "actor_rollout_ref.rollout.prompt_length=24",
        "actor_rollout_ref.rollout.response_length=6",  # the longest answers are cut
        "actor_rollout_ref.rollout.calculate_log_probs=true",
    ]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=overrides)


@pytest.fixture(scope="module")
def reward_workers(config):
    asyncio.set_event_loop(_loop)
    return [far(RewardLoopWorker(config)) for _ in range(2)]


def worker_of(cls: type, config, reward_workers, monkeypatch, fast: bool, **changes: Any) -> Any:
    """A worker of this class, its server, and the messages that it sends, in which the responses go verl's own way
    unless ``fast``."""
    for name in ("_run_prompt", "_run_agent_loop"):
        if not fast and hasattr(getattr(cls, name, None), "__wrapped__"):
            monkeypatch.setattr(cls, name, getattr(cls, name).__wrapped__)
    servers = [far(Server()), far(Server())]
    balancer = far(GlobalRequestLoadBalancer({f"server {at}": server for at, server in enumerate(servers)}))
    client = changes.pop("client", LLMServerClient)(config, balancer)
    worker = cls(config, client, None, reward_workers)
    worker.far = [balancer, *servers, *reward_workers]
    for one in worker.far:
        one.calls.clear()
    vars(worker).update(changes)
    return worker


def requests(worker) -> list:
    """What the servers were asked for, in an order of its own."""
    asked = [request for one in worker.far if isinstance(one._actor, Server) for request in one._actor.requests]
    return sorted(asked, key=repr)


def rows(count: int = 14, first: int = 0, **columns: Any) -> dict[str, np.ndarray]:
    """Prompts of several lengths as verl's data loader gives them, each with a field of its own."""

    numbers = range(first, first + count)

    def column(values) -> np.ndarray:
        array = np.empty(count, dtype=object)
        array[:] = list(values)
        return array

    given = {
        "raw_prompt": column([{"role": "user", "content": "abcdefgh"[: 1 + at % 6] + str(at)}] for at in numbers),
        "data_source": column("countdown" for _ in range(count)),
        "reward_model": column({"ground_truth": str(at)} for at in numbers),
        "extra_info": column({"index": at, "temperature": 0.0 if at % 4 == 1 else None} for at in numbers),
        "index": column(numbers),
        "dummy_tensor": torch.arange(count),
    }
    return given | {name: column(values) for name, values in columns.items()}


# --- the V1 trainer ---------------------------------------------------------------------------------------------------


def v1_class() -> type:
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

    return AgentLoopWorkerTQ.__ray_metadata__.modified_class


def put(worker, tq, name: str, validate: bool, **columns: Any) -> tuple[dict[str, dict], dict[str, str]]:
    """Fields and tag of every response in the TransferQueue, and the status of each prompt, after a batch."""
    given = rows(**columns)
    count = len(given["index"])
    partition = "val" if validate else "train"
    batch = tensordict_utils.get_tensordict(
        given | {"uid": np.array([f"{name}{at}" for at in range(count)], dtype=object)}
    )
    tensordict_utils.assign_non_tensor_data(batch, "global_steps", 5)
    tensordict_utils.assign_non_tensor_data(batch, "validate", validate)
    uids = list(batch["uid"])
    tags = [{"is_prompt": True, "status": "pending", "global_steps": 5} for _ in uids]
    tq.kv_batch_put(keys=uids, partition_id=partition, tags=tags)

    async def generate() -> None:
        await worker.generate_sequences(batch)
        while worker.background_tasks:
            await asyncio.gather(*worker.background_tasks)

    run(generate())
    listed = tq.kv_list(partition)[partition]
    found = {key: tag for key, tag in listed.items() if key.startswith(name) and key not in uids}
    responses = {}
    for key, tag in found.items():
        stored = tq.kv_batch_get(keys=[key], partition_id=partition)
        fields = {field: stored[field][0] for field in stored.keys()}  # noqa: SIM118
        responses[key.removeprefix(name)] = {
            field: value.tolist() if isinstance(value, torch.Tensor) else value for field, value in fields.items()
        } | {"tag": tag}
    statuses = {uid.removeprefix(name): listed[uid]["status"] for uid in uids}
    tq.kv_clear(keys=list(listed), partition_id=partition)
    return responses, statuses


def plain(value: Any) -> Any:
    """A stored value without what measures time or names the run."""
    value = getattr(value, "data", value)
    if isinstance(value, dict):
        return {
            key: plain(own) for key, own in value.items() if key not in ("uid", "generate_sequences", "compute_score")
        }
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value


V1 = {
    "trained on": dict(validate=False),
    "validated, at a row's own temperature": dict(validate=True, agent_name=[AGENT_LOOP] * 14),
    "some sampled greedily, some of another size": dict(
        validate=False, __do_sample__=[at % 2 == 0 for at in range(14)], __rollout_n__=[1 + at % 3 for at in range(14)]
    ),
    "with priorities": dict(validate=False, priority=range(14)),
    "some of which fail": dict(
        validate=False, data_source=["unscorable" if at == 3 else "countdown" for at in range(14)]
    ),
}


@pytest.mark.parametrize("case", V1)
def test_the_v1_trainer_gets_the_same(case, config, reward_workers, transfer_queue, monkeypatch):
    options = dict(V1[case])
    found = {}
    for name, fast in (("fast", True), ("own", False)):
        with monkeypatch.context() as patch:
            worker = worker_of(v1_class(), config, reward_workers, patch, fast)
            responses, statuses = put(worker, transfer_queue, f"{case[:2]}{name}", **options)
            found[name] = ({key: plain(value) for key, value in responses.items()}, statuses, requests(worker))
            messages = sum(len(one.calls) for one in worker.far)
            assert (messages <= 6) is fast
    assert found["fast"] == found["own"]
    responses, statuses, _ = found["fast"]
    assert responses
    assert "rm_scores" in next(iter(responses.values()))
    assert set(statuses.values()) == {"finished", "failure"}  # the prompts of one length have no answer


# --- the legacy trainer -----------------------------------------------------------------------------------------------


def legacy_batch(**columns: Any) -> DataProto:
    """Five responses to each of four prompts that are answered, as the legacy trainer repeats them."""
    given = rows(4, first=3, **columns)
    tensors = TensorDict({"dummy_tensor": given.pop("dummy_tensor")}, batch_size=4)
    batch = DataProto(batch=tensors, non_tensor_batch=given, meta_info={"global_steps": 5})
    batch = batch.repeat(5)
    batch.non_tensor_batch["priority"] = np.arange(20, dtype=np.int64)
    return batch


@pytest.mark.parametrize("validate", [False, True])
def test_the_legacy_trainer_gets_the_same(validate, config, reward_workers, monkeypatch):
    found = {}
    for name, fast in (("fast", True), ("own", False)):
        batch = legacy_batch(**({"agent_name": [AGENT_LOOP] * 4} if validate else {}))
        batch.meta_info["validate"] = validate
        with monkeypatch.context() as patch:
            worker = worker_of(AgentLoopWorker, config, reward_workers, patch, fast)
            output = run(worker.generate_sequences(batch))
            assert (sum(len(one.calls) for one in worker.far) <= 6) is fast
        metrics = [plain(metric) for metric in output.meta_info.pop("metrics")]
        tensors = {key: value.tolist() for key, value in output.batch.items()}
        others = {key: value.tolist() for key, value in output.non_tensor_batch.items()}
        found[name] = (tensors, others, output.meta_info, metrics, requests(worker))
    assert found["fast"] == found["own"]
    assert {"rm_scores", "rollout_log_probs"} <= found["fast"][0].keys()


# --- what goes verl's own way -----------------------------------------------------------------------------------------


class OtherClient(LLMServerClient):
    """Of a trainer that goes on with a response after an update of the weights."""


OTHERS = {
    "another agent loop": dict(columns=dict(agent_name=["tool_agent"] * 14)),
    "images": dict(changes=dict(mm_processor_kwargs={"fps": 2})),
    "a teacher": dict(changes=dict(distillation_enabled=True)),
    "another client": dict(changes=dict(client=OtherClient)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_others_are_left_to_verl(case, config, reward_workers, monkeypatch):
    from verl_cov.hooks.cpu import single_turn_batch

    worker = worker_of(AgentLoopWorker, config, reward_workers, monkeypatch, True, **OTHERS[case].get("changes", {}))
    agent = OTHERS[case].get("columns", {}).get("agent_name", ["single_turn_agent"])[0]
    assert single_turn_batch.loop_for(worker, agent, {"raw_prompt": []}) is None


def test_a_load_balancer_of_the_users_is_asked_one_by_one(config, reward_workers, monkeypatch):
    from verl_cov.hooks.cpu import single_turn_batch

    worker = worker_of(AgentLoopWorker, config, reward_workers, monkeypatch, True)
    assert single_turn_batch.loop_for(worker, "single_turn_agent", {"raw_prompt": []}) is not None
    worker = worker_of(AgentLoopWorker, config, reward_workers, monkeypatch, True)
    worker.llm_client._load_balancer = SimpleNamespace(acquire_server=None, release_server=None)
    assert single_turn_batch.loop_for(worker, "single_turn_agent", {"raw_prompt": []}) is None


def test_the_switch_leaves_verl_as_it_is():
    from tests.hooks.test_cpu import fresh

    script = """
        import verl
        from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
        from verl.workers.rollout.router import GlobalRequestLoadBalancer
        print(hasattr(AgentLoopWorker._run_agent_loop, "__wrapped__"),
              any(name.startswith("verl_cov") for name in vars(GlobalRequestLoadBalancer)))
    """
    assert fresh(script).splitlines()[-1] == "True True"
    assert fresh(script, VERL_COV_FAST_ROLLOUTS="0").splitlines()[-1] == "False False"
    assert fresh(script, VERL_PLATFORM="").splitlines()[-1] == "False False"
