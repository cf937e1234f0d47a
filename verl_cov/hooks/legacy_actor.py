"""The mini-batch hook in verl's legacy actor (0.6 and 0.7), which works only with a patched verl.

Leans on ``verl.workers.actor.dp_actor.DataParallelPPOActor.update_policy(data)``, which cuts a rank's rows into
mini-batches and these into micro-batches in one long method: there is no place to wrap, so ``patches/`` puts
``verl.utils.mini_batch_hook`` into it, which calls :func:`hook_for` with the actor and a mini-batch (a ``DataProto``,
dense) and enters the hook round the policy loss with the micro-batch's tensors. An actor without the patch is refused
when it is made, which is before the first rollout. The legacy Megatron actor has no patch.

The loss is scaled as that verl does it, by rows and with each micro-batch's own token mean: the tokens selected do not
depend on the layout there, the loss does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.hooks import batch, versions
from verl_cov.hooks.asks import config_from_policy_loss, config_from_trainer
from verl_cov.hooks.batch import RankTokens
from verl_cov.hooks.loss_modes import POLICY_LOSS
from verl_cov.hooks.mini_batch import MINI_BATCHES_PER_STEP, MiniBatchHook
from verl_cov.hooks.seams import Seam
from verl_cov.hooks.worker_state import state_of

if TYPE_CHECKING:
    from tensordict import TensorDict
    from verl.protocol import DataProto
    from verl.workers.actor.dp_actor import DataParallelPPOActor

    from verl_cov.hooks.config import CovPolicyLossConfig

FSDP_ACTOR, MEGATRON_ACTOR = "DataParallelPPOActor", "MegatronPPOActor"
PATCH = "run `verl-cov patch apply` on every node"

seam = Seam()


def install() -> None:
    seam.when_imported("verl.utils.mini_batch_hook", _register_with_patched_verl)
    seam.when_imported("verl.workers.actor.dp_actor", lambda module: _check_when_made(module, FSDP_ACTOR))
    seam.when_imported("verl.workers.actor.megatron_actor", lambda module: _check_when_made(module, MEGATRON_ACTOR))


def _register_with_patched_verl(mini_batch_hook: ModuleType) -> None:
    mini_batch_hook.register_mini_batch_hook(hook_for)
    seam.on_uninstall(lambda: mini_batch_hook._FACTORIES.remove(hook_for))


def hook_for(worker: DataParallelPPOActor, data: DataProto) -> MiniBatchHook | None:
    """Makes the hook for a mini-batch of a legacy actor; None for another worker or a run without verl-cov."""
    if not hasattr(worker, "actor_optimizer"):
        return None
    cov = _config(worker)
    return None if cov is None else MiniBatchHook(LegacyActorAdapter(worker, data.batch), cov)


def _check_when_made(module: ModuleType, name: str) -> None:
    patched = hasattr(module, "MiniBatchStep")

    def init(original: Callable, actor: DataParallelPPOActor, *args: Any, **kwargs: Any) -> None:
        original(actor, *args, **kwargs)
        # The reference policy is such an actor too, without an optimizer.
        if getattr(actor, "actor_optimizer", None) is not None and (cov := _config(actor)) is not None:
            refuse_actor(cov, patched, name)

    def compute_log_prob(original: Callable, actor: DataParallelPPOActor, *args: Any, **kwargs: Any) -> Any:
        if getattr(actor, "actor_optimizer", None) is not None and _config(actor) is not None:
            state_of(actor).log_probs_are_new = True
        return original(actor, *args, **kwargs)

    seam.wrap(getattr(module, name), "__init__", init)
    seam.wrap(getattr(module, name), "compute_log_prob", compute_log_prob)


def refuse(config: DictConfig) -> None:
    """Raises ValueError if the run's legacy actor cannot do what the configuration asks for."""
    release, cov = versions.installed_release(), config_from_trainer(config)
    if cov is None or not release.legacy:
        return
    if release.engine and OmegaConf.select(config, "trainer.use_legacy_worker_impl", default="auto") == "disable":
        return
    megatron = config.actor_rollout_ref.actor.strategy == "megatron"
    patched = importlib.util.find_spec("verl.utils.mini_batch_hook") is not None and not megatron
    try:
        refuse_actor(cov, patched, MEGATRON_ACTOR if megatron else FSDP_ACTOR)
    except ValueError as error:
        engines = " (or use verl's engines: trainer.use_legacy_worker_impl=disable)" if release.engine else ""
        raise ValueError(f"{error}{engines}") from None


def refuse_actor(cov: CovPolicyLossConfig, patched: bool, actor: str) -> None:
    """Raises ValueError if the configuration asks for something that a legacy actor cannot do.

    Args:
        patched: True if the module of the actor has ``MiniBatchStep``.
        actor: the name of its class.
    """
    if not patched and (cov.cov_metrics != "off" or (cov.acts and cov.cov_scope == "mini_batch")):
        fix = PATCH if actor == FSDP_ACTOR else f"there is no patch for it: use strategy=fsdp and {PATCH}"
        less = "leave +verl_cov=metrics out"
        if cov.acts:
            less = (
                "select within micro-batches and log nothing "
                f"({POLICY_LOSS}.cov_scope=micro_batch {POLICY_LOSS}.cov_metrics=off)"
            )
        raise ValueError(
            f"verl's legacy actor ({actor}) shows the policy loss one micro-batch at a time and is not patched: {fix}, "
            f"or {less}"
        )
    if cov.acts and cov.cov_scope == "mini_batch" and cov.log_prob == "current":
        raise ValueError(
            f"{POLICY_LOSS}.cov_log_prob=current needs verl's engines, and this is the legacy actor: use old"
        )
    if cov.cov_dump_every:
        raise ValueError(
            f"{POLICY_LOSS}.cov_dump_every={cov.cov_dump_every} needs verl's engines, and this is the legacy actor: "
            "set it to 0"
        )


class LegacyActorAdapter:
    """A ``DataParallelPPOActor`` and one of its mini-batches (a TensorDict, dense)."""

    tokenizer = None

    def __init__(self, worker: DataParallelPPOActor, data: TensorDict) -> None:
        self.worker, self.data = worker, data
        self.group = _data_parallel_group(worker)

    def step(self) -> int:
        """Counts the step as the optimizer's checkpoint does, because the actor does not know the rollout step."""
        state = state_of(self.worker)
        state.updates += 1
        parameters = self.worker.actor_optimizer.state.values()
        counted = next((int(each["step"]) for each in parameters if "step" in each), state.updates)
        return counted * MINI_BATCHES_PER_STEP

    def log_probs(self, tokens: RankTokens) -> Tensor:
        raise NotImplementedError  # refuse_actor() comes first

    def has_policy_loss(self, micro_batch: TensorDict) -> bool:
        return True

    def prepare(self, micro_batch: TensorDict) -> None:
        pass

    def padded(self, micro_batch: TensorDict, name: str) -> Tensor:
        return micro_batch[name]

    def divides_by_width(self) -> bool:
        return False  # dense: every micro-batch is as wide as the batch


def _config(actor: DataParallelPPOActor) -> CovPolicyLossConfig | None:
    return config_from_policy_loss(actor.config.get("policy_loss"))


def _data_parallel_group(actor: DataParallelPPOActor) -> ProcessGroup | None:
    """Returns the ranks that hold different rows; None if there is only one.

    With Ulysses the ranks of a sequence-parallel group hold the same rows; verl lays the two out as this mesh
    (``fsdp_workers.py``, ``ulysses_device_mesh``), and does not hand it to the actor.
    """
    state = state_of(actor)
    if state.group is None:
        ranks, sequence = dist.get_world_size(), getattr(actor, "ulysses_sequence_parallel_size", 1)
        if ranks == sequence:
            state.group = [None]
        elif sequence == 1:
            state.group = [dist.group.WORLD]
        else:
            from torch.distributed.device_mesh import init_device_mesh

            mesh = init_device_mesh(batch.device().type, (ranks // sequence, sequence), mesh_dim_names=("dp", "sp"))
            state.group = [mesh.get_group("dp")]
    return state.group[0]
