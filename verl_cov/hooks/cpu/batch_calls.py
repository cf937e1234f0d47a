"""The calls between verl's actors that carry many responses at once: the receiving methods, and who sends to them.

A receiving method runs verl's own method once for each response, in the order of the list, and all of them at the same
time. :mod:`.fast_rollouts` adds it to verl's class. A response that fails is an exception in the list that comes back.

Leans on what :mod:`.fast_rollouts` names, and on the row that ``AgentLoopWorker._compute_score`` builds for a reward
worker.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from verl.experimental.agent_loop import AgentLoopOutput
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
    from verl.protocol import DataProto
    from verl.workers.rollout.llm_server import LLMServerClient
    from verl.workers.rollout.router import GlobalRequestLoadBalancer
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer


def method_name(method: Callable[..., Any]) -> str:
    """The name under which a receiving method stands in verl's class."""
    return f"verl_cov_{method.__name__}"


def _remote(actor: ActorHandle, method: Callable[..., Any]) -> Any:
    return getattr(actor, method_name(method)).remote


# --- vLLM -------------------------------------------------------------------------------------------------------------


async def generate_all(server: vLLMHttpServer, requests: list[dict[str, Any]]) -> list[Any]:
    """Returns a ``TokenOutput``, or an exception, for each set of arguments of ``vLLMHttpServer.generate``."""
    return await asyncio.gather(*(server.generate(**request) for request in requests), return_exceptions=True)


def acquire_all(balancer: GlobalRequestLoadBalancer, requests: list[dict[str, Any]]) -> list[tuple[str, ActorHandle]]:
    """Returns (name, server) for each set of arguments of ``GlobalRequestLoadBalancer.acquire_server``."""
    return [balancer.acquire_server(**request) for request in requests]


def release_all(balancer: GlobalRequestLoadBalancer, releases: list[tuple[str, str]]) -> None:
    """Releases the server of each (name, request)."""
    for server, request in releases:
        balancer.release_server(server_id=server, request_id=request)


def balances_in_batches(client: LLMServerClient) -> bool:
    """True if the client's load balancer is verl's own, which has our methods; a user's own is asked one by one."""
    return hasattr(client._load_balancer, method_name(acquire_all))


async def generate(client: LLMServerClient, sticky: list[str], requests: list[dict[str, Any]]) -> list[Any]:
    """As ``LLMServerClient.generate`` for each of the requests, one message to each server.

    Args:
        sticky: the request's name for the load balancer, which may differ from vLLM's.
        requests: arguments of ``vLLMHttpServer.generate``.

    Returns:
        A ``TokenOutput`` or an exception for each.
    """
    balancer = client._load_balancer
    servers = await _remote(balancer, acquire_all)([{"request_id": name} for name in sticky])
    try:
        calls: dict[str, list[int]] = {}
        for at, (name, _) in enumerate(servers):
            calls.setdefault(name, []).append(at)
        outputs: list[Any] = [None] * len(requests)
        answers = await asyncio.gather(
            *(_remote(servers[own[0]][1], generate_all)([requests[at] for at in own]) for own in calls.values()),
            return_exceptions=True,
        )
        for own, answer in zip(calls.values(), answers, strict=True):
            for place, at in enumerate(own):
                outputs[at] = answer if isinstance(answer, BaseException) else answer[place]
    finally:
        _remote(balancer, release_all)([(name, own) for (name, _), own in zip(servers, sticky, strict=True)])
    for output in outputs:
        if not isinstance(output, BaseException):
            steps = output.extra_fields.get("global_steps")
            output.extra_fields.setdefault("min_global_steps", steps)
            output.extra_fields.setdefault("max_global_steps", steps)
    return outputs


# --- the reward -------------------------------------------------------------------------------------------------------


async def score_all(worker: RewardLoopWorker, rows: list[bytes]) -> list[Any]:
    """Returns what ``RewardLoopWorker.compute_score`` returns, or an exception, for each pickled row."""
    return await asyncio.gather(
        *(worker.compute_score(_reward_row(*pickle.loads(row))) for row in rows), return_exceptions=True
    )


async def score(workers: list[ActorHandle], outputs: list[AgentLoopOutput], rows: list[dict[str, Any]]) -> list[Any]:
    """As ``compute_score`` for each of the outputs, one message to each reward worker; a result or exception each."""
    from ray import cloudpickle

    # Pickled one by one: a reward function may change the row that it gets, and must not find another one's changes.
    pickled = [
        cloudpickle.dumps((output.prompt_ids, output.response_ids, output.num_turns, output.extra_fields, row))
        for output, row in zip(outputs, rows, strict=True)
    ]
    shares = [pickled[at :: len(workers)] for at in range(len(workers))]
    answers = await asyncio.gather(
        *(_remote(worker, score_all)(share) for worker, share in zip(workers, shares, strict=True) if share),
        return_exceptions=True,
    )
    results: list[Any] = [None] * len(outputs)
    for at, answer in enumerate(answers):
        own = range(at, len(outputs), len(workers))
        for place, index in enumerate(own):
            results[index] = answer if isinstance(answer, BaseException) else answer[place]
    return results


def _reward_row(
    prompt_ids: list[int], response_ids: list[int], num_turns: int, extra_fields: dict[str, Any], row: dict[str, Any]
) -> DataProto:
    """What ``AgentLoopWorker._compute_score`` sends for one output without images."""
    import numpy as np
    import torch
    from tensordict import TensorDict
    from verl.protocol import DataProto
    from verl.utils.model import compute_position_id_with_mask

    prompts = torch.tensor([prompt_ids], dtype=torch.int64)
    responses = torch.tensor([response_ids], dtype=torch.int64)
    input_ids = torch.cat([prompts, responses], dim=1)
    attention_mask = torch.ones_like(input_ids)
    batch = TensorDict(
        {
            "prompts": prompts,
            "responses": responses,
            "attention_mask": attention_mask,
            "input_ids": input_ids,
            "position_ids": compute_position_id_with_mask(attention_mask),
        },
        batch_size=1,
    )
    non_tensor_batch = {
        **{key: np.array([value]) for key, value in row.items()},
        "__num_turns__": np.array([num_turns]),
        "tool_extra_fields": np.array([extra_fields], dtype=object),
        "prompt_len": np.array([len(prompt_ids)]),
        "response_len": np.array([len(response_ids)]),
    }
    return DataProto(batch=batch, non_tensor_batch=non_tensor_batch)
