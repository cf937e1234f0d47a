"""verl's custom reward function for mathematics and code.

    reward.custom_reward_function.path=pkg://verl_cov.tasks.reward
    +reward.custom_reward_function.reward_kwargs.max_tests=10        # and the other options of `compute_score`

`extra_info.verifier` of a row says who judges it: `math` (`math_verifier`) or `code` (`code_verifier`). verl calls
from many threads of its reward workers; both verifiers work in child processes, so the workers stay light (no torch, no
sympy here) and no response can hang or harm them.

Every answer has the same keys, all numbers:

| key       | meaning                                                                                      |
|-----------|----------------------------------------------------------------------------------------------|
| score     | the reward, 0 to 1; code: share of the passed tests (PRIME's soft label), math: 0 or 1       |
| acc       | 1 if entirely right, else 0: what validation reports and what groups are filtered by         |
| extracted | 1 if the response has a box, or a program                                                    |
| late      | 1 if a limit of time ended the judging, or one of the tests                                  |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_cov.tasks import code_verifier, math_verifier, sandbox

# What verl itself passes when a reward model is on.
_VERLS = {"reward_router_address", "reward_model_tokenizer"}
_FIELD = "reward.custom_reward_function.reward_kwargs"
_LEAST = {"max_tests": 1, "test_seconds": 1, "memory_mb": 128, "math_seconds": 1}  # of the whole numbers


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    max_tests: int = code_verifier.MAX_TESTS,
    test_seconds: int = sandbox.Limits.cpu_seconds,
    response_seconds: float = code_verifier.RESPONSE_SECONDS,
    memory_mb: int = sandbox.Limits.memory_bytes // 2**20,
    math_seconds: int = math_verifier.CPU_SECONDS,
    **kwargs: Any,
) -> dict[str, float]:
    """Judge one response; see the module for the answer.

    max_tests: tests of a code row that count, the first ones. test_seconds: CPU seconds of one, whole; it may take five
    times as long on the clock. response_seconds: on the clock, of all tests of a response. memory_mb: MiB of one test.
    math_seconds: CPU seconds of one comparison by math-verify, whole.

    Raises ValueError naming the field for a damaged row or an option that is unknown or out of range, and
    `sandbox.SandboxUnavailable` for a code row on a machine that cannot confine programs. Never for a response.
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
        answer = math_verifier.judge(solution_str, ground_truth, math_seconds)
        return _answer(float(answer.right), answer.right, answer.boxed, answer.late)
    if verifier == "code":
        limits = sandbox.Limits(
            cpu_seconds=test_seconds, wall_seconds=5.0 * test_seconds, memory_bytes=memory_mb * 2**20
        )
        verdict = code_verifier.judge(solution_str, ground_truth, max_tests, response_seconds, limits)
        return _answer(verdict.score, verdict.passed == verdict.tests, verdict.program, verdict.late)
    raise ValueError(
        f"extra_info.verifier must be 'math' or 'code', got {verifier!r} in a row of data_source {data_source!r}: "
        "build the file with verl-cov's data command, or add the field"
    )


def check_options(options: Mapping[str, Any]) -> None:
    """Raise the ValueError that :func:`compute_score` raises for these `reward_kwargs`: an option is unknown or out of
    range."""
    unknown = sorted(map(str, options.keys() - _LEAST.keys() - {"response_seconds"} - _VERLS))
    if unknown:
        raise ValueError(
            f"{_FIELD} has no option {', '.join(unknown)}; there are max_tests, test_seconds, response_seconds, "
            "memory_mb and math_seconds"
        )
    for name, least in _LEAST.items():
        value = options.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{_FIELD}.{name} must be a whole number of at least {least}, got {value!r}")
    seconds = options.get("response_seconds", 1)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ValueError(f"{_FIELD}.response_seconds must be a positive number, got {seconds!r}")


def _answer(score: float, right: bool, extracted: bool, late: bool) -> dict[str, float]:
    return {"score": score, "acc": float(right), "extracted": float(extracted), "late": float(late)}
