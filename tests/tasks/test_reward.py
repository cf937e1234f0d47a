"""verl's face of the verifiers: one shape of answer, from many threads, through verl's own reward manager."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
from typing import Any

import pytest

from verl_cov.tasks.reward import check_options, compute_score

KEYS = ["score", "acc", "extracted", "late"]
MATH = {"verifier": "math", "split": "train", "index": 0}
CODE = {"verifier": "code", "split": "train", "index": 0}
TRUTH = json.dumps({"kind": "stdio", "inputs": ["1", "2"], "outputs": ["1", "4"]})

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")


def program(source: str) -> str:
    return f"```python\n{source}\n```"


CASES: list[tuple[str, str, dict[str, Any], list[float]]] = [
    (r"\boxed{033}", "33", MATH, [1, 1, 1, 0]),
    (r"\boxed{34}", "33", MATH, [0, 0, 1, 0]),
    ("33", "33", MATH, [0, 0, 0, 0]),
    (r"\boxed{\sqrt{12}}", r"2\sqrt{3}", MATH, [1, 1, 1, 0]),
    (program("print(int(input()) ** 2)"), TRUTH, CODE, [1, 1, 1, 0]),
    (program("print(input())"), TRUTH, CODE, [0.5, 0, 1, 0]),
    (program("print(0)"), TRUTH, CODE, [0, 0, 1, 0]),
    ("print(1)", TRUTH, CODE, [0, 0, 0, 0]),
]


@needs_linux
@pytest.mark.parametrize(("response", "truth", "extra", "expected"), CASES)
def test_answers(response: str, truth: str, extra: dict[str, Any], expected: list[float]):
    answer = compute_score("x", response, truth, extra)
    assert answer == dict(zip(KEYS, expected, strict=True))
    assert list(answer) == KEYS
    assert all(type(value) is float for value in answer.values())


@needs_linux
def test_late():
    monster = compute_score("x", r"\boxed{9^{9^{9^{9}}}}", "x+1", MATH, math_seconds=1)
    assert list(monster.values()) == [0, 0, 1, 1]
    loop = compute_score("x", program("if input() == '2':\n    while 1: pass\nprint(1)"), TRUTH, CODE, test_seconds=1)
    assert list(loop.values()) == [0.5, 0, 1, 1]


@pytest.mark.parametrize("extra", [None, {}, {"verifier": None}, {"verifier": "maths"}, {"split": "train"}])
def test_a_row_without_a_verifier_is_refused(extra: dict[str, Any] | None):
    with pytest.raises(ValueError, match=r"extra_info\.verifier.*gsm8k"):
        compute_score("gsm8k", r"\boxed{5}", "5", extra)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tests": 0},
        {"max_tests": "10"},
        {"test_seconds": 0.5},
        {"test_seconds": True},
        {"memory_mb": 127},
        {"memory_mb": True},
        {"math_seconds": None},
        {"response_seconds": 0},
        {"response_seconds": -1},
        {"response_seconds": "30"},
        {"response_seconds": float("nan")},
        {"tests": 5},
        {"max_test": 5, "max_tests": 0},
    ],
)
@pytest.mark.parametrize("extra", [MATH, CODE])
def test_options_are_refused_beforehand_as_they_are_at_run_time(extra: dict[str, Any], options: dict[str, Any]):
    with pytest.raises(ValueError, match=r"^reward\.custom_reward_function\.reward_kwargs") as before:
        check_options(options)
    with pytest.raises(ValueError, match=next(iter(options))) as at_run_time:
        compute_score("x", "", TRUTH, extra, **options)
    assert str(before.value) == str(at_run_time.value)


def test_options_that_compute_score_takes_pass_the_check():
    check_options({})
    check_options(
        {
            name: one.default
            for name, one in inspect.signature(compute_score).parameters.items()
            if one.kind is one.KEYWORD_ONLY
        }
    )
    check_options({"max_tests": 1, "test_seconds": 1, "response_seconds": 0.5, "memory_mb": 128, "math_seconds": 1})
    check_options({"reward_router_address": "a", "reward_model_tokenizer": None})
    with pytest.raises(ValueError, match="no option extra_info"):  # verl would put it over every row's own
        check_options({"extra_info": {}})


@pytest.mark.parametrize("module", ["reward", "countdown"])
def test_a_reward_worker_imports_nothing_heavy(module: str):
    heavy = {"torch", "sympy", "numpy", "verl", "ray", "pyarrow", "transformers"}
    code = f"import sys, verl_cov.tasks.{module}; print(sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@needs_linux
class TestVerl:
    """The function as verl loads it, in verl's reward manager, with a tokenizer of bytes."""

    @pytest.fixture(scope="class")
    def manager(self):
        pytest.importorskip("verl")
        from omegaconf import OmegaConf
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
        from verl.trainer.ppo.reward import load_reward_manager

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        function = {
            "path": "pkg://verl_cov.tasks.reward",
            "name": "compute_score",
            "reward_kwargs": {"max_tests": 5, "test_seconds": 2},
        }
        config = OmegaConf.create(
            {"reward": {"custom_reward_function": function, "reward_manager": {"source": "register", "name": "naive"}}}
        )
        return load_reward_manager(config, PreTrainedTokenizerFast(tokenizer_object=tokenizer))

    @staticmethod
    def row(manager: Any, response: str, truth: str, extra: dict[str, Any]) -> Any:
        import numpy as np
        import torch
        from verl import DataProto

        ids = manager.tokenizer(response)["input_ids"]
        padded = [*ids, *[0] * (400 - len(ids))]
        mask = [1] * (4 + len(ids)) + [0] * (400 - len(ids))

        def one(value: Any) -> Any:
            array = np.empty(1, dtype=object)
            array[0] = value
            return array

        return DataProto.from_dict(
            tensors={"responses": torch.tensor([padded]), "attention_mask": torch.tensor([mask])},
            non_tensors={
                "data_source": one("x"),
                "reward_model": one({"style": "rule", "ground_truth": truth}),
                "extra_info": one(dict(extra)),
            },
        )

    def test_a_batch(self, manager: Any):
        assert type(manager).__name__ == "NaiveRewardManager"
        rows = [self.row(manager, *case[:3]) for case in CASES * 4]

        async def batch() -> list[dict[str, Any]]:
            return await asyncio.gather(*(manager.run_single(row) for row in rows))

        results = manager.loop.run_until_complete(batch())
        for result, case in zip(results, CASES * 4, strict=True):
            assert result["reward_score"] == case[3][0]
            assert result["reward_extra_info"] == dict(zip(KEYS, case[3], strict=True))

    def test_an_option_that_is_misspelt_is_named(self):
        from omegaconf import OmegaConf
        from verl.trainer.ppo.reward import get_custom_reward_fn

        function = {"path": "pkg://verl_cov.tasks.reward", "name": "compute_score", "reward_kwargs": {"tests": 5}}
        score = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))
        with pytest.raises(ValueError, match="no option tests"):
            score(data_source="x", solution_str="", ground_truth="5", extra_info=MATH)
