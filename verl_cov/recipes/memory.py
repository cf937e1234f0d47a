"""Does a model fit a scale? Bytes of FSDP's state and of vLLM's weights; activations are left room for, not counted."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

GB = 1e9
STATE_BYTES = 16  # a parameter: fp32 weight 4, gradient 4, Adam's two moments 8 (verl's fsdp_config.model_dtype=fp32)
REFERENCE_BYTES = 4  # a parameter of a reference policy, which FSDP2 keeps in host memory
ROLLOUT_BYTES = 2  # a parameter in vLLM: bfloat16
ROOM_FOR_CACHE = 2 * GB  # what vLLM needs beside its weights at the least
PROCESSES_ON_CPU = 4 * GB  # verl's, Ray's and vLLM's, with a tiny model
STATE_SHARE = 0.5  # of a GPU that state may take: activations, logits and gathered layers want the rest


@dataclass(frozen=True)
class Estimate:
    """Bytes. state: FSDP's of the policy on a GPU; prm: of PRIME's PRM, there only while it works; host: in a node's
    memory (offloaded state, references); weights: vLLM's on a GPU; vllm: all that vLLM takes of a GPU; gpu: the
    GPU's memory."""

    state: float
    prm: float
    host: float
    weights: float
    vllm: float
    gpu: float

    @property
    def problem(self) -> str | None:
        """Why it does not fit; None if it does."""
        if self.weights + ROOM_FOR_CACHE > self.vllm:
            return f"vLLM's weights take {self.weights / GB:.0f} GB of the {self.vllm / GB:.0f} GB a GPU it may use"
        training = self.state + self.prm
        if training > STATE_SHARE * self.gpu:
            return f"weights, gradients and Adam's moments take {training / GB:.0f} of {self.gpu / GB:.0f} GB a GPU"
        if self.state + self.vllm > self.gpu:
            return f"training state {self.state / GB:.0f} GB and vLLM {self.vllm / GB:.0f} GB a GPU are too much"
        return None

    def describe(self) -> str:
        parts = [f"training state {self.state / GB:.1f} GB", f"vLLM {self.vllm / GB:.0f} GB"]
        parts += [f"PRM {self.prm / GB:.1f} GB while vLLM sleeps"] if self.prm else []
        parts += [f"host memory {self.host / GB:.0f} GB a node"] if self.host else []
        return f"of {self.gpu / GB:.0f} GB a GPU: " + ", ".join(parts)


def estimate(
    parameters: float,
    *,
    gpus: int,
    nodes: int,
    tensor: int,
    vllm_share: float,
    offload: bool,
    reference: bool = False,
    prm: bool = False,
    gpu: float = 80 * GB,
) -> Estimate:
    """parameters: of the model. gpus: in a node. tensor: vLLM's tensor-parallel size. vllm_share: verl's
    gpu_memory_utilization. offload: FSDP2's offload_policy. reference: with a reference policy. prm: with PRIME's PRM
    of the same size, offloaded, and its reference. gpu: bytes of a GPU."""
    state = STATE_BYTES * parameters
    on_gpu = 0.0 if offload else state / (gpus * nodes)
    frozen = REFERENCE_BYTES * parameters
    off_gpu = state * offload + frozen * reference + (state + frozen) * prm
    return Estimate(
        state=on_gpu,
        prm=on_gpu * prm,
        host=off_gpu / nodes,
        weights=ROLLOUT_BYTES * parameters / tensor,
        vllm=vllm_share * gpu,
        gpu=gpu,
    )


def on_cpu(config: DictConfig) -> float:
    """The bytes that a resolved recipe needs on a machine without GPUs: the processes, training state, vLLM's weights.

    Both in fp32, on each rank, since a rank of FSDP is gathered while it works.
    """
    parameters = config.recipe.parameters if "recipe" in config and "parameters" in config.recipe else 0
    return (PROCESSES_ON_CPU + (STATE_BYTES + 4) * parameters) * config.trainer.n_gpus_per_node


def of_config(config: DictConfig, gpu: float = 80 * GB) -> Estimate:
    """The memory that a resolved recipe needs on GPUs of `gpu` bytes each."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    return estimate(
        config.recipe.parameters,
        gpus=config.trainer.n_gpus_per_node,
        nodes=config.trainer.nnodes,
        tensor=rollout.tensor_model_parallel_size,
        vllm_share=rollout.gpu_memory_utilization,
        offload=actor.fsdp_config.offload_policy,
        reference=actor.use_kl_loss,
        prm="prime" in config,
        gpu=gpu,
    )
