"""Answers many single-turn prompts together: what :mod:`.fast_rollouts` puts in the place of verl's loop for each.

The responses that are asked for in one turn of the event loop are one batch. What is done for each of them is what
``SingleTurnAgentLoop.run`` and ``AgentLoopWorker._compute_score`` do for text. Imported in agent-loop workers only.

Leans on these two, on ``AgentLoopWorker._run_agent_loop``, on ``LLMServerClient._vllm_request_id`` and on
``_agent_loop_registry``.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import uuid4

import hydra
from verl.experimental.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap, _agent_loop_registry
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.utils.rollout_trace import RolloutTraceConfig
from verl.workers.rollout.llm_server import LLMServerClient

from verl_cov.hooks.cpu import batch_calls
from verl_cov.hooks.validation.agent_loop import PromptTemperatureAgentLoop, sampling_params_for

if TYPE_CHECKING:
    from verl.experimental.agent_loop import AgentLoopWorker
    from verl.workers.rollout.replica import TokenOutput


Item = TypeVar("Item")


class Gathering(Generic[Item]):
    """Collects what is asked for in one turn of the event loop, and answers all of it with one call.

    answer_all: returns a result, or an exception, for each item.
    """

    def __init__(self, answer_all: Callable[[list[Item]], Awaitable[list[Any]]]):
        self._answer_all = answer_all
        self._waiting: list[tuple[Item, asyncio.Future[Any]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, item: Item) -> Any:
        """The result for this item. Raises its exception."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._waiting) == 1:
            # Begins after all tasks that are ready now: those that verl created together with this one.
            task = asyncio.create_task(self._answer_waiting())
            self._tasks.add(task)  # kept, or it is collected
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _answer_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            results = await self._answer_all([item for item, _ in waiting])
        except Exception as error:
            results = [error] * len(waiting)
        for (_, future), result in zip(waiting, results, strict=True):
            if future.done():
                continue  # cancelled
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)


@dataclass
class Wanted:
    """One response that is asked for. row: the fields of the data set's row and what verl adds to them."""

    loop: SingleTurnAgentLoop
    sampling_params: dict[str, Any]
    row: dict[str, Any]


class Batches:
    """What a worker keeps between two batches: the agent loops that it has built, and what waits to be answered."""

    def __init__(self) -> None:
        self.loops: dict[str, SingleTurnAgentLoop | None] = {}
        self.gatherings: dict[Callable[..., Any], Gathering[Any]] = {}


def _batches(worker: AgentLoopWorker) -> Batches:
    if not hasattr(worker, "_verl_cov_batches"):
        worker._verl_cov_batches = Batches()
    return worker._verl_cov_batches


async def together(worker: AgentLoopWorker, answer_all: Callable[..., Awaitable[list[Any]]], item: Any) -> Any:
    """The result for this item of ``answer_all(worker, items)``, called with all that are asked for in this turn."""
    gatherings = _batches(worker).gatherings
    if answer_all not in gatherings:
        gatherings[answer_all] = Gathering(functools.partial(answer_all, worker))
    return await gatherings[answer_all].answer(item)


# --- which rows are answered in batches -------------------------------------------------------------------------------


def loop_for(worker: AgentLoopWorker, agent_name: str, row: dict[str, Any]) -> SingleTurnAgentLoop | None:
    """The agent loop that answers this row, if it is one of text that is answered in batches; else None."""
    loops = _batches(worker).loops
    if agent_name not in loops:
        loops[agent_name] = _build(worker, agent_name) if _is_plain(worker) else None
    return loops[agent_name] if "raw_prompt" in row else None


def _is_plain(worker: AgentLoopWorker) -> bool:
    """True for a worker of text, without a teacher and without traces, whose client and balancer are verl's own."""
    try:
        return (
            worker.processor is None
            and not worker.mm_processor_kwargs
            and not worker.distillation_enabled
            and RolloutTraceConfig.get_backend() is None
            and worker.rollout_config.name == "vllm"
            and type(worker.llm_client) is LLMServerClient
            and batch_calls.balances_in_batches(worker.llm_client)
        )
    except AttributeError:  # another worker than verl's
        return False


def _build(worker: AgentLoopWorker, agent_name: str) -> SingleTurnAgentLoop | None:
    config = _agent_loop_registry.get(agent_name)
    if config is None:
        return None  # verl says so
    loop = hydra.utils.instantiate(
        config=config,
        trainer_config=DictConfigWrap(config=worker.config),
        server_manager=worker.llm_client,
        tokenizer=worker.tokenizer,
        processor=worker.processor,
        hf_model_type=worker.hf_model_type,
        dataset_cls=worker.dataset_cls,
        data_config=DictConfigWrap(worker.config.data),
        tools=ToolListWrap(worker.tools),
    )
    return loop if type(loop) in (SingleTurnAgentLoop, PromptTemperatureAgentLoop) else None


# --- the legacy trainer -----------------------------------------------------------------------------------------------


async def answer(
    worker: AgentLoopWorker, loop: SingleTurnAgentLoop, sampling_params: dict[str, Any], validate: bool, row: dict
) -> Any:
    """In the place of ``AgentLoopWorker._run_agent_loop``: the padded output of one response."""
    output = await together(worker, _answer_rows, Wanted(loop, sampling_params, row))
    return await worker._agent_loop_postprocess(output, validate, **row)


async def _answer_rows(worker: AgentLoopWorker, wanted: list[Wanted]) -> list[Any]:
    outputs = await generate(worker.llm_client, wanted)
    for output, one in zip(outputs, wanted, strict=True):
        if isinstance(output, AgentLoopOutput):
            output.extra_fields["raw_prompt"] = one.row["raw_prompt"]  # as verl: before the score
    return await score(worker, wanted, outputs)


# --- both -------------------------------------------------------------------------------------------------------------


async def generate(client: LLMServerClient, wanted: list[Wanted]) -> list[Any]:
    """An ``AgentLoopOutput`` without a score, or an exception, for each: as ``SingleTurnAgentLoop.run``."""
    prompts: dict[int, list[int] | Exception] = {}  # the responses to a prompt share its messages, and so its tokens
    for one in wanted:
        if id(one.row["raw_prompt"]) not in prompts:
            prompts[id(one.row["raw_prompt"])] = await _prompt_ids(one)
    outputs: list[Any] = [prompts[id(one.row["raw_prompt"])] for one in wanted]
    there = [at for at, prompt_ids in enumerate(outputs) if not isinstance(prompt_ids, Exception)]
    names = [_request_name(wanted[at]) for at in there]
    requests = [
        {"request_id": client._vllm_request_id(name), "prompt_ids": outputs[at], **_sampling(wanted[at])}
        for at, name in zip(there, names, strict=True)
    ]
    began = time.perf_counter()
    answers = await batch_calls.generate(client, names, requests)
    seconds = time.perf_counter() - began
    for at, answer in zip(there, answers, strict=True):
        failed = isinstance(answer, BaseException)
        outputs[at] = answer if failed else _output(wanted[at].loop, outputs[at], answer, seconds)
    return outputs


async def _prompt_ids(one: Wanted) -> list[int] | Exception:
    try:
        return await one.loop.ct_build_initial_tokens(list(one.row["raw_prompt"]), mm_inputs_out={})
    except Exception as error:
        return error


def _priority(one: Wanted) -> int:
    return int(one.row.get("priority", 0))


def _request_name(one: Wanted) -> str:
    fixed = getattr(one.loop.rollout_config, "full_determinism", False)
    return f"det-{_priority(one)}" if fixed else uuid4().hex


def _sampling(one: Wanted) -> dict[str, Any]:
    params = one.sampling_params
    if isinstance(one.loop, PromptTemperatureAgentLoop):
        params = sampling_params_for(params, one.row.get("extra_info"))
    # A copy: vLLM's server takes fields out of it.
    return {"sampling_params": dict(params), **({"priority": _priority(one)} if _priority(one) else {})}


def _output(loop: SingleTurnAgentLoop, prompt_ids: list[int], answer: TokenOutput, seconds: float) -> AgentLoopOutput:
    builder, log_probs = loop.continuous_token_builder, answer.log_probs or None
    merged = builder.merge_assistant_tokens(prompt_ids, answer.token_ids)
    mask, log_probs = builder.align_response_metadata(
        merged, [], [] if log_probs else None, assistant_logprobs=log_probs
    )
    at = len(merged.token_ids) - len(mask)
    output = AgentLoopOutput(
        prompt_ids=merged.token_ids[:at],
        response_ids=merged.token_ids[at:][: loop.response_length],
        response_mask=mask[: loop.response_length],
        response_logprobs=log_probs[: loop.response_length] if log_probs else None,
        routed_experts=None if answer.routed_experts is None else answer.routed_experts[: at + loop.response_length],
        multi_modal_data={},
        mm_processor_kwargs={},
        mm_processor_output=None,
        num_turns=2,
        metrics={
            "generate_sequences": seconds,
            "num_preempted": -1 if answer.num_preempted is None else answer.num_preempted,
        },
        extra_fields=answer.extra_fields,
    )
    output.extra_fields.update({"turn_scores": [], "tool_rewards": []})
    return output


async def score(worker: AgentLoopWorker, wanted: list[Wanted], outputs: list[Any]) -> list[Any]:
    """The outputs with their scores, or the exception of one that has none: as ``AgentLoopWorker._compute_score``."""
    if worker.reward_loop_worker_handles is None:
        return outputs
    outputs = list(outputs)
    there = [at for at, output in enumerate(outputs) if isinstance(output, AgentLoopOutput)]
    began = time.perf_counter()
    results = await batch_calls.score(
        worker.reward_loop_worker_handles, [outputs[at] for at in there], [wanted[at].row for at in there]
    )
    seconds = time.perf_counter() - began
    for at, result in zip(there, results, strict=True):
        if isinstance(result, BaseException):
            outputs[at] = result
            continue
        outputs[at].reward_score = result["reward_score"]
        outputs[at].extra_fields["reward_extra_info"] = result["reward_extra_info"]
        outputs[at].metrics.compute_score = seconds
    return outputs
