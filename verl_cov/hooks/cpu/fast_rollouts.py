"""Generates a worker's whole batch of single-turn prompts in a few messages, where verl sends several a response.

For each response verl's agent loop builds its objects from a configuration, asks the load balancer for a server, calls
vLLM, calls a reward worker and writes to the TransferQueue: 10 ms of Python or more, which a model worth an accelerator
hides and a tiny one on a CPU does not. Here the responses that a worker begins together go as one message to each of
these. vLLM's server, the reward function and the trainer run verl's own code for each response, so what comes back is
the same (:mod:`.single_turn_batch`; what is not single-turn text goes verl's own way). ``VERL_COV_FAST_ROLLOUTS=0``
turns it off.

Leans on ``AgentLoopWorker._run_agent_loop`` (legacy trainer) and ``AgentLoopWorkerTQ._run_prompt`` (V1), each called by
tasks that are all created before the first of them runs; on ``vLLMHttpServer.generate``,
``GlobalRequestLoadBalancer.acquire_server`` and ``release_server``, and ``RewardLoopWorker.compute_score``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from verl_cov.hooks import versions
from verl_cov.hooks.cpu import batch_calls
from verl_cov.hooks.seams import Seam

if TYPE_CHECKING:
    from verl.experimental.agent_loop import AgentLoopWorker
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

SWITCH = "VERL_COV_FAST_ROLLOUTS"

seam = Seam()


def wanted() -> bool:
    """False where the switch turns it off, and before verl 0.9.1."""
    return os.environ.get(SWITCH, "").strip() != "0" and versions.installed_release().batches_rollouts


def install() -> None:
    if not wanted():
        return
    seam.when_imported("verl.experimental.agent_loop.agent_loop", _wrap_legacy)
    seam.when_imported("verl.trainer.ppo.v1.agent_loop_tq", _wrap_v1)
    seam.when_imported("verl.workers.rollout.vllm_rollout.vllm_async_server", _add_to_server)
    seam.when_imported("verl.workers.rollout.router", _add_to_balancer)
    seam.when_imported("verl.experimental.reward_loop.reward_loop", _add_to_reward_worker)


def _wrap_legacy(agent_loop: ModuleType) -> None:
    seam.wrap(agent_loop.AgentLoopWorker, "_run_agent_loop", _run_agent_loop)


def _wrap_v1(agent_loop_tq: ModuleType) -> None:
    # The class is an actor's: what Ray sends to the worker is the class inside.
    seam.wrap(agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class, "_run_prompt", _run_prompt)


def _add_to_server(module: ModuleType) -> None:
    _add(module.vLLMHttpServer, batch_calls.generate_all)


def _add_to_balancer(module: ModuleType) -> None:
    _add(module.GlobalRequestLoadBalancer, batch_calls.acquire_all)
    _add(module.GlobalRequestLoadBalancer, batch_calls.release_all)


def _add_to_reward_worker(module: ModuleType) -> None:
    _add(module.RewardLoopWorker, batch_calls.score_all)


def _add(owner: type, method: Callable[..., Any]) -> None:
    name = batch_calls.method_name(method)
    setattr(owner, name, method)
    seam.on_uninstall(lambda: delattr(owner, name))


async def _run_agent_loop(
    original: Callable[..., Any],
    worker: AgentLoopWorker,
    sampling_params: dict[str, Any],
    trajectory: dict[str, Any],
    *,
    agent_name: str,
    trace: bool = True,
    **row: Any,
) -> Any:
    from verl_cov.hooks.cpu import single_turn_batch

    # The V1 trainer's prompts have been taken before, in :func:`_run_prompt`.
    loop = None if hasattr(worker, "background_tasks") else single_turn_batch.loop_for(worker, agent_name, row)
    if loop is None:
        return await original(worker, sampling_params, trajectory, agent_name=agent_name, trace=trace, **row)
    return await single_turn_batch.answer(worker, loop, sampling_params, trajectory["validate"], row)


async def _run_prompt(
    original: Callable[..., Any],
    worker: AgentLoopWorkerTQ,
    prompt: dict[str, Any],
    sampling_params: dict[str, Any],
    trajectory: dict[str, Any],
    trace: bool = False,
) -> None:
    from verl_cov.hooks.cpu import single_turn_batch, v1_batch

    loop = single_turn_batch.loop_for(worker, prompt["agent_name"], prompt)
    if loop is None:
        await original(worker, prompt, sampling_params, trajectory, trace)
    else:
        await v1_batch.answer_prompt(worker, loop, sampling_params, trajectory["validate"], prompt)
