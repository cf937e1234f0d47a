"""Runs verl's Megatron, VeOmni, torchtitan and Automodel engines, without their libraries, on two gloo ranks.

NOT the libraries, and not hardware: ``megatron``, ``torchtitan``, ``veomni`` and ``nemo_automodel`` are stand-ins,
written below from what their documentation says they do. What runs between them is verl as installed: TrainingWorker's
``train_mini_batch`` and ``train_batch``, each engine's ``forward_backward_batch``, ``forward_step``,
``postprocess_micro_batch_func``, ``prepare_micro_batches``, Megatron's packing, context-parallel slicing and scheduler
adapter, the losses. So this shows that our hook fits these call sites. It cannot show that the engines work.

The model is an embedding and a linear layer: no token looks at another, so that any way of cutting a sequence up gives
exactly the gradient of the whole.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import pickle
import sys
import types
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.hooks import engine as fsdp
from tests.hooks.engine import ROWS

VOCABULARY, WIDTH = 200, 8


@dataclass(frozen=True)
class Case:
    """One engine in one topology. ``dp``, ``tp``, ``pp``, ``cp``: ranks of each kind, two in all; ``scheduler``:
    Megatron's dynamic context parallelism; ``tokens``: a micro-batch's, else 2 sequences; ``dense``: the legacy
    trainer's layout."""

    name: str
    engine: str
    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    scheduler: bool = False
    tokens: int | None = None
    dense: bool = False
    current: bool = True

    @property
    def shares_rows(self) -> bool:
        """True if each rank gets rows of its own; under the scheduler all get all of them, as verl's dispatch does."""
        return self.dp > 1 and not self.scheduler


@dataclass(frozen=True)
class Spec:
    model: str
    cases: tuple[Case, ...]
    variants: dict[str, dict[str, Any]]
    ranks: int = 2
    step: int = 3


@dataclass
class Report:
    """What one update did. ``gradient``: of each parameter; ``has_output``, ``loss_calls``: of each rank."""

    selected: list[tuple[int, int]]
    gradient: dict[str, np.ndarray]
    metrics: dict[str, float]
    has_output: list[bool]
    loss_calls: list[int]


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {
        "embedding": random.normal(0, 1, (VOCABULARY, WIDTH)).astype(np.float32),
        "head": random.normal(0, 0.4, (VOCABULARY, WIDTH)).astype(np.float32),
    }


# --- stand-ins for the libraries --------------------------------------------------------------------------------------

ROOTS = ("megatron", "torchtitan", "veomni", "nemo_automodel")


class _Empty(type):
    """Makes classes that have every attribute, all of them None: enumerations, defaults of arguments."""

    def __getattr__(cls, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Any module of ROOTS exists; a name nobody defined is an empty class, or a function that says so when called."""

    def __init__(self, defined: dict[str, dict[str, Any]]) -> None:
        self._defined = defined

    def find_spec(self, fullname, path, target=None):
        if fullname.split(".")[0] in ROOTS:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)

        def missing(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            if f"{spec.name}.{name}" in self._defined:  # `from package import module`
                return importlib.import_module(f"{spec.name}.{name}")
            if name[0].isupper():
                made: Any = _Empty(name, (), {})
            else:

                def made(*args, **kwargs):
                    raise NotImplementedError(f"no stand-in for {spec.name}.{name}")

            setattr(module, name, made)
            return made

        module.__getattr__ = missing  # type: ignore[method-assign]
        module.__dict__.update(self._defined.get(spec.name, {}))
        return module

    def exec_module(self, module):
        pass


@dataclass
class Now:
    """The topology that the stand-ins answer for."""

    case: Case | None = None
    rank: int = 0
    world: Any = None
    alone: Any = None  # this rank's group of one
    gradient: dict[str, Any] = field(default_factory=dict)
    loss_calls: int = 0

    def size(self, kind: str) -> int:
        return getattr(self.case, kind)

    def index(self, kind: str) -> int:
        return self.rank if self.size(kind) > 1 else 0

    def group(self, *kinds: str) -> Any:
        return self.world if any(self.size(kind) > 1 for kind in kinds) else self.alone


now = Now()


def _parallel_state() -> types.SimpleNamespace:
    """``megatron.core.parallel_state``."""

    def data_kinds(with_context_parallel: bool) -> tuple[str, ...]:
        return ("dp", "cp") if with_context_parallel else ("dp",)

    return types.SimpleNamespace(
        get_tensor_model_parallel_rank=lambda: now.index("tp"),
        get_tensor_model_parallel_world_size=lambda: now.size("tp"),
        get_tensor_model_parallel_group=lambda: now.group("tp"),
        get_pipeline_model_parallel_rank=lambda: now.index("pp"),
        get_pipeline_model_parallel_world_size=lambda: now.size("pp"),
        get_virtual_pipeline_model_parallel_world_size=lambda: None,
        is_pipeline_last_stage=lambda ignore_virtual=False: now.index("pp") == now.size("pp") - 1,
        get_context_parallel_rank=lambda: now.index("cp"),
        get_context_parallel_world_size=lambda: now.size("cp"),
        get_context_parallel_group=lambda: now.group("cp"),
        get_data_parallel_rank=lambda: now.index("dp"),
        get_data_parallel_world_size=lambda with_context_parallel=False: (
            now.size("dp") * (now.size("cp") if with_context_parallel else 1)
        ),
        get_data_parallel_group=lambda with_context_parallel=False: now.group(*data_kinds(with_context_parallel)),
        get_dynamic_data_context_parallel_groups=lambda group_size: now.world if group_size > 1 else now.alone,
    )


def _pipeline_schedule(*, forward_step_func, data_iterator, model, num_microbatches, forward_only, **_):
    """Megatron's forward_backward_func: GPipe over ``pp`` ranks, ``forward_step_calc_loss``, and the gradients'
    reduction over data- and context-parallel ranks that DDP and ``finalize_model_grads`` do."""
    import torch
    import torch.distributed as dist

    (chunk,) = model
    first, last = now.index("pp") == 0, now.index("pp") == now.size("pp") - 1
    store, kept, total_tokens = [], [], torch.zeros(1, dtype=torch.int64)
    with torch.no_grad() if forward_only else nullcontext():
        for _at in range(num_microbatches):
            received = None
            if not first:
                shape = torch.zeros(3, dtype=torch.int64)
                dist.recv(shape, src=now.rank - 1)
                received = torch.empty(shape.tolist(), requires_grad=not forward_only)
                dist.recv(received.data, src=now.rank - 1)
                chunk.set_input_tensor(received)
            output, loss_func = forward_step_func(data_iterator, chunk)
            if not last:
                dist.send(torch.tensor(output.shape), dst=now.rank + 1)
                dist.send(output.detach().contiguous(), dst=now.rank + 1)
            else:
                result = loss_func(output)
                if len(result) == 3:
                    output, tokens, reported = result
                    total_tokens += tokens
                else:
                    output, reported = result
                    output = output * now.size("cp") / num_microbatches
                store.append(reported)
            kept.append((output, received))
    if forward_only:
        return store
    for output, received in kept:
        if last:
            output.backward()
        else:
            gradient = torch.empty_like(output)
            dist.recv(gradient, src=now.rank + 1)
            output.backward(gradient)
        if not first:
            dist.send(received.grad, dst=now.rank - 1)
    replicas = now.size("dp") * now.size("cp")
    group = now.group("dp", "cp")
    dist.all_reduce(total_tokens, group=group)
    for parameter in chunk.parameters():
        dist.all_reduce(parameter.grad, group=group)
        parameter.grad /= total_tokens.item() if total_tokens.item() else replicas
    return store


class _DynamicScheduler:
    """``DefaultDynamicCPScheduler``: the first sequence to both ranks (split between them), the others in turn."""

    def __init__(self, **_):
        pass

    def get_groups_and_subsamples(self, samples):
        ids = [index for index, _length in samples]
        shared, rest = ids[:2], ids[2:]
        half = (len(rest) + 1) // 2
        return [[shared[:1], shared[:1]], [shared[1:], shared[1:]], [rest[:half], rest[half:]]]


def _cross_entropy(vocab_parallel_logits, target):
    import torch.nn.functional as functional

    return functional.cross_entropy(vocab_parallel_logits.transpose(1, 2), target, reduction="none")


class _PackedSeqParams:
    def __init__(self, **fields):
        self.__dict__.update(fields)


def _record(parameters, average: bool) -> float:
    """What the libraries' gradient clipping sees; ``average``: FSDP's reduction over all ranks comes first."""
    import torch.distributed as dist

    total = 0.0
    for name, parameter in parameters:
        if average:
            dist.all_reduce(parameter.grad, group=now.world)
            parameter.grad /= dist.get_world_size(now.world)
        now.gradient[name] = parameter.grad.detach().clone()
        total += float(parameter.grad.square().sum())
    return total**0.5


def _named(parameters) -> list[tuple[str, Any]]:
    return [(parameter.verl_cov_name, parameter) for parameter in parameters]


def install_stand_ins() -> None:
    import torch

    mpu = _parallel_state()

    def titan_clip(parameters, *_, **__):
        return torch.tensor(_record(_named(parameters), now.size("dp") > 1))

    def automodel_clip(model_parts, **_):
        return torch.tensor(_record(_named(model_parts[0].parameters()), now.size("dp") > 1))

    def veomni_state():
        return types.SimpleNamespace(
            ulysses_size=now.size("cp"),
            sp_enabled=now.size("cp") > 1,
            sp_size=now.size("cp"),
            sp_rank=now.index("cp"),
            dp_shard_size=1,
            device_mesh=_Mesh(),
        )

    def lengths_of(position_ids):
        return (None, None), (None, None)

    defined = {
        "megatron.core": dict(
            __version__="0.16.0",
        ),
        "megatron.core.package_info": dict(__version__="0.16.0"),
        "megatron.core.parallel_state": vars(mpu),
        "megatron.core.mpu": vars(mpu),
        "megatron.core.tensor_parallel": dict(vocab_parallel_cross_entropy=_cross_entropy),
        "megatron.core.pipeline_parallel": dict(get_forward_backward_func=lambda: _pipeline_schedule),
        "megatron.core.packed_seq_params": dict(PackedSeqParams=_PackedSeqParams),
        "megatron.core.datasets.data_schedule": dict(DefaultDynamicCPScheduler=_DynamicScheduler),
        "torchtitan.distributed.utils": dict(clip_grad_norm_=titan_clip),
        "torchtitan.models.common.attention": dict(
            create_attention_mask=lambda *_, **__: None, get_causal_mask_mod=lambda: lambda b, h, q, k: q >= k
        ),
        "torchtitan.components.dataloader": dict(BaseDataLoader=_BaseDataLoader),
        "veomni.distributed.parallel_state": dict(get_parallel_state=veomni_state),
        "veomni.utils.seqlen_pos_transform_utils": dict(prepare_fa_kwargs_from_position_ids=lengths_of),
        "nemo_automodel.components.training.utils": dict(
            prepare_for_grad_accumulation=lambda parts: None,
            prepare_for_final_backward=lambda parts: None,
            scale_grads_and_clip_grad_norm=automodel_clip,
        ),
    }
    sys.meta_path.insert(0, StandIns(defined))


class _BaseDataLoader:
    @dataclass(kw_only=True, slots=True)
    class Config:
        pass


class _Mesh:
    """A device mesh of two ranks along one dimension: the library's names for it."""

    UPDATE_KINDS = types.MappingProxyType({"dp": "dp", "tp": "tp", "ulysses": "cp", "sp": "cp"})
    mesh_dim_names = ("dp", "tp")

    def __init__(self, kind: str | None = None) -> None:
        self.kind = kind

    def __getitem__(self, name: str) -> _Mesh:
        return _Mesh(self.UPDATE_KINDS[name])

    def size(self) -> int:
        return now.size(self.kind)

    def get_group(self, mesh_dim: str | None = None) -> Any:
        return now.group(self.UPDATE_KINDS[mesh_dim] if mesh_dim else self.kind)

    def get_local_rank(self, mesh_dim: str | None = None) -> int:
        return now.index(self.UPDATE_KINDS[mesh_dim] if mesh_dim else self.kind)


class _ParallelDims:
    """``torchtitan.distributed.parallel_dims.ParallelDims``: a mesh of one rank does not exist."""

    pp_enabled = cp_enabled = ep_enabled = False

    def __init__(self) -> None:
        self.tp, self.pp, self.cp = now.size("tp"), now.size("pp"), now.size("cp")

    def get_optional_mesh(self, name: str) -> Any:
        kind = {"loss": "dp", "fsdp": "dp", "dp_replicate": None}.get(name, name)
        return _Mesh(kind) if kind and now.size(kind) > 1 else None


# --- the model and the optimizers, as each library would have built them ----------------------------------------------


def _model(first: bool = True, last: bool = True) -> Any:
    """The toy model, or a pipeline stage of it, with the surface that each engine touches."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.pre_process, self.post_process = first, last
            self.config = types.SimpleNamespace(fp8=None, sequence_parallel=False, model_type="toy")
            for name, value in weights().items():
                if first if name == "embedding" else last:
                    parameter = nn.Parameter(torch.from_numpy(value))
                    parameter.verl_cov_name = name
                    self.register_parameter(name, parameter)

        def set_input_tensor(self, tensor):
            self._input = tensor

        def zero_grad_buffer(self):
            pass

        def reshard(self):
            pass

        def clip_grad_norm_(self, max_norm):
            return torch.tensor(_record(_named(self.parameters()), True))

        def run(self, ids):
            # In float32 where the engine casts to bfloat16: the oracle knows no rounding.
            with torch.autocast("cpu", enabled=False):
                hidden = nn.functional.embedding(ids, self.embedding) if self.pre_process else self._input
                return hidden @ self.head.T if self.post_process else hidden

        def forward(self, *args, input_ids=None, **_):
            found = self.run(args[0] if args else input_ids)
            return types.SimpleNamespace(logits=found) if self.wrapped else found

        wrapped = False

    return Model()


class _Optimizer:
    """Learning rate 0: every case starts from the same weights."""

    param_groups = ({"lr": 0.0, "default_config": {}},)

    def __init__(self, module: Any) -> None:
        self._module = module

    def zero_grad(self):
        for parameter in self._module.parameters():
            parameter.grad = None

    def step(self):
        return True, _record(_named(self._module.parameters()), False), 0


class _Schedule:
    """A learning-rate scheduler as each of the libraries calls it."""

    def __init__(self):
        self.schedulers = [self]

    def step(self, *_, **__):
        pass

    def get_last_lr(self):
        return [0.0]


@functools.cache
def _composed(engine: str, model: str) -> Any:
    from omegaconf import OmegaConf

    config = fsdp.compose((f"model_engine={engine}",), model)
    OmegaConf.resolve(config)
    return config.actor_rollout_ref.actor


def _actor_config(case: Case, model: str, policy_loss: dict[str, Any]) -> Any:
    """verl's actor configuration for this engine, composed and converted as the worker does it."""
    from verl.utils.config import omega_conf_to_dataclass

    from verl_cov.hooks.config import CovPolicyLossConfig

    # verl has no actor configuration for Automodel, which it trains SFT with.
    actor = omega_conf_to_dataclass(_composed("dp" if case.engine == "automodel" else case.engine, model))
    wide = dict(clip_ratio=1.0, clip_ratio_low=1.0, clip_ratio_high=1.0, policy_loss=CovPolicyLossConfig(**policy_loss))
    for key, value in wide.items():
        object.__setattr__(actor, key, value)
    return actor


def _engine(case: Case, actor: Any) -> Any:
    """verl's engine of this case, with stand-ins for what ``__init__`` and ``initialize`` get from the library."""
    import torch.distributed as dist

    first, last = now.index("pp") == 0, now.index("pp") == now.size("pp") - 1
    module = _model(first, last)
    config = actor.engine
    common = dict(
        model_config=types.SimpleNamespace(
            hf_config=types.SimpleNamespace(architectures=["Qwen2ForCausalLM"], model_type="qwen2"),
            mtp=types.SimpleNamespace(enable=False, enable_train=False),
            tokenizer=types.SimpleNamespace(pad_token_id=0),
            model_type="language_model",
        ),
        optimizer_config=actor.optim,
        optimizer=_Optimizer(module),
        lr_scheduler=_Schedule(),
        module=module,
        mode=None,
        enable_routing_replay=False,
        _is_offload_param=False,
        _is_offload_optimizer=False,
    )
    if case.engine == "megatron":
        from verl.workers.engine.megatron import MegatronEngineWithLMHead as engine_class

        object.__setattr__(config, "use_remove_padding", True)
        object.__setattr__(config, "dynamic_context_parallel", case.scheduler)
        object.__setattr__(config, "max_seqlen_per_dp_cp_rank", 1024)
        object.__setattr__(config, "context_parallel_size", case.cp)
        common |= dict(
            module=[module], tf_config=types.SimpleNamespace(calculate_per_token_loss=case.cp > 1 or case.scheduler)
        )
    elif case.engine == "torchtitan":
        from verl.workers.engine.torchtitan import TorchTitanEngineWithLMHead as engine_class

        object.__setattr__(config, "data_parallel_shard_size", case.dp)
        object.__setattr__(config, "tensor_parallel_size", case.tp)
        common |= dict(
            module=[module],
            parallel_dims=_ParallelDims(),
            trainer=types.SimpleNamespace(train_context=nullcontext),
            config=types.SimpleNamespace(training=types.SimpleNamespace(max_norm=1.0)),
        )
    elif case.engine == "veomni":
        from verl.workers.engine.veomni import VeOmniEngineWithLMHead as engine_class

        module.wrapped = True
        common |= dict(
            use_ulysses_sp=case.cp > 1,
            ulysses_sequence_parallel_size=case.cp,
            ulysses_parallel_group=now.group("cp") if case.cp > 1 else None,
            pad_to_length=False,
            _router_replay=None,
        )
    else:
        from verl.workers.config import AutomodelEngineConfig
        from verl.workers.engine.automodel import AutomodelEngineWithLMHead as engine_class

        config = AutomodelEngineConfig(tp_size=case.tp)
        module.wrapped = True
        common |= dict(device_mesh=_Mesh(), moe_mesh=None)
    made = object.__new__(engine_class)
    made.__dict__.update(common, engine_config=config, rank=dist.get_rank())
    return made


def _worker(engine: Any, actor: Any) -> Any:
    """verl's TrainingWorker round ``engine``; only its ``__init__``, which would build one, is passed over."""
    from verl.utils.profiler import DistProfiler
    from verl.workers.engine_workers import TrainingWorker
    from verl.workers.utils.losses import ppo_loss

    def loss(config, model_output=None, data=None, dp_group=None):
        now.loss_calls += 1
        return ppo_loss(config, model_output, data, dp_group)

    worker = object.__new__(TrainingWorker)
    worker.__dict__.update(
        engine=engine,
        engine_config=engine.engine_config,
        model_config={"use_remove_padding": True},
        device_name="cpu",
        flops_counter=None,
        profiler=DistProfiler(rank=0, config=None),
        loss_fn=partial(loss, config=actor),
    )
    return worker


# --- inside a rank ----------------------------------------------------------------------------------------------------


def _rank_main(path: Path, rank: int) -> None:
    import os

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    spec: Spec = pickle.loads(path.read_bytes())
    install_stand_ins()
    dist.init_process_group(
        "gloo", init_method=os.environ["DIST_INIT_METHOD"], rank=rank, world_size=int(os.environ["WORLD_SIZE"])
    )
    now.rank, now.world = rank, dist.group.WORLD
    now.alone = [dist.new_group([other]) for other in range(spec.ranks)][rank]
    import verl  # noqa: F401  (loads the plugin)

    reports = {}
    for case in spec.cases:
        for name, policy_loss in spec.variants.items():
            if case.current or "current" not in name:
                reports[case.name, name] = _update(spec, case, policy_loss)
    if rank == 0:
        (path.parent / "report.pickle").write_bytes(pickle.dumps(reports))
    dist.barrier()


def _update(spec: Spec, case: Case, policy_loss: dict[str, Any]) -> Report:
    import torch.distributed as dist
    from verl.utils import tensordict_utils as tu

    from verl_cov.hooks.batch import SELECTED_FIELD

    now.case, now.gradient, now.loss_calls = case, {}, 0
    rows = fsdp.mini_batch()
    share = rows[now.rank * ROWS // 2 : (now.rank + 1) * ROWS // 2] if case.shares_rows else rows
    data = fsdp.to_tensordict(share, dense=case.dense)
    tu.assign_non_tensor(
        data,
        mini_batch_size=ROWS,
        global_batch_size=ROWS,
        epochs=1,
        temperature=1.0,
        calculate_entropy=False,
        global_steps=spec.step - case.dense,
        use_dynamic_bsz=case.tokens is not None,
        use_remove_padding=True,
        max_token_len_per_gpu=case.tokens,
        micro_batch_size_per_gpu=2,
    )
    actor = _actor_config(case, spec.model, policy_loss)
    engine = _engine(case, actor)
    worker = _worker(engine, actor)
    selected: list[tuple[int, int]] = []
    train = engine.train_batch

    def train_batch(batch, loss_function):
        lists = [row.tolist() for row in batch[SELECTED_FIELD].unbind()]
        selected.extend((share[row]["index"], at) for row, on in enumerate(lists) for at, x in enumerate(on) if x)
        return train(batch, loss_function=loss_function)

    engine.train_batch = train_batch
    output = worker.train_mini_batch(data)
    values = {} if output is None else tu.get(output, "metrics")
    metrics = {key: _number(value) for key, value in values.items()}
    mine = (selected, now.gradient, metrics, output is not None, now.loss_calls)
    everyone: list[Any] = [None, None]
    dist.all_gather_object(everyone, mine)
    gradient = {name: value.double().numpy() for part in everyone for name, value in part[1].items()}
    # Ranks that hold the same rows must have chosen the same tokens of them.
    if not case.shares_rows:
        assert everyone[0][0] == everyone[1][0], case.name
        selected = everyone[0][0]
    else:
        selected = [pair for part in everyone for pair in part[0]]
    reported = next(part[2] for part in everyone if part[3])
    return Report(selected, gradient, reported, [part[3] for part in everyone], [part[4] for part in everyone])


def _number(value: Any) -> float:
    """A metric of one update, which verl leaves as a list or a Metric, or as a Metric in a list."""
    found = value if isinstance(value, list) else [value]
    return float(np.mean([getattr(one, "aggregate", lambda one=one: one)() for one in found]))


if __name__ == "__main__":
    # Through the package, so that the report's classes are pickled under a name the test can import.
    from tests.hooks import other_engines

    other_engines._rank_main(Path(sys.argv[1]), int(sys.argv[2]))
