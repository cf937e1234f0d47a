"""What verl's engines read from a batch: the forward of ours for ``cov_log_prob=current`` must decide on each of it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import verl.workers.engine

from tests.hooks import engine
from tests.hooks.test_invariance import CLIP, KL, WIDE, relative
from verl_cov.hooks.train_batch import FORWARD_FLAGS

# What that forward takes over from the update, because it must be the same forward of the same rows.
SAME_AS_IN_THE_UPDATE = {
    # the rows, and how they are laid out and cut
    *("input_ids", "position_ids", "attention_mask", "loss_mask", "response_mask", "multi_modal_inputs", "temperature"),
    *("pad_mode", "pad_token_id", "use_remove_padding", "max_response_length", "force_group_size"),
    *("use_dynamic_bsz", "max_token_len_per_gpu", "micro_batch_size_per_gpu", "use_fused_kernels"),
    # routes of the experts that were recorded at the rollout, as verl's own compute_log_prob replays them
    *("enable_routing_replay", "routed_experts"),
    # the engine's own: it sets them before it reads them
    *("sp_size", "dp_size", "batch_num_tokens", "routed_num_tokens", "num_micro_batch", "record_r2_routes"),
    *("forced_max_seqlen", "local_cp_size", "DCP_PADDING_MASK", "DCP_SAMPLE_IDS", "DCP_GROUP_LEADER"),
    "DCP_LOCAL_NUM_TOKENS",
    # read only with distillation_use_topk, or only in a backward pass
    *("teacher_ids", "teacher_logprobs", "return_model_output"),
}
BATCHES = {"data", "batch", "micro_batch", "micro_batch_td", "tensordict"}


def fields_read(tree: ast.AST) -> Iterator[str]:
    """What code reads from a batch: ``tu.get*(batch, key=...)``, ``batch.get``, ``batch[...]`` and ``... in batch``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = getattr(node.func.value, "id", None)
            if of == "tu" and node.func.attr in ("get", "get_non_tensor_data", "pop"):
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                yield name(given.get("key", node.args[-1] if node.args else None))
            elif of in BATCHES and node.func.attr in ("get", "pop"):
                yield name(node.args[0])
        elif isinstance(node, ast.Subscript) and getattr(node.value, "id", None) in BATCHES:
            if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
                yield node.slice.value
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In):
            of = node.comparators[0]
            of = of.func.value if isinstance(of, ast.Call) and isinstance(of.func, ast.Attribute) else of
            if getattr(of, "id", None) in BATCHES:
                yield name(node.left)


def name(node: ast.AST | None) -> str:
    assert isinstance(node, ast.Constant | ast.Name), ast.dump(node) if node else None
    return str(node.value if isinstance(node, ast.Constant) else node.id)


def test_every_flag_that_an_engine_reads_is_switched_off_or_kept_on_purpose():
    read: dict[str, str] = {}
    for source in sorted(Path(verl.workers.engine.__file__).parent.rglob("*.py")):
        read |= dict.fromkeys(fields_read(ast.parse(source.read_text())), source.parent.name)
    assert len(read) > 20, "the engines read a batch in another way: this test sees nothing"
    undecided = {field: where for field, where in read.items() if field not in SAME_AS_IN_THE_UPDATE | {*FORWARD_FLAGS}}
    assert not undecided, "add each to FORWARD_FLAGS in hooks/train_batch.py, or above"


TEACHER = 4
DISTILLATION = "distillation."
TOP_K = (
    *WIDE,
    f"{DISTILLATION}enabled=True",
    *(f"{DISTILLATION}{setting}" for setting in ("nnodes=1", "n_gpus_per_node=2", "distillation_loss.topk=4")),
    f"{DISTILLATION}distillation_loss.loss_mode=forward_kl_topk",
    f"{DISTILLATION}teacher_models.teacher_model.model_path=x",
    "actor_rollout_ref.rollout.prompt_length=32",
    "actor_rollout_ref.rollout.response_length=32",
)


def with_a_teacher(rows, choices: int = TEACHER) -> None:
    random = np.random.default_rng(5)
    for row in rows:
        tokens = len(row["prompt"]) + len(row["response"])
        row["teacher_ids"] = random.integers(0, 200, (tokens, choices))
        row["teacher_logprobs"] = (-random.exponential(1.0, (tokens, choices)) - 4).astype(np.float32)


def test_current_log_probs_select_the_same_with_top_k_distillation(untrained_model):
    variants = {"current": {**KL, "cov_log_prob": "current"}}
    layouts = (engine.Layout("whole"), engine.Layout("micro-batches of 4", micro=4))
    alone = engine.run(engine.Spec(str(untrained_model), WIDE, layouts[:1], variants=variants))["current", 0, "whole"]
    flags = {"distillation_use_topk": True, "distillation_only": False}
    spec = engine.Spec(str(untrained_model), TOP_K, layouts, variants=variants, extra=flags, edit=with_a_teacher)
    found = engine.run(spec)
    for layout in layouts:
        report = found["current", 0, layout.name]
        assert report.selected == alone.selected, layout.name
        assert report.metrics["actor/cov/overlap_old"] == alone.metrics["actor/cov/overlap_old"]
        # The teacher's loss is there: the update itself kept its flags.
        assert relative(report.gradient, alone.gradient) > 1e-3


def test_a_policy_loss_that_verl_throws_away_counts_as_no_change(untrained_model):
    losses = f"{DISTILLATION}distillation_loss."
    settings = (f"{losses}use_policy_gradient=True", f"{losses}loss_mode=k1")
    found = {}
    for task_rewards in (True, False):
        overrides = (*TOP_K, *settings, f"{losses}use_task_rewards={task_rewards}")
        edit = functools.partial(with_a_teacher, choices=1)
        layouts = (engine.Layout("whole"),)
        spec = engine.Spec(str(untrained_model), overrides, layouts, variants={"kl": KL, "clip": CLIP}, edit=edit)
        found[task_rewards] = engine.run(spec)
    for task_rewards, reports in found.items():
        for report in reports.values():
            assert report.metrics["actor/cov/selected_tokens"] > 0
            assert (report.metrics["actor/cov/changed_gradient_frac"] > 0) == task_rewards
