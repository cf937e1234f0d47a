"""Logs a validation's greedy accuracy (``cov_val_greedy``): one response more a prompt, at temperature 0.

    val-cov/greedy          share of the prompts whose greedy response is a success; val-cov/greedy/SET: of one set

The greedy requests go to the servers together with the samples, so that there is one pass, and their responses are
taken out again before verl sees the batch: its own numbers, tables and dumps are of the samples alone. A prompt that
stands in several rows is asked once. What a success is, :mod:`.pass_at_k` says.

Leans on the agent loop of :mod:`.agent_loop`, which samples a row as its ``extra_info.temperature`` says. V1:
``PPOTrainer._validate`` hands each batch to ``agent_loop_manager.generate_sequences`` and takes the answers from
``replay_buffer.sample``; a row may have its own ``__rollout_n__``. Legacy: ``RayPPOTrainer._validate`` gets them from
``async_rollout_manager.generate_sequences``, one row for one row.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from verl_cov.hooks.asks import config_from_trainer
from verl_cov.hooks.loss_modes import POLICY_LOSS
from verl_cov.hooks.reporting import reporting
from verl_cov.hooks.seams import Seam, shadowed
from verl_cov.hooks.trainers import other_trainer
from verl_cov.hooks.validation.pass_at_k import counts_of_sets, lowest_success, named
from verl_cov.hooks.validation.temperatures import AGENT_LOOP, AGENT_LOOP_FIELD

if TYPE_CHECKING:
    from tensordict import TensorDict
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer
    from verl.trainer.ppo.v1.trainer_base import KVBatchMeta, PPOTrainer

FIELD = f"{POLICY_LOSS}.cov_val_greedy"
GREEDY = "the greedy accuracy of a validation"

seam = Seam()


def install() -> None:
    seam.when_imported("verl.trainer.ppo.v1.trainer_base", lambda module: _wrap(module.PPOTrainer, _in_v1))
    seam.when_imported("verl.trainer.ppo.ray_trainer", lambda module: _wrap(module.RayPPOTrainer, _in_legacy))


def _wrap(trainer: type[PPOTrainer | RayPPOTrainer], asking: Callable) -> None:
    def _validate(original: Callable, trainer: PPOTrainer | RayPPOTrainer, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not wanted(trainer.config):
            return original(trainer, *args, **kwargs)
        answers = Answers()
        with asking(trainer, answers):
            metrics = original(trainer, *args, **kwargs)
        with reporting(GREEDY):
            metrics |= answers.named(lowest_success(trainer.config))
        return metrics

    seam.wrap(trainer, "_validate", _validate)


def wanted(config: DictConfig) -> bool:
    """Tells whether a trainer's configuration asks for greedy responses."""
    cov = config_from_trainer(config)
    return cov is not None and cov.cov_val_greedy


def refuse(config: DictConfig) -> None:
    """Raises ValueError for a run in which a prompt cannot be asked for a greedy response beside its samples."""
    if not wanted(config):
        return
    if (other := other_trainer(config)) is not None:
        raise ValueError(f"{FIELD}=True needs the trainers of verl's main_ppo, which {other} is not: set it to False")
    loop = OmegaConf.select(config, AGENT_LOOP_FIELD, default=None)
    if loop != AGENT_LOOP:
        raise ValueError(
            f"{FIELD}=True needs an agent loop that samples each prompt as its row says, and {AGENT_LOOP_FIELD}={loop} "
            f"does not: set {AGENT_LOOP_FIELD}={AGENT_LOOP}, or {FIELD}=False"
        )
    rewarding = OmegaConf.select(config, "reward.reward_model", default=None) or {}
    if rewarding.get("enable") and not rewarding.get("enable_resource_pool"):
        raise ValueError(
            f"{FIELD}=True needs rewards that are given while responses come in, and a reward model on the rollout's "
            f"GPUs gives them later: set reward.reward_model.enable_resource_pool=True, or {FIELD}=False"
        )


def refuse_other_agent_loops(config: DictConfig, columns: Sequence[str]) -> None:
    """Raises ValueError if the validation rows, which have these columns, name agent loops of their own."""
    if wanted(config) and "agent_name" in columns:
        raise ValueError(
            f"verl-cov: {FIELD}=True needs {AGENT_LOOP} for every validation prompt, and the rows of data.val_files "
            f"name their own agent loops: leave out the column agent_name, or set {FIELD}=False"
        )


class Answers:
    """Greedy responses: the set and the prompt of each, and what the reward function gave it."""

    def __init__(self) -> None:
        self.asked: dict[tuple[str, str], int] = {}  # of (set, prompt): one response each
        self.rows: list[tuple[str, str, Any, float]] = []  # set, prompt, acc or None, score

    def named(self, least: float | None) -> dict[str, float]:
        """verl's metrics. least: the lowest value of a success, None for 1 and 0. A lost response is no success."""
        names, prompts, acc, reward = zip(*self.rows, strict=True) if self.rows else ((), (), (), ())
        return named(counts_of_sets(names, prompts, {"acc": acc, "reward": reward}, least, self.asked), {1: "greedy"})


def _distinct(*columns: Sequence[Any]) -> list[int]:
    """Positions of the rows that are the first with their values in these columns."""
    first: dict[str, int] = {}
    for at, row in enumerate(zip(*columns, strict=True)):
        first.setdefault(repr(row), at)
    return list(first.values())


def _greedily(extra_info: Any) -> dict[str, Any]:
    """A copy of a row's ``extra_info`` that has its agent loop sample greedily."""
    return {**(extra_info or {}), "temperature": 0.0}


# --- V1: prompts and responses lie in TransferQueue, under "{uid}" and "{uid}_{session}_{output}" --------------------


@contextmanager
def _in_v1(trainer: PPOTrainer, answers: Answers) -> Iterator[None]:
    manager, buffer = trainer.agent_loop_manager, trainer.replay_buffer
    generate, sample = manager.generate_sequences, buffer.sample
    waiting: dict[str, str] = {}  # set of each greedy prompt that is being answered

    def generate_sequences(batch: TensorDict, *args: Any, **kwargs: Any) -> None:
        copies = None
        with reporting(GREEDY):
            copies = _copies(batch, waiting)
        generate(batch, *args, **kwargs)
        if copies is not None:
            import transfer_queue as tq

            tag = {"is_prompt": True, "status": "pending", "global_steps": trainer.global_steps}
            tq.kv_batch_put(keys=list(waiting), partition_id="val", tags=[dict(tag) for _ in waiting])
            generate(copies, *args, **kwargs)

    def sample_samples(*, batch_size: int, partition_id: str, **kwargs: Any) -> tuple[KVBatchMeta, dict]:
        both, metrics = sample(batch_size=batch_size + len(waiting), partition_id=partition_id, **kwargs)
        if waiting:
            both = _take_out(both, waiting, answers)
            waiting.clear()
        return both, metrics

    with ExitStack() as stack:
        stack.enter_context(shadowed(manager, "generate_sequences", generate_sequences))
        stack.enter_context(shadowed(buffer, "sample", sample_samples))
        yield


def _copies(batch: TensorDict, waiting: dict[str, str]) -> TensorDict:
    """The batch's prompts, each once, to be answered once and greedily; notes their ids and sets in ``waiting``."""
    from verl.utils import tensordict_utils as tu

    names, truths = (tu.get(batch, key, default=["unknown"] * len(batch)) for key in ("data_source", "reward_model"))
    at = _distinct(names, truths, tu.get(batch, "raw_prompt"))
    copies = tu.index_select_tensor_dict(batch, at)
    uids = [str(uuid.uuid4()) for _ in at]
    extra = tu.get(copies, "extra_info", default=[None] * len(at))
    tu.assign_non_tensor_stack(copies, "uid", uids)
    tu.assign_non_tensor_stack(copies, "extra_info", [_greedily(info) for info in extra])
    tu.assign_non_tensor_stack(copies, "__rollout_n__", [1] * len(at))
    waiting.update(zip(uids, (str(names[row]) for row in at), strict=True))
    return copies


def _take_out(both: KVBatchMeta, waiting: dict[str, str], answers: Answers) -> KVBatchMeta:
    """Reads the greedy responses into ``answers`` and removes them; returns the rest of the batch."""
    import transfer_queue as tq

    greedy = [key for key in both.keys if key.split("_")[0] in waiting]
    answers.asked |= {(name, uid): 1 for uid, name in waiting.items()}
    if not greedy:
        return both
    with reporting(GREEDY):
        # Of the outputs of a session the last is the whole response, as verl has it.
        last = {key.split("_")[0]: key for key in sorted(greedy, key=lambda key: int(key.rpartition("_")[2]))}
        fields = ["rm_scores", "extra_fields"]
        data = tq.kv_batch_get(keys=list(last.values()), partition_id=both.partition_id, select_fields=fields)
        scores = [float(score.sum()) for score in data["rm_scores"].unbind()]
        for uid, score, extra in zip(last, scores, data["extra_fields"], strict=True):
            info = getattr(extra, "data", extra).get("reward_extra_info", {})
            answers.rows.append((waiting[uid], uid, info.get("acc"), score))
    tq.kv_clear(keys=greedy, partition_id=both.partition_id)
    taken = set(greedy)
    return both.select_keys([key for key in both.keys if key not in taken])


# --- legacy: one batch goes in and comes out -------------------------------------------------------------------------


@contextmanager
def _in_legacy(trainer: RayPPOTrainer, answers: Answers) -> Iterator[None]:
    manager = trainer.async_rollout_manager
    generate = manager.generate_sequences

    def generate_sequences(prompts: DataProto) -> DataProto:
        from verl.protocol import DataProto, pad_dataproto_to_divisor

        both = None
        with reporting(GREEDY):
            fields, unknown = prompts.non_tensor_batch, ["unknown"] * len(prompts)
            names = fields.get("data_source", unknown)
            at = _distinct(names, fields.get("reward_model", unknown), fields["raw_prompt"])
            copies = prompts.select_idxs(np.array(at))
            extra = np.empty(len(at), dtype=object)
            extra[:] = [_greedily(info) for info in copies.non_tensor_batch.get("extra_info", [None] * len(at))]
            copies.non_tensor_batch["extra_info"] = extra
            workers = trainer.config.actor_rollout_ref.rollout.agent.num_workers
            both, _ = pad_dataproto_to_divisor(DataProto.concat([prompts, copies]), workers)
        if both is None:
            return generate(prompts)
        answered = generate(both)
        with reporting(GREEDY):
            greedy = answered[len(prompts) : len(prompts) + len(at)]
            scores = greedy.batch["rm_scores"].sum(dim=-1).tolist()
            acc = greedy.non_tensor_batch.get("acc", [None] * len(at))
            uids = [f"{len(answers.rows)}-{row}" for row in at]  # validation batches have ids of their own
            answers.rows += zip((str(names[row]) for row in at), uids, acc, scores, strict=True)
        return answered[: len(prompts)]

    with shadowed(manager, "generate_sequences", generate_sequences):
        yield
