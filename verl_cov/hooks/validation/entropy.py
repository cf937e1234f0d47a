"""The paper's entropy on the validation's generations (``cov_val_entropy``): the authors' ``test_entropy/all``.

One more forward of the actor over all of them or some, at temperature 1 whatever they were sampled at: entropy over the
whole vocabulary at each token, its mean over each response, then over responses.

Leans on verl's synchronous V1 trainer: ``PPOTrainer._validate`` takes each batch from ``self.replay_buffer.sample`` and
clears it from TransferQueue when it has read it. In between the forward runs, through
``actor_rollout_wg.compute_log_prob`` as for old log-probs, with vLLM's memory freed round it as ``_validate`` does
itself for a colocated reward model. The asynchronous trainers have requests in flight there, and the legacy one keeps
no batch that a worker could take: :func:`refuse` refuses them.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from verl_cov.core.prime.prime_config import TRAINER_MODE
from verl_cov.hooks.asks import config_from_trainer
from verl_cov.hooks.loss_modes import POLICY_LOSS
from verl_cov.hooks.reporting import reporting
from verl_cov.hooks.seams import Seam, shadowed
from verl_cov.hooks.trainers import other_trainer
from verl_cov.hooks.validation.averages import PREFIX

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.trainer_base import KVBatchMeta, PPOTrainer

ENTROPY = "the entropy of a validation"
_SETTINGS = {"calculate_entropy": True, "compute_loss": False, "temperature": 1.0}


seam = Seam()


def install() -> None:
    seam.when_imported("verl.trainer.ppo.v1.trainer_base", _wrap)


def _wrap(trainer_base: ModuleType) -> None:
    seam.wrap(trainer_base.PPOTrainer, "_validate", _validate)


def _validate(original: Callable, trainer: PPOTrainer) -> dict[str, Any]:
    cov = config_from_trainer(trainer.config)
    if cov is None or cov.cov_val_entropy == "off":
        return original(trainer)
    entropies = Entropies()
    with _measuring_each_batch(trainer, cov.cov_val_entropy, entropies):
        metrics = original(trainer)
    with reporting(ENTROPY):
        metrics |= entropies.named()
    return metrics


def refuse(config: DictConfig) -> None:
    """Raises ValueError for a trainer in which the entropy of a validation cannot be measured."""
    cov = config_from_trainer(config)
    if cov is None or cov.cov_val_entropy == "off":
        return
    mode = OmegaConf.select(config, "trainer.v1.trainer_mode", default="sync")
    use_v1 = OmegaConf.select(config, "trainer.use_v1", default=True)
    other = other_trainer(config)
    if other is None and use_v1 and mode in ("sync", TRAINER_MODE):
        return
    needed = f"{POLICY_LOSS}.cov_val_entropy needs verl's synchronous V1 trainer"
    if other is not None:
        raise ValueError(f"{needed}, which {other} is not: set it to off")
    reason = f"trainer.v1.trainer_mode={mode} is not" if use_v1 else "the legacy one (trainer.use_v1=False) is not"
    raise ValueError(
        f"{needed}, which {reason}: set it to off, or trainer.use_v1=True and trainer.v1.trainer_mode=sync"
    )


@contextmanager
def _measuring_each_batch(trainer: PPOTrainer, wanted: str | int, entropies: Entropies) -> Iterator[None]:
    """Measures every batch that ``trainer`` validates in this block, once it is generated."""
    buffer = trainer.replay_buffer
    sample = buffer.sample

    @functools.wraps(sample)
    def sample_and_measure(*args: Any, **kwargs: Any) -> Any:
        batch, metrics = sample(*args, **kwargs)
        started = time.perf_counter()
        entropies.complete &= _measure(trainer, batch, wanted, entropies)
        entropies.seconds += time.perf_counter() - started
        return batch, metrics

    with shadowed(buffer, "sample", sample_and_measure):
        yield


def share_of(wanted: str | int, generations: int) -> float:
    """The share of a validation's generations that ``cov_val_entropy`` asks for, in (0, 1]."""
    return 1.0 if wanted == "all" else min(1.0, int(wanted) / max(generations, 1))


def chosen(prompts: Sequence[bytes], share: float) -> list[int]:
    """Positions of the generations to measure, ascending: a ``share`` of them, rounded up.

    prompts: of each generation (a session, which may have several rows) the prompt. Which prompts are chosen depends on
    their text alone, so that it is the same at every validation; among the generations of one prompt it is the first
    ones that came.
    """
    copies: dict[bytes, int] = defaultdict(int)
    order = []
    for at, prompt in enumerate(prompts):
        order.append((hashlib.blake2b(prompt + b"#%d" % copies[prompt], digest_size=8).digest(), at))
        copies[prompt] += 1
    # A product of floats: 0.1 x 30 is a little more than 3.
    return sorted(at for _, at in sorted(order)[: math.ceil(share * len(order) - 1e-9)])


class Entropies:
    """Entropies of responses, by the set that they belong to, and what measuring them took."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)
        self.seconds = 0.0
        self.complete = True  # False once a batch could not be measured: the mean would be another set's

    def add(self, sets: Sequence[str], entropies: Sequence[float]) -> None:
        """One entry a response: its set and the mean entropy over its tokens, in nats."""
        for name, entropy in zip(sets, entropies, strict=True):
            self.values[str(name)].append(entropy)

    def named(self) -> dict[str, float]:
        """verl's metrics; none if nothing was measured, or not all of it."""
        if not (self.values and self.complete):
            return {}
        every = np.concatenate([np.asarray(values) for values in self.values.values()])
        return {
            PREFIX + "entropy": float(every.mean()),
            PREFIX + "entropy_generations": int(every.size),
            PREFIX + "entropy_seconds": self.seconds,
            **{f"{PREFIX}entropy/{name}": float(np.mean(values)) for name, values in self.values.items()},
        }


def _measure(trainer: PPOTrainer, batch: KVBatchMeta, wanted: str | int, entropies: Entropies) -> bool:
    """Adds the entropies of a share of a validation batch that lies in TransferQueue; False if that failed."""
    import transfer_queue as tq

    measured = False
    sessions: list[list[str]] = []
    padded: KVBatchMeta | None = None
    with reporting(ENTROPY):
        sessions = _sessions_to_measure(trainer, batch, wanted)
        padded = _whole_micro_batches(trainer, batch, [key for session in sessions for key in session])
        measured = not sessions
    if measured or padded is None:
        return measured
    # What verl needs to go on is outside of the blocks: the rollout's servers must be awake again.
    trainer.checkpoint_manager.sleep_replicas()
    with reporting(ENTROPY):
        trainer.actor_rollout_wg.compute_log_prob(padded)
        measured = True
    trainer.checkpoint_manager.update_weights(trainer.global_steps)
    if padding := padded.keys[sum(map(len, sessions)) :]:
        tq.kv_clear(keys=padding, partition_id=batch.partition_id)
    if measured:
        measured = False
        with reporting(ENTROPY):
            entropies.add(*_read(sessions, batch.partition_id))
            measured = True
    return measured


def _sessions_to_measure(trainer: PPOTrainer, batch: KVBatchMeta, wanted: str | int) -> list[list[str]]:
    """Chooses generations of the batch; returns the keys of each one's rows, which are ``{session}_{number}``."""
    import transfer_queue as tq

    share = share_of(wanted, len(trainer.val_dataset) * trainer.config.actor_rollout_ref.rollout.val_kwargs.n)
    if not batch.keys:
        return []
    rows: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(batch.keys):
        rows[key.rpartition("_")[0]].append(row)
    prompts = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["prompts"])["prompts"]
    texts = [prompt.numpy().tobytes() for prompt in prompts.unbind()]
    sessions = list(rows.values())
    at = chosen([texts[session[0]] for session in sessions], share)
    return [[batch.keys[row] for row in sessions[session]] for session in at]


def _whole_micro_batches(trainer: PPOTrainer, batch: KVBatchMeta, keys: list[str]) -> KVBatchMeta:
    """Returns these rows of the batch, filled up with rows of padding, and with the settings of the forward."""
    from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size

    tags = dict(zip(batch.keys, batch.tags, strict=True))
    rows = type(batch)(partition_id=batch.partition_id, keys=keys, tags=[tags[key] for key in keys])
    padded = upsample_batch_to_divisible_size(rows, _rows_multiple(trainer), trainer.tokenizer.eos_token_id)
    padded.extra_info.update(_SETTINGS)
    return padded


def _read(sessions: list[list[str]], partition: str) -> tuple[list[str], list[float]]:
    """(sets, entropies) of generations; each entropy is the mean over the tokens of all its rows."""
    import transfer_queue as tq
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import response_from_nested

    keys = [key for session in sessions for key in session]
    data = tq.kv_batch_get(keys=keys, partition_id=partition, select_fields=["entropy", "response_mask", "data_source"])
    masks = data["response_mask"]
    entropies = response_from_nested(data["entropy"], masks)
    rows = zip(tu.get(data, "data_source"), entropies.unbind(), masks.unbind(), strict=True)
    sets, means = [], []
    for session in sessions:
        names, values, valid = zip(*itertools.islice(rows, len(session)), strict=True)
        values, valid = torch.cat(values), torch.cat(valid).bool()
        if valid.any():
            sets.append(str(names[0]))
            means.append(values.double()[valid].mean().item())
    return sets, means


def _rows_multiple(trainer: PPOTrainer) -> int:
    """What the number of rows must be a multiple of: whole micro-batches on every data-parallel rank."""
    workers, rollout = trainer.actor_rollout_wg, trainer.config.actor_rollout_ref.rollout
    if "actor" not in workers._dispatch_info:
        workers._dispatch_info["actor"] = workers._query_dispatch_info("actor")
    ranks = max(workers._dispatch_info["actor"]) + 1
    return ranks * (1 if rollout.log_prob_use_dynamic_bsz else rollout.log_prob_micro_batch_size_per_gpu)
