"""verl's custom reward function for mathematics and code.

    reward.custom_reward_function.path=pkg://verl_cov.tasks.reward
    +reward.custom_reward_function.reward_kwargs.max_tests=10        # and the other options of `compute_score`

`extra_info.verifier` of a row says which package judges it: `math` or `code`. verl calls from many threads of its
reward workers; both verifiers work in child processes, so the workers stay light (no torch, no sympy here) and no
response can hang or harm them.

Every result has the same keys, all numbers:

| key       | meaning                                                                                      |
|-----------|----------------------------------------------------------------------------------------------|
| score     | the reward, 0 to 1; code: share of tests passed (PRIME's soft label), math: 0 or 1           |
| acc       | 1 if entirely right, else 0: what validation reports and what groups are filtered by         |
| extracted | 1 if the response has a box, or a program                                                    |
| late      | 1 if a time limit ended the judging, or one of the tests                                     |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_cov.tasks import code, math

# What verl itself passes when a reward model is on.
_PASSED_BY_VERL = {"reward_router_address", "reward_model_tokenizer"}
_FIELD = "reward.custom_reward_function.reward_kwargs"
# The options that are whole numbers, and the least that each may be.
_MINIMUM = {"max_tests": 1, "test_seconds": 1, "memory_mb": 128, "math_seconds": 1}


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    max_tests: int = code.MAX_TESTS,
    test_seconds: int = code.Limits.cpu_seconds,
    response_seconds: float = code.RESPONSE_SECONDS,
    memory_mb: int = code.Limits.memory_bytes // 2**20,
    math_seconds: int = math.CPU_SECONDS,
    **kwargs: Any,
) -> dict[str, float]:
    """Judge one response; the module lists the keys of the result.

    max_tests: how many tests of a code row count, from the first. test_seconds: CPU seconds of one test, a whole
    number; by the clock it may take five times as long. response_seconds: by the clock, all tests of a response
    together. memory_mb: MiB of one test. math_seconds: CPU seconds of one comparison by math-verify, a whole number.

    Raises ValueError naming the field for a damaged row or an option that is unknown or out of range, and
    `code.SandboxUnavailable` for a code row on a machine that cannot confine programs. No response makes it raise.
    """
    check_options(
        {
            "max_tests": max_tests,
            "test_seconds": test_seconds,
            "response_seconds": response_seconds,
            "memory_mb": memory_mb,
            "math_seconds": math_seconds,
            **kwargs,
        }
    )
    verifier = (extra_info or {}).get("verifier")
    if verifier == "math":
        answer = math.judge(solution_str, ground_truth, math_seconds)
        return _result(float(answer.right), answer.right, answer.boxed, answer.late)
    if verifier == "code":
        limits = code.Limits(cpu_seconds=test_seconds, wall_seconds=5.0 * test_seconds, memory_bytes=memory_mb * 2**20)
        program = code.judge(solution_str, ground_truth, max_tests, response_seconds, limits)
        return _result(program.score, program.passed == program.tests, program.has_program, program.late)
    raise ValueError(
        f"extra_info.verifier must be 'math' or 'code', got {verifier!r} in a row of data_source {data_source!r}: "
        "make the file with `verl-cov data prepare`, or add the field"
    )


def check_options(options: Mapping[str, object]) -> None:
    """Raise the ValueError that `compute_score` raises if one of these `reward_kwargs` is unknown or out of range."""
    unknown = sorted(map(str, options.keys() - _MINIMUM.keys() - {"response_seconds"} - _PASSED_BY_VERL))
    if unknown:
        raise ValueError(
            f"{_FIELD} has no option {', '.join(unknown)}; the options are max_tests, test_seconds, response_seconds, "
            "memory_mb and math_seconds"
        )
    for name, minimum in _MINIMUM.items():
        value = options.get(name, minimum)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"{_FIELD}.{name} must be a whole number of at least {minimum}, got {value!r}")
    seconds = options.get("response_seconds", 1)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ValueError(f"{_FIELD}.response_seconds must be a positive number, got {seconds!r}")


def _result(score: float, right: bool, extracted: bool, late: bool) -> dict[str, float]:
    return {"score": score, "acc": float(right), "extracted": float(extracted), "late": float(late)}
