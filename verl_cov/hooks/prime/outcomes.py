"""Reads what the reward function returned for responses in verl's TransferQueue.

Leans on the fields that ``AgentLoopWorkerTQ`` writes: ``rm_scores``, the score on the last response token, and
``extra_fields["reward_extra_info"]``, the other keys of what the reward function returned.
"""

from __future__ import annotations

from collections.abc import Sequence

from verl_cov.core.prime.prime_config import REWARD


class MissingOutcome(KeyError):
    """The reward function does not give a key that the configuration names."""

    def __str__(self) -> str:
        return str(self.args[0])


class SeveralOutputs(ValueError):
    """An agent loop gives several outputs in a session: rows of which none is a whole response."""


def refuse_several_outputs(keys: Sequence[str]) -> None:
    """Raises SeveralOutputs unless each row, ``{prompt id}_{session}_{output}``, is a session's only output."""
    if several := sum(not key.endswith("_0") for key in keys):
        raise SeveralOutputs(
            f"verl-cov: {several} of {len(keys)} rows are further outputs of a session, and PRIME compares whole "
            "responses: use an agent loop with one output (actor_rollout_ref.rollout.agent.default_agent_loop)"
        )


def read(keys: Sequence[str], partition: str, name: str, field: str) -> list[float]:
    """The value ``name`` of each response, :data:`REWARD` for the score itself.

    Args:
        field: of the configuration, which names ``name``: for the error.

    Raises:
        MissingOutcome: the reward function gave no such key.
    """
    import transfer_queue as tq

    if name == REWARD:
        scores = tq.kv_batch_get(keys=list(keys), partition_id=partition, select_fields=["rm_scores"])["rm_scores"]
        return [float(score.sum()) for score in scores.unbind()]
    rows = list(
        tq.kv_batch_get(keys=list(keys), partition_id=partition, select_fields=["extra_fields"])["extra_fields"]
    )
    values = []
    for row in rows:
        extra = getattr(row, "data", row)
        info = extra.get("reward_extra_info", {}) if isinstance(extra, dict) else {}
        if name not in info:
            known = ", ".join(sorted(info)) or "none"
            raise MissingOutcome(
                f"verl-cov: {field}={name} is no key of what the reward function returns (it returns {known}): set "
                f"{field} to {REWARD} or to one of them"
            )
        values.append(float(info[name]))
    return values
