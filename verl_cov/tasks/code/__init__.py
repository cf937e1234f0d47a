"""Programs as answers: which share of its tests does the program in a response pass?

The front of this package: the other modules of `verl_cov.tasks` import from here only. Loading it takes the standard
library only, and starts no process.

    verifier.py        the program in a response, and its score
    ground_truth.py    the tests that a row of the data set carries: their format, and how each is run
    comparison.py      when an output or a value is the expected one
    sandbox.py         runs one program confined, by way of sandbox_server.py (a child process of the trainer's), which
                       forks it, and supervisor.py, which watches it
    lockdown.py        what a confined process gives up; seccomp.py: the system calls that it keeps
    driver.py          runs one test inside the sandbox; pytest_shim.py: as much of pytest as the tests use there
"""

from verl_cov.tasks.code.ground_truth import check_tests
from verl_cov.tasks.code.sandbox import Limits, Result, SandboxUnavailable, run
from verl_cov.tasks.code.verifier import MAX_TESTS, RESPONSE_SECONDS, Verdict, judge

__all__ = [
    "MAX_TESTS",
    "RESPONSE_SECONDS",
    "Limits",
    "Result",
    "SandboxUnavailable",
    "Verdict",
    "check_tests",
    "judge",
    "run",
]
