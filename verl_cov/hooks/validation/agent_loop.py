"""The agent loop ``verl_cov.single_turn``: verl's single-turn loop with a temperature for each prompt.

A row's ``extra_info.temperature`` says how its prompt is sampled: 0 greedily, above 0 at that temperature, null as the
configuration says. So one validation can contain prompts that are sampled 32 times at 0.6 and others that are answered
greedily. :mod:`.sampling` registers the loop and checks the rows.

Leans on ``SingleTurnAgentLoop.run(sampling_params, **row)`` of ``verl.experimental.agent_loop``, which the workers of
the V1 and of the legacy trainer call with ``extra_info`` among the row's fields. Imported in agent-loop workers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


class PromptTemperatureAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn agent loop; a row's own temperature overrides the configuration's."""

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        return await super().run(sampling_params_for(sampling_params, row.get("extra_info")), **row)


def sampling_params_for(params: dict[str, Any], extra_info: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns verl's sampling parameters for a row with this ``extra_info``; ``params`` is not changed."""
    temperature = (extra_info or {}).get("temperature")
    if temperature is None:
        return params
    if temperature == 0:
        # As in verl's apply_greedy_sampling_params: vLLM would refuse or misread another top_p or top_k.
        return {**params, "temperature": 0.0, "top_p": 1.0, "top_k": -1}
    return {**params, "temperature": float(temperature)}
