"""PRIME's filter: prompts are trained on only if their mean accuracy lies in a band (Cui et al. 2025, Sec. 3.4).

verl's ``algorithm.filter_groups`` drops prompts whose responses all have the same metric, and generates others until
the batch is full. Here the rule is another; the refilling is verl's, and its bound ours (:mod:`..group_filter`).

Leans on ``ReplayBuffer._dapo_filtered_keys(partition_id)``, which returns (prompt ids to drop, {value: prompts}), on
``finished_keys`` and ``partitions`` that it looks at, and on keys of trajectories, ``{prompt id}_{session}_{index}``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from verl_cov.hooks.prime import outcomes

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

# Accuracies are means of a few numbers: 0.2 as 0.2 + 0.0 + ... may come out a little less.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Band:
    """Mean of ``metric`` over a prompt's responses, from low to high, both included."""

    low: float
    high: float
    metric: str

    def __contains__(self, accuracy: float) -> bool:
        return self.low - TOLERANCE <= accuracy <= self.high + TOLERANCE

    def __str__(self) -> str:
        return f"a mean {self.metric} outside [{self.low:g}, {self.high:g}]"


def _output(key: str) -> int:
    """Number of a row among the outputs of its session."""
    return int(key.rpartition("_")[2])


def narrow(buffer: ReplayBuffer, band: Band) -> None:
    """Lets ``buffer`` (verl's ReplayBuffer, its filter switched on) drop the prompts outside ``band``."""
    known: dict[str, float] = {}

    def _dapo_filtered_keys(partition_id: str) -> tuple[set[str], Counter]:
        if partition_id == "val":
            return set(), Counter()
        finished = buffer.finished_keys[partition_id]
        for uid in known.keys() - finished:
            del known[uid]
        new = finished - known.keys()
        rows = [key for key in buffer.partitions[partition_id] if key.split("_")[0] in new]
        # A session may have several outputs: they are one response, whose reward is that of the last.
        keys = list({key.rpartition("_")[0]: key for key in sorted(rows, key=_output)}.values())
        by_prompt: dict[str, list[float]] = defaultdict(list)
        if keys:
            values = outcomes.read(keys, partition_id, band.metric, "algorithm.filter_groups.metric")
            for key, value in zip(keys, values, strict=True):
                by_prompt[key.split("_")[0]].append(value)
        known.update({uid: sum(values) / len(values) for uid, values in by_prompt.items()})
        outside = {uid: accuracy for uid, accuracy in known.items() if accuracy not in band}
        return set(outside), Counter(outside.values())

    buffer._dapo_filtered_keys = _dapo_filtered_keys
