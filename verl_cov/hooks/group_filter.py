"""Stops the group filter after ``max_num_gen_batches``, which would otherwise generate prompts forever.

With ``algorithm.filter_groups.enable`` verl's V1 trainer drops the prompts whose responses all have the same reward and
generates others until the batch is full. It ignores ``max_num_gen_batches``, so on data that is too hard or too easy
the first step never ends. Here N = max_num_gen_batches > 0 holds, in the meaning of verl's documentation and of DAPO's
scripts: N generation batches, each of ``data.gen_batch_size`` prompts (null: of ``data.train_batch_size``). A step ends
the run once so many prompts are dropped that the rest of those N batches cannot fill the batch. (verl asks for two
prompts for each one dropped, so it may have generated up to one batch more by then.)

The trap: with the filter this trainer fetches its prompts one by one and overwrites ``data.gen_batch_size`` with 1, but
only after the replay buffer is built, when the limit is read.

Leans on ``PPOTrainer._build_replay_buffer`` and on ``ReplayBuffer._evict_terminal_groups(global_steps, partition_id,
reasons)``, which the synchronous and the asynchronous buffer call with ``reasons[3]``, {value: groups} of what is
dropped; and on ``_sampleable_terminal_keys``.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from verl_cov.hooks.asks import asks_for_verl_cov
from verl_cov.hooks.seams import Seam
from verl_cov.hooks.trainers import other_trainer
from verl_cov.hooks.versions import installed_release

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

FIELD = "algorithm.filter_groups"

seam = Seam()


class TooFewPrompts(RuntimeError):
    """The prompts that a step may generate are not enough to fill its batch."""


def install() -> None:
    seam.when_imported("verl.trainer.ppo.v1.trainer_base", _wrap)


def _wrap(trainer_base: ModuleType) -> None:
    def _build_replay_buffer(original: Callable[..., ReplayBuffer], trainer: PPOTrainer) -> ReplayBuffer:
        buffer = original(trainer)
        limit = (
            Limit.read(trainer.config, getattr(trainer, "band", None)) if asks_for_verl_cov(trainer.config) else None
        )
        # A sampler of the user's that is no ReplayBuffer drops what it likes, and is the user's to bound.
        if limit is not None and isinstance(buffer, trainer_base.ReplayBuffer):
            bound(buffer, limit)
        return buffer

    seam.wrap(trainer_base.PPOTrainer, "_build_replay_buffer", _build_replay_buffer)


def refuse(config: DictConfig) -> None:
    """Raises ValueError if the filter is enabled in a trainer that ignores it, or if its limit leaves no full batch."""
    if not _is_enabled(config):
        return
    other = other_trainer(config)
    if other is not None:
        raise ValueError(f"{FIELD}.enable=True does nothing in {other}, which trains on every prompt: set it to False")
    if OmegaConf.select(config, "trainer.use_v1", default=None) is False:
        raise ValueError(
            f"{FIELD}.enable=True does nothing in verl's legacy trainer, which trains on every prompt: "
            f"set trainer.use_v1=True, or {FIELD}.enable=False"
        )
    limit = Limit.read(config)
    if limit is not None and limit.allowed < limit.batch_size:
        raise ValueError(
            f"{FIELD}.max_num_gen_batches={limit.batches} x data.gen_batch_size={limit.gen_batch_size} prompts can "
            f"never fill data.train_batch_size={limit.batch_size}: raise one of the two, or set "
            "data.gen_batch_size=null (verl's trainer fetches the prompts one by one, whatever it says)"
        )


def notices(config: DictConfig) -> Iterator[str]:
    """Yields what the user should know about the filter at start."""
    if not _is_enabled(config):
        return
    if (limit := Limit.read(config)) is not None:
        yield (
            f"{FIELD}.max_num_gen_batches={limit.batches} holds, whatever verl logs of it: a step whose batch "
            f"{limit.allowed} prompts ({limit.batches} generation batches of {limit.gen_batch_size}) cannot fill ends "
            "the run"
        )
    else:
        yield (
            f"WARNING: {FIELD} drops prompts without a limit (max_num_gen_batches=0): if "
            "nearly all prompts are answered all right or all wrong, the first step never ends. Set "
            f"{FIELD}.max_num_gen_batches=10, as the paper does"
        )


def _is_enabled(config: DictConfig) -> bool:
    # Before verl 0.9 a trainer of the user's may filter; verl's own does not.
    return installed_release().v1 and bool(OmegaConf.select(config, f"{FIELD}.enable", default=False))


@dataclass
class Limit:
    """How many prompts a step may generate, and how many of them were dropped.

    Args:
        batches: N = max_num_gen_batches, at least 1. gen_batch_size: prompts in each of them.
        batch_size: prompts that the step trains on.
        metric: what the filter looks at. rule: what it drops.
        step: the rollout step that ``dropped`` is of; dropped: {the responses' mean of the metric: prompts}.
    """

    batches: int
    gen_batch_size: int
    batch_size: int
    metric: str
    rule: str
    step: int | None = None
    dropped: Counter[float] = field(default_factory=Counter)

    @classmethod
    def read(cls, config: DictConfig, rule: object = None) -> Limit | None:
        """The limit that a trainer's configuration sets, or None. rule: the trainer's own, in words."""
        node = OmegaConf.select(config, FIELD, default=None) or {}
        batches = node.get("max_num_gen_batches") or 0
        if not node.get("enable") or batches <= 0:
            return None
        metric, data = str(node.get("metric")), config.data
        return cls(
            batches=int(batches),
            gen_batch_size=int(data.get("gen_batch_size") or data.train_batch_size),
            batch_size=int(data.train_batch_size),
            metric=metric,
            rule=str(rule or f"the same {metric} in all responses"),
        )

    @property
    def allowed(self) -> int:
        """Prompts that a step may generate."""
        return self.batches * self.gen_batch_size

    def drop(self, step: int, values: Counter[float], usable: int) -> None:
        """Counts prompts dropped in ``step``, where ``usable`` others are answered. Raises :class:`TooFewPrompts`."""
        if step != self.step:
            self.step, self.dropped = step, Counter()
        self.dropped.update(values)
        dropped = self.dropped.total()
        if dropped > self.allowed - self.batch_size and usable < self.batch_size:
            raise TooFewPrompts(
                f"verl-cov: step {step} cannot fill its batch of {self.batch_size} prompts: of {dropped + usable} "
                f"answered, {dropped} had {self.rule} ({self._values()}), and "
                f"{FIELD}.max_num_gen_batches={self.batches} generation batches of {self.gen_batch_size} allow "
                f"{self.allowed}. Take prompts nearer to the model's level, raise actor_rollout_ref.rollout.n or "
                f"max_num_gen_batches, or set {FIELD}.enable=False"
            )

    def _values(self) -> str:
        names = {0.0: "all wrong", 1.0: "all right"}
        return ", ".join(
            f"{count} {names.get(value, f'of {value:g}')}" for value, count in sorted(self.dropped.items())
        )


def bound(buffer: ReplayBuffer, limit: Limit) -> None:
    """Makes ``buffer`` raise :class:`TooFewPrompts` when it drops more prompts than ``limit`` allows."""
    evict = buffer._evict_terminal_groups

    @functools.wraps(evict)
    def _evict_terminal_groups(global_steps, partition_id, reasons):
        result = evict(global_steps, partition_id, reasons)
        if reasons[3]:
            usable = len(buffer._sampleable_terminal_keys(partition_id, reasons))
            limit.drop(global_steps, reasons[3], usable)
        return result

    buffer._evict_terminal_groups = _evict_terminal_groups
