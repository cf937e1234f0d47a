"""Our hook at the call sites of verl's engines that this machine cannot run: Megatron, VeOmni, torchtitan, Automodel.

NOT run on hardware, and not with the engines' libraries. Two kinds of evidence (docs/engines.md):

- verl's own code of these engines, as installed, runs with stand-ins for the libraries (:mod:`.other_engines`) on two
  gloo ranks: data, tensor, pipeline, context and sequence parallel, Megatron's dynamic context parallelism. Tokens,
  loss and gradient are compared with an oracle that shares no code with the package.
- The lines of verl that our hook leans on are looked up in the installed source, and an edit of each is noticed.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.hooks import engine, other_engines
from tests.hooks.other_engines import Case
from tests.hooks.test_invariance import BAND, RATIO, alike, relative, update
from verl_cov.hooks import versions

# What docs/engines.md says is of the newest release; others have other engines and other lines.
pytestmark = pytest.mark.skipif(versions.installed_release() is not versions.NEWEST, reason="of the newest release")

KL = dict(loss_mode="verl_cov.kl_cov", kl_cov_ratio=RATIO, ppo_kl_coef=0.7, cov_seed=11)
CLIP = dict(loss_mode="verl_cov.clip_cov", clip_cov_ratio=RATIO, clip_cov_lb=BAND[0], clip_cov_ub=BAND[1], cov_seed=11)
VARIANTS = {
    "kl_cov, old": KL,
    "clip_cov, old": CLIP,
    "kl_cov, current": {**KL, "cov_log_prob": "current"},
}
CASES = (
    Case("megatron, data parallel", "megatron", dp=2, tokens=64),
    Case("megatron, the legacy trainer's layout", "megatron", dp=2, dense=True),
    Case("megatron, tensor parallel", "megatron", tp=2),
    Case("megatron, pipeline parallel", "megatron", pp=2, current=False),
    Case("megatron, context parallel", "megatron", cp=2),
    Case("megatron, dynamic context parallel", "megatron", dp=2, scheduler=True, current=False),
    Case("torchtitan, data parallel", "torchtitan", dp=2),
    Case("torchtitan, tensor parallel", "torchtitan", tp=2),
    Case("veomni, data parallel", "veomni", dp=2, tokens=64),
    Case("veomni, Ulysses sequence parallel", "veomni", cp=2),
    Case("automodel, data parallel", "automodel", dp=2),
    Case("automodel, tensor parallel", "automodel", tp=2),
)
UPDATES = [
    pytest.param(case, variant, id=f"{case.name}: {variant}")
    for case in CASES
    for variant in VARIANTS
    if case.current or "current" not in variant
]


@functools.cache
def reports(model: str) -> dict[tuple[str, str], other_engines.Report]:
    spec = other_engines.Spec(model, CASES, VARIANTS)
    return engine.launch("tests.hooks.other_engines", spec, timeout=2000)


@functools.cache
def oracle(variant: str):
    """(chosen tokens, loss, mean magnitude of the token losses, gradients of embedding and head)."""
    rows = engine.mini_batch()
    embedding, head = (torch.from_numpy(value).requires_grad_() for value in other_engines.weights().values())
    log_probs = []
    for row in rows:
        ids = torch.from_numpy(np.concatenate([row["prompt"], row["response"]]))
        scores = (embedding[ids] @ head.T).log_softmax(-1)
        log_probs.append(scores[:-1].gather(1, ids[1:, None])[len(row["prompt"]) - 1 :, 0])
    chosen, loss, magnitude = update(rows, log_probs, variant)
    loss.backward()
    gradient = np.concatenate([parameter.grad.double().numpy().flatten() for parameter in (embedding, head)])
    return chosen, float(loss.detach()), magnitude, gradient


@pytest.mark.parametrize(("case", "variant"), UPDATES)
def test_tokens_loss_and_gradient_are_the_oracles(untrained_model, case, variant):
    chosen, loss, magnitude, gradient = oracle(variant)
    found = reports(str(untrained_model))[case.name, variant]
    assert alike(set(found.selected)) == alike(chosen)
    assert len(found.selected) == len(chosen) >= 3
    assert found.metrics["actor/cov/selected_tokens"] == len(chosen)
    assert found.metrics["loss"] == pytest.approx(loss, abs=1e-6 * magnitude)
    mine = np.concatenate([found.gradient[name].flatten() for name in ("embedding", "head")])
    if case.cp > 1 and case.engine == "megatron":
        # verl halves each micro-batch's token count in whole numbers, so that the gradient of any loss is a few per
        # cent too long (a micro-batch here has some 25 tokens). Its direction is ours to get right.
        assert 1 < np.linalg.norm(mine) / np.linalg.norm(gradient) < 1.06
        mine = mine * np.linalg.norm(gradient) / np.linalg.norm(mine)
    assert relative(mine, gradient) < 1e-6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_metrics_are_reported_by_the_ranks_that_verl_asks_and_no_other(untrained_model, case):
    found = reports(str(untrained_model))[case.name, "kl_cov, old"]
    expected = [True, True]
    if case.tp > 1 or case.cp > 1 or case.scheduler:
        expected = [True, False]
    if case.pp > 1:
        expected = [False, True]  # the last stage
    assert found.has_output == expected
    # On the first stage of a pipeline the loss is never computed; the selection's collectives ran there all the same.
    assert [calls > 0 for calls in found.loss_calls] == [case.pp == 1, True]
    for key in ("actor/cov/mean", "actor/cov/tokens", "actor/cov/theorem1", "actor/cov/entropy"):
        assert key in found.metrics, key
    valid = sum(int(row["mask"].sum()) for row in engine.mini_batch())
    assert found.metrics["actor/cov/tokens"] == valid


def test_without_a_step_in_the_batch_each_librarys_scheduler_says_how_many_rollouts_there_were():
    from types import SimpleNamespace

    from verl_cov.hooks.train_batch import _updates_before

    torchs, megatrons = SimpleNamespace(last_epoch=4), SimpleNamespace(num_steps=5)
    assert _updates_before(SimpleNamespace(lr_scheduler=torchs)) == 4
    assert _updates_before(SimpleNamespace(lr_scheduler=megatrons)) == 5
    assert _updates_before(SimpleNamespace(lr_scheduler=SimpleNamespace(schedulers=[torchs, torchs]))) == 4
    assert _updates_before(SimpleNamespace(lr_scheduler=None)) == 0
    assert _updates_before(SimpleNamespace()) == 0


# --- the lines of verl that this leans on -----------------------------------------------------------------------------

# Every engine that verl 0.9 registers for language models: {folder: (file, class, the class it takes the rest from)}.
FSDP = ("fsdp/transformer_impl.py", "FSDPEngine")
ENGINES = {
    "fsdp": (*FSDP, None),
    "fsdp_turbo": ("fsdp/fsdp_turbo_impl.py", "FSDPTurboEngineWithLMHead", "fsdp"),
    "megatron": ("megatron/transformer_impl.py", "MegatronEngine", None),
    "mindspeed": ("mindspeed/transformer_impl.py", "MindspeedEngineWithLMHead", "megatron"),
    "veomni": ("veomni/transformer_impl.py", "VeOmniEngine", "fsdp"),
    "torchtitan": ("torchtitan/transformer_impl.py", "TorchTitanEngine", None),
    "automodel": ("automodel/transformer_impl.py", "AutomodelEngine", None),
}
BACKENDS = {"fsdp", "fsdp2", "fsdp_turbo", "megatron", "veomni", "torchtitan", "automodel"}
# What our hook asks an engine; ``engine_config`` and ``optimizer_config`` are attributes, as is ``lr_scheduler``.
METHODS = ("get_data_parallel_group", "get_data_parallel_rank", "is_mp_src_rank_with_outputs", "forward_backward_batch")
ATTRIBUTES = ("engine_config", "optimizer_config", "lr_scheduler")


@functools.cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def installed() -> Path:
    return Path(next(iter(importlib.util.find_spec("verl").submodule_search_locations)))


@dataclass
class Class:
    """A class as its source has it, with the other classes of its file. Nothing is imported: the libraries lack."""

    tree: ast.Module
    node: ast.ClassDef
    methods: dict[str, ast.FunctionDef] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, name: str) -> Class:
        tree = parsed(path.read_text())
        node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        return cls(tree, node, {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)})

    def sets(self) -> set[str]:
        """Attributes of ``self`` that the class assigns."""
        targets = [target for node in ast.walk(self.node) if isinstance(node, ast.Assign) for target in node.targets]
        return {ast.unparse(target).removeprefix("self.") for target in targets}


def calls(node: ast.AST, name: str) -> list[ast.Call]:
    """Calls of ``name`` or of a method of that name."""
    found = [one for one in ast.walk(node) if isinstance(one, ast.Call)]
    return [call for call in found if ast.unparse(call.func).split(".")[-1] == name]


def complaints(root: Path) -> list[str]:
    """What in verl's source (``root``, the package) is not as our hook needs it."""
    folder = root / "workers" / "engine"
    classes = {name: Class.of(folder / file, class_name) for name, (file, class_name, _) in ENGINES.items()}
    found = []
    for name, one in classes.items():
        file, _, parent = ENGINES[name]
        own = {**(classes[parent].methods if parent else {}), **one.methods}
        attributes = one.sets() | (classes[parent].sets() if parent else set())
        found += [f"{name}: no {method}" for method in METHODS if method not in own]
        found += [f"{name}: no self.{attribute}" for attribute in ATTRIBUTES if attribute not in attributes]
        # The base class's train_batch and infer_batch lead to forward_backward_batch, unless a class goes its own way.
        everywhere = [item.name for item in ast.walk(one.tree) if isinstance(item, ast.FunctionDef)]
        found += [f"{name}: its own {method}" for method in ("train_batch", "infer_batch") if method in everywhere]
        # The mini-batch is cut up by the function through which our field goes, and by nothing else but Megatron's
        # scheduler, which gets it whole on every rank.
        if "forward_backward_batch" in one.methods:
            cut = one.methods["forward_backward_batch"]
            if not any("data=data" in ast.unparse(call) for call in calls(cut, "prepare_micro_batches")):
                found.append(f"{name}: forward_backward_batch does not cut with prepare_micro_batches(data=data)")
            if name == "megatron" and "scheduler.schedule(data, dcp_group" not in ast.unparse(cut):
                found.append(f"{name}: the dynamic scheduler gets something else than the mini-batch")
        # How the loss is called: Megatron in postprocess_micro_batch_func, the others in forward_step.
        if parent is None:
            losses = calls(one.tree, "loss_function")
            if not losses:
                found.append(f"{name}: loss_function is not called in {file}")
            for call in losses:
                keywords = {keyword.arg for keyword in call.keywords}
                if keywords != {"model_output", "data", "dp_group"} or call.args:
                    found.append(f"{name}: loss_function is called with {ast.unparse(call)}")
    base = Class.of(folder / "base.py", "BaseEngine")
    for method, only in (("train_batch", False), ("infer_batch", True)):
        if f"self.forward_backward_batch(data, loss_function, forward_only={only})" not in ast.unparse(
            base.methods[method]
        ):
            found.append(f"BaseEngine.{method} does not lead to forward_backward_batch")
    return found + _of_megatron(classes["megatron"]) + _of_the_package(root)


def _of_megatron(megatron: Class) -> list[str]:
    found = []
    group = ast.unparse(megatron.methods["get_data_parallel_group"])
    if "group_size=1" not in group:  # one logical replica: every rank has the whole mini-batch
        found.append("megatron: with dynamic_context_parallel the data-parallel group is no longer of one rank")
    if "return 0" not in ast.unparse(megatron.methods["get_data_parallel_rank"]):
        found.append("megatron: with dynamic_context_parallel ranks no longer get the same rows")
    if 'loss * data["num_micro_batch"]' not in ast.unparse(megatron.tree).replace("'", '"'):
        found.append("megatron: the loss is scaled in another way than by the number of micro-batches")
    return found


def _of_the_package(root: Path) -> list[str]:
    """Engines nobody has looked at, and code that trains without ``TrainingWorker.train_batch``."""
    found, backends, past_us = [], set(), set()
    for path in sorted(root.rglob("*.py")):
        text = path.read_text()
        name = path.relative_to(root).as_posix()
        if "forward_backward_batch" in text or "engine.train_batch(" in text:
            tree = parsed(text)
            reached = [call for method in ("forward_backward_batch", "train_batch") for call in calls(tree, method)]
            if any(ast.unparse(call.func).startswith("self.engine.") for call in reached):
                past_us.add(name)
        if "EngineRegistry.register(" in text:
            for call in calls(parsed(text), "register"):
                given = {keyword.arg: keyword.value for keyword in call.keywords}
                if "backend" in given and ast.literal_eval(given["model_type"]) == "language_model":
                    value = ast.literal_eval(given["backend"])
                    backends |= set(value if isinstance(value, list) else [value])
    if backends != BACKENDS:
        found.append(f"registered engines: {sorted(backends ^ BACKENDS)}")
    # The Tinker worker splits forward, backward and step: the loss stops there, unless it is to select so.
    if past_us != {"workers/engine_workers.py", "workers/engine_workers_tinker.py"}:
        found.append(f"engines are driven from {sorted(past_us)}")
    return found


def test_the_installed_engines_are_as_the_hook_needs_them():
    assert complaints(installed()) == []


ENGINE = "workers/engine/"
EDITS = [
    (ENGINE + "base.py", "self.forward_backward_batch(data, loss_function, forward_only=False)", "None", "BaseEngine"),
    (ENGINE + "torchtitan/transformer_impl.py", "model_output=model_output, data=micro_batch", "micro_batch", "called"),
    (
        ENGINE + "automodel/transformer_impl.py",
        "dp_group=self.get_data_parallel_group()\n                )",
        "dp=0\n)",
        "called",
    ),
    (
        ENGINE + "veomni/transformer_impl.py",
        "prepare_micro_batches(\n            data=data",
        "cut(\n            data=data",
        "does not cut",
    ),
    (
        ENGINE + "veomni/transformer_impl.py",
        "    def optimizer_step(self):",
        "    def train_batch(self):\n        pass\n\n    def optimizer_step(self):",
        "its own train_batch",
    ),
    (ENGINE + "megatron/transformer_impl.py", 'loss * data["num_micro_batch"]', "loss", "scaled"),
    (
        ENGINE + "megatron/transformer_impl.py",
        "scheduler.schedule(\n                data,",
        "scheduler.schedule(\n                mine,",
        "dynamic scheduler",
    ),
    (
        ENGINE + "megatron/transformer_impl.py",
        "get_dynamic_data_context_parallel_groups(group_size=1)\n        return",
        "get_data_parallel_group()\n        return",
        "of one rank",
    ),
    (
        ENGINE + "megatron/transformer_impl.py",
        "loss_function(model_output=model_output, data=data,",
        "loss_function(model_output, data,",
        "called with",
    ),
    (
        ENGINE + "torchtitan/transformer_impl.py",
        "def get_data_parallel_group(",
        "def get_group(",
        "no get_data_parallel_group",
    ),
    (ENGINE + "automodel/transformer_impl.py", "self.lr_scheduler = ", "self.schedule = ", "no self.lr_scheduler"),
    (ENGINE + "automodel/transformer_impl.py", 'backend=["automodel"]', 'backend=["nemo"]', "registered engines"),
    ("workers/engine_workers.py", "self.engine.train_batch(", "self.train_once(", "driven from"),
]


@pytest.mark.parametrize(("file", "line", "instead", "complaint"), EDITS)
def test_a_change_of_these_lines_is_noticed(tmp_path, file, line, instead, complaint):
    text = (installed() / file).read_text()
    assert line in text
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text.replace(line, instead))
    for path in [*(installed() / "workers").rglob("*.py")]:
        copy = tmp_path / path.relative_to(installed())
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    assert any(complaint in one for one in complaints(tmp_path)), complaints(tmp_path)
