"""Answers many prompts of the V1 trainer together, and writes the responses to the TransferQueue at once.

What is written is what ``AgentLoopWorkerTQ._run_prompt`` and ``_agent_loop_postprocess`` write for each prompt and each
response of text; :mod:`.single_turn_batch` answers. Imported in agent-loop workers only. Leans on these two methods.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transfer_queue as tq
from verl.experimental.agent_loop import AgentLoopOutput
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_cov.hooks.cpu.single_turn_batch import Wanted, generate, score, together

if TYPE_CHECKING:
    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

logger = logging.getLogger(__name__)


@dataclass
class Prompt:
    """A prompt of the V1 trainer. wanted: its responses."""

    uid: str
    partition: str
    wanted: list[Wanted]


async def answer_prompt(
    worker: AgentLoopWorkerTQ, loop: SingleTurnAgentLoop, sampling_params: dict[str, Any], validate: bool, prompt: dict
) -> None:
    """In the place of ``AgentLoopWorkerTQ._run_prompt``: the responses to one prompt, into the TransferQueue."""
    config = worker.config.actor_rollout_ref.rollout
    row = {key: value for key, value in prompt.items() if key not in ("agent_name", "__rollout_n__", "__do_sample__")}
    if not validate and not prompt.get("__do_sample__", True):
        sampling_params = {**sampling_params, "top_p": 1.0, "top_k": -1, "temperature": 0}
    n = prompt.get("__rollout_n__", config.val_kwargs.n if validate else config.n)
    wanted = [Wanted(loop, sampling_params, {"session_id": session, **row}) for session in range(n)]
    await together(worker, _answer_prompts, Prompt(prompt["uid"], "val" if validate else "train", wanted))


async def _answer_prompts(worker: AgentLoopWorkerTQ, prompts: list[Prompt]) -> list[None]:
    await _tag(prompts, dict.fromkeys((prompt.uid for prompt in prompts), "running"))
    status = dict.fromkeys((prompt.uid for prompt in prompts), "finished")
    sessions = [(prompt, one) for prompt in prompts for one in prompt.wanted]
    wanted = [one for _, one in sessions]
    try:
        outputs = await score(worker, wanted, await generate(worker.llm_client, wanted))
        outputs = await _put(worker, sessions, outputs)
    except Exception as error:
        outputs = [error] * len(sessions)
    for (prompt, _), output in zip(sessions, outputs, strict=True):
        if isinstance(output, BaseException):
            status[prompt.uid] = "failure"
            told = (type(output), output, output.__traceback__)
            logger.error("Error in _run_prompt for uid=%s", prompt.uid, exc_info=told)
    await _tag(prompts, status)
    return [None] * len(prompts)


async def _tag(prompts: list[Prompt], status: dict[str, str]) -> None:
    for partition in ("train", "val"):
        if uids := [prompt.uid for prompt in prompts if prompt.partition == partition]:
            tags = [{"status": status[uid]} for uid in uids]
            await tq.async_kv_batch_put(keys=uids, partition_id=partition, tags=tags)


async def _put(worker: AgentLoopWorkerTQ, sessions: list[tuple[Prompt, Wanted]], outputs: list[Any]) -> list[Any]:
    """Writes the outputs that are there, each as ``AgentLoopWorkerTQ._agent_loop_postprocess`` does.

    Returns them, with an exception in the place of one that cannot be written: verl's way has none for an empty one.
    """
    outputs = list(outputs)
    # One write for all that have the same fields.
    writes: dict[tuple[str, ...], list[tuple[str, dict[str, Any], dict[str, Any]]]] = {}
    for at, (prompt, one) in enumerate(sessions):
        if isinstance(outputs[at], AgentLoopOutput):
            try:
                fields, tag = _fields_and_tag(worker, outputs[at], one.row)
            except Exception as error:
                outputs[at] = error
                continue
            key = f"{prompt.uid}_{one.row['session_id']}_0"
            writes.setdefault((prompt.partition, *fields), []).append((key, fields, tag))
    for (partition, *_), rows in writes.items():
        await tq.async_kv_batch_put(
            keys=[key for key, _, _ in rows],
            fields=list_of_dict_to_tensordict([own for _, own, _ in rows]),
            tags=[tag for _, _, tag in rows],
            partition_id=partition,
        )
    return outputs


def _fields_and_tag(
    worker: AgentLoopWorkerTQ, output: AgentLoopOutput, row: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = output.as_dict()
    fields.update(row)
    fields.pop("multi_modal_data", None)
    fields["loss_mask"] = fields["response_mask"]
    input_ids = fields["input_ids"] = torch.cat([fields["prompts"], fields["responses"]])
    fields["position_ids"] = worker._compute_position_ids(input_ids[None], torch.ones_like(input_ids)[None], {})[0]
    fields["multi_modal_inputs"] = {}
    tag = {
        "status": "success",
        "prompt_len": fields["prompts"].size(0),
        "response_len": fields["responses"].size(0),
        "seq_len": input_ids.size(0),
        "global_steps": row["global_steps"],
        "min_global_steps": fields["extra_fields"].get("min_global_steps"),
        "max_global_steps": fields["extra_fields"].get("max_global_steps"),
    }
    return fields, tag
