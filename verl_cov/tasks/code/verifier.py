"""Programs: which share of its tests does the program in the response pass?

The program is the last closed ```python block of the response, else the last closed block; without one nothing is run.
`ground_truth` has the tests, and says when each is passed.

The score is soft: passed tests / tests, as in PRIME (Cui et al. 2025, section 2). Only the first `max_tests` count (10,
as in PRIME's verifier). `response_seconds` bounds all tests of a response together, and once `MAX_LATE` tests have hit
their own limit no more are run; tests that were not run count as failed.

Reward hacking. For stdio and call the expected outputs never enter the sandbox: the program cannot know them. For
asserts and pytest they must, in the program's own process. Exiting early (`sys.exit(0)`, `os._exit(0)`), printing a
verdict and replacing builtins do not pass: the verdict carries a secret that is drawn for this one run, and `driver`
binds what it uses before the program runs. But a program can pass by objects that are equal to everything, by replacing
what a test uses, or by searching its own process's memory for the secret. A policy that learns this shows as a training
score that held-out `stdio` tests do not share: watch for it, or convert tests to `call`.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, replace

from verl_cov.tasks.code.ground_truth import load_tests
from verl_cov.tasks.code.sandbox import Limits

MAX_TESTS = 10
MAX_LATE = 3  # tests of a response that hit their own time limit: after them the rest is not run
RESPONSE_SECONDS = 30.0  # wall time of all tests of a response


@dataclass(frozen=True)
class Verdict:
    """How a response did: `passed` of the `tests` that count.

    has_program: the response has a program. late: a time limit ended a test.
    """

    passed: int
    tests: int
    has_program: bool
    late: bool = False

    @property
    def score(self) -> float:
        return self.passed / self.tests


def judge(
    response: str,
    ground_truth: str,
    max_tests: int = MAX_TESTS,
    response_seconds: float = RESPONSE_SECONDS,
    limits: Limits | None = None,
) -> Verdict:
    """Run the tests of `ground_truth` on the program in `response`. `limits` are those of one test.

    Every response gets a verdict. Raises ValueError for a damaged ground truth or an option out of range, and
    SandboxUnavailable where programs cannot be confined. Thread-safe.
    """
    if not isinstance(max_tests, int) or max_tests < 1:
        raise ValueError(f"max_tests must be a whole number of at least 1, got {max_tests!r}")
    if not response_seconds > 0:
        raise ValueError(f"response_seconds must be positive, got {response_seconds!r}")
    tests = load_tests(ground_truth)[:max_tests]
    program = extract_program(response)
    if program is None:
        return Verdict(0, len(tests), has_program=False)
    limits = limits or Limits()
    passed, late, spent = 0, 0, 0.0
    for run in tests:
        remaining = response_seconds - spent
        if late == MAX_LATE:
            break
        if remaining <= 0:
            late += 1
            break
        result, right = run(program, replace(limits, wall_seconds=min(limits.wall_seconds, remaining)))
        passed += right
        late += result.status == "timeout"
        spent += result.wall_seconds
    return Verdict(passed, len(tests), has_program=True, late=late > 0)


_FENCE = re.compile(r"[ \t]*(`{3,})[ \t]*([^`\n]*)")


def extract_program(response: str) -> str | None:
    """The last closed fenced block that says it is Python, else the last closed block, else None."""
    python, other = None, None
    fence, language = "", ""
    lines: list[str] = []
    for line in response.splitlines():
        match = _FENCE.match(line)
        if not fence:
            if match:
                fence, language, lines = match[1], match[2].strip().lower(), []
        elif match and match[1].startswith(fence) and not match[2].strip():
            block = textwrap.dedent("\n".join(lines)) + "\n"
            if re.match(r"(?:python|py)\d?(?:\.\d+)?\b", language):
                python = block
            else:
                other = block
            fence = ""
        else:
            lines.append(line)
    return other if python is None else python
