"""The trainer: verl's synchronous V1 trainer, with an implicit PRM that scores each batch and learns from it.

Leans on ``PPOTrainerSync``: ``_setup`` ends with ``_load_checkpoint``, the one place to start more workers;
``_compute_advantage`` is called once per batch, after the old log-probs. Also on the base class comparing
``trainer_mode`` with "sync" in six places.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch
import transfer_queue as tq
from jaxtyping import Bool, Float64
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torch import Tensor
from verl.single_controller.ray import RayClassWithInitArgs, RayWorkerGroup
from verl.single_controller.ray.base import create_colocated_worker_cls
from verl.trainer.ppo.v1.replay_buffer import DAPO_FILTERED_REWARD_COUNTS_KEY, ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import KVBatchMeta
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.utils.debug import marked_timer
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.padding import response_from_nested, response_to_nested

from verl_cov.core.prime import advantage, prm
from verl_cov.core.prime.groups import Groups
from verl_cov.hooks.prime import outcomes, prime_metrics
from verl_cov.hooks.prime.accuracy_band import Band, narrow
from verl_cov.hooks.prime.prm_settings import micro_batch_size, mini_batch_size, prime_in, worker_config
from verl_cov.hooks.prime.prm_worker import LOG_PROBS, OPPONENT, OUTCOME, REFERENCE, PrmWorker, prm_loss
from verl_cov.hooks.reporting import reporting

logger = logging.getLogger(__name__)

PRM, PRM_REFERENCE = "prm", "prm_reference"

Rewards = Callable[[Tensor], Tensor]  # jagged log-probs of the responses -> [rows, tokens] process rewards


class OutcomeOutOfRange(ValueError):
    """An outcome outside of [0, 1], from which the PRM cannot learn."""


class PrimeTrainer(PPOTrainerSync):
    """PRIME: see docs/prime.md. ``config.prime`` is :class:`~verl_cov.core.prime.prime_config.PrimeConfig`."""

    def __init__(self, config: DictConfig):
        self.prime = prime_in(config)
        groups = config.algorithm.get("filter_groups") or {}
        self.band = (
            Band(self.prime.accuracy_low, self.prime.accuracy_high, str(groups.get("metric")))
            if groups.get("enable")
            else None
        )
        # With another name the base class would use the asynchronous buffer and checkpoints.
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)

    def _build_replay_buffer(self) -> ReplayBuffer:
        buffer = super()._build_replay_buffer()
        if self.band is not None:
            narrow(buffer, self.band)
        return buffer

    # --- workers and checkpoints --------------------------------------------------------------------------------------

    def _load_checkpoint(self) -> None:
        self._start_workers()
        super()._load_checkpoint()
        if self.global_steps > 0:
            folder = os.path.join(self._resumed_folder(), PRM)
            if not os.path.isdir(folder):
                raise FileNotFoundError(
                    f"verl-cov: {os.path.dirname(folder)} has no PRM ({PRM}/), so it is no checkpoint of a PRIME run: "
                    "set trainer.resume_mode=disable or another trainer.default_local_dir"
                )
            self.prm.load_checkpoint(folder, del_local_after_load=self.config.trainer.del_local_ckpt_after_load)

    def _resumed_folder(self) -> str:
        if self.config.trainer.resume_mode == "resume_path":
            return os.path.abspath(self.config.trainer.resume_from_path)
        return os.path.abspath(os.path.join(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}"))

    def _start_workers(self) -> None:
        """Starts one more process on each GPU of the policy's pool, with the PRM and the frozen reference in it."""
        classes = {PRM: self._worker(PrmWorker, reference=False)}
        if self.prime.reference == "frozen":
            classes[PRM_REFERENCE] = self._worker(TrainingWorker, reference=True)
        pool = self.resource_pool_manager.resource_pool_dict["global_pool"]
        group = RayWorkerGroup(
            resource_pool=pool,
            ray_cls_with_init=create_colocated_worker_cls(class_dict=classes),
            device_name=self.config.trainer.device,
        )
        spawned = group.spawn(prefix_set=classes.keys())
        for workers in spawned.values():
            workers.reset()
        self.prm = spawned[PRM]
        self.prm_reference = spawned.get(PRM_REFERENCE)
        self.prm.set_loss_fn(functools.partial(prm_loss, beta=self.prime.beta, kind=self.prime.loss))

    def _worker(self, cls: type, reference: bool) -> RayClassWithInitArgs:
        settings = worker_config(self.config, self.prime, self.total_training_steps, reference)
        return RayClassWithInitArgs(cls=ray.remote(cls), config=settings)

    def _save_checkpoint(self) -> None:
        # Before the base class, which ends by recording this checkpoint as the latest: it must be complete by then.
        step = f"global_step_{self.global_steps}"
        trainer = self.config.trainer
        keep = 1 if trainer.get("remove_previous_ckpt_in_save", False) else trainer.get("max_actor_ckpt_to_keep", None)
        self.prm.save_checkpoint(
            os.path.join(trainer.default_local_dir, step, PRM),
            None if trainer.default_hdfs_dir is None else os.path.join(trainer.default_hdfs_dir, step, PRM),
            self.global_steps,
            max_ckpt_to_keep=keep,
        )
        super()._save_checkpoint()

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        # verl only cuts a rank's rows into equal micro-batches; an incomplete rollout is padded to a multiple.
        rows_at_once = self._prm_ranks() * (micro_batch_size(self.config, self.prime) or 1)
        multiple = math.lcm(super()._get_required_batch_multiple(dp_size), rows_at_once)
        return math.lcm(multiple, self._rows_of_an_update())

    def _rows_of_an_update(self) -> int:
        return mini_batch_size(self.config, self.prime) * self.config.actor_rollout_ref.rollout.n

    def _prm_ranks(self) -> int:
        mesh = "train"
        if mesh not in self.prm._dispatch_info:
            self.prm._dispatch_info[mesh] = self.prm._query_dispatch_info(mesh)
        return max(self.prm._dispatch_info[mesh]) + 1

    # --- a batch ------------------------------------------------------------------------------------------------------

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        outcomes.refuse_several_outputs(batch.keys)
        data = self._get(batch, "uid", "response_mask", "old_log_probs")
        mask = data["response_mask"]
        valid = mask.to_padded_tensor(0).bool()
        outcome = self._outcomes(batch)
        prompts = [str(uid) for uid in tu.get(data, "uid")]
        groups = Groups.from_prompts(prompts, valid)

        with marked_timer("prm_reference", self.timing_raw):
            reference = self._reference_log_probs(batch, data)
        self._put(batch, {REFERENCE: reference, OUTCOME: outcome.float()})
        compute_rewards = functools.partial(self._rewards, reference=reference, valid=valid)
        rewards = self._score_and_train(batch, mask, compute_rewards, outcome, groups, metrics)
        with reporting("the PRM's ranking of the responses"):
            metrics.update(prime_metrics.ranking_metrics(rewards.sum(-1), outcome, groups))
        with reporting("the count of the prompts that PRIME's filter dropped"):
            metrics.update(prime_metrics.filter_metrics(metrics.get(DAPO_FILTERED_REWARD_COUNTS_KEY), self.band))

        # The base class does the rest (rollout correction, which may mask tokens). Its advantages, which come from the
        # outcome alone, are replaced.
        batch = super()._compute_advantage(batch, metrics)
        valid = self._get(batch, "response_mask")["response_mask"].to_padded_tensor(0).bool()
        if not self.prime.reward_last_token:
            rewards = advantage.without_last_token(rewards, valid)
        rewards = torch.where(valid, rewards, 0.0)
        groups = Groups.from_prompts(prompts, valid)
        advantages = advantage.advantages(rewards, outcome, valid, groups, self._estimator())
        with reporting("the summary of PRIME's rewards"):
            metrics.update(prime_metrics.reward_metrics(rewards, valid, outcome, advantages))
        return self._put(
            batch,
            {
                "advantages": response_to_nested(advantages.advantages, mask),
                "returns": response_to_nested(advantages.returns, mask),
            },
        )

    def _estimator(self) -> advantage.Estimator:
        algorithm, prime = self.config.algorithm, self.prime
        return advantage.Estimator(
            name=str(algorithm.adv_estimator),
            gamma=float(algorithm.gamma),
            divide_by_std=bool(algorithm.get("norm_adv_by_std_in_grpo", True)),
            rloo=prime.rloo,
            reward_norm=prime.reward_norm,
            process_coef=prime.process_coef,
            outcome_coef=prime.outcome_coef,
            whiten=prime.whiten,
        )

    def _outcomes(self, batch: KVBatchMeta) -> Float64[Tensor, " rows"]:
        """Reads each row's outcome, 0 for padding. Raises OutcomeOutOfRange."""
        real = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        outcome = torch.zeros(len(batch), dtype=torch.float64)
        keys = [batch.keys[row] for row in real]
        outcome[real] = torch.tensor(
            outcomes.read(keys, batch.partition_id, self.prime.outcome, "prime.outcome"), dtype=torch.float64
        )
        outside = outcome[~((outcome >= 0) & (outcome <= 1))]
        if outside.numel():
            raise OutcomeOutOfRange(
                f"verl-cov: {outside.numel()} of {len(real)} outcomes are not in [0, 1], {float(outside[0]):g} among "
                "them: PRIME's PRM learns the probability that a response is right. Set prime.outcome="
                f"{self.prime.outcome} to a key of the reward function's result that is in [0, 1] (often acc), or give "
                "a reward of 0 to 1 (reward.custom_reward_function)"
            )
        return outcome

    def _reference_log_probs(self, batch: KVBatchMeta, data: TensorDict) -> Tensor:
        """Returns the reference's log-probs of the responses, jagged."""
        if self.prm_reference is None:
            return data["old_log_probs"]
        return self._infer(self.prm_reference, batch, data["response_mask"])

    def _rewards(
        self, log_probs: Tensor, reference: Tensor, valid: Bool[Tensor, "rows tokens"]
    ) -> Float64[Tensor, "rows tokens"]:
        """Computes the process rewards from jagged log-probs of the responses."""
        log_probs, reference = (field.to_padded_tensor(0.0) for field in (log_probs, reference))
        return advantage.implicit_rewards(log_probs, reference, valid, self.prime.beta)

    def _score_and_train(
        self,
        batch: KVBatchMeta,
        mask: Tensor,
        compute_rewards: Rewards,
        outcome: Tensor,
        groups: Groups,
        metrics: dict[str, Any],
    ) -> Tensor:
        """Returns the process rewards and trains the PRM on the batch, in the order that ``prime.update`` sets."""
        update, dpo = self.prime.update, self.prime.loss == "dpo"

        def score() -> Tensor:
            with marked_timer("prm_score", self.timing_raw):
                return compute_rewards(self._infer(self.prm, batch, mask))

        if update == "none":
            return score()
        rewards = score() if update == "reverse" or dpo else None
        if dpo:  # the loss compares with the scores of other responses, which are on other ranks
            assert rewards is not None
            self._put(batch, {OPPONENT: prm.opponents(rewards.sum(-1), outcome, groups).float()})
        with marked_timer("prm_update", self.timing_raw):
            found = self._train(batch)
        with reporting("the metrics of the PRM's update"):
            metrics.update(prime_metrics.training_metrics(next(each for each in found if each is not None)))
        if update == "before":
            return score()
        # With "after", the rewards come from the forward that the update made.
        return rewards if rewards is not None else compute_rewards(self._get(batch, LOG_PROBS)[LOG_PROBS])

    def _infer(self, workers: RayWorkerGroup, batch: KVBatchMeta, mask: Tensor) -> Tensor:
        """Computes log-probs of the responses: jagged, float32."""
        ray.get(workers.infer_batch(self._for_prm(batch, compute_loss=False)).futures)
        # Read it right away: every forward of any worker overwrites this field.
        return response_from_nested(self._get(batch, "log_probs")["log_probs"].float(), mask)

    def _train(self, batch: KVBatchMeta) -> list[Mapping[str, Any] | None]:
        """Trains the PRM on the batch; returns each rank's metrics, None where it returns none."""
        rows = self._rows_of_an_update()
        actor = self.config.actor_rollout_ref.actor
        request = self._for_prm(
            batch,
            global_batch_size=rows,
            mini_batch_size=rows,
            epochs=self.prime.epochs,
            seed=actor.data_loader_seed,
            dataloader_kwargs={"shuffle": actor.shuffle},
        )
        results = ray.get(self.prm.train_and_score(request).futures)
        # Each rank that returns metrics has gathered those of all ranks.
        return [(result.extra_info or {}).get("metrics") for result in results]

    @staticmethod
    def _for_prm(batch: KVBatchMeta, **settings: Any) -> KVBatchMeta:
        """Returns the batch with the PRM's settings: ``batch`` still has those of the policy's last call."""
        settings = {"calculate_entropy": False, "temperature": 1.0, **settings}  # no temperature in Eq. 3
        return KVBatchMeta(partition_id=batch.partition_id, keys=batch.keys, tags=batch.tags, extra_info=settings)

    @staticmethod
    def _get(batch: KVBatchMeta, *fields: str) -> TensorDict:
        return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(fields))

    @staticmethod
    def _put(batch: KVBatchMeta, fields: Mapping[str, Tensor]) -> KVBatchMeta:
        return tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(dict(fields), batch_size=len(batch))
        )
