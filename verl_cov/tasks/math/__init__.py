"""Mathematical answers: is what a response puts in its last `\\boxed{}` the gold answer?

The front of this package: the other modules of `verl_cov.tasks` import from here only. Loading it takes the standard
library only, and starts no process.

    verifier.py    finds the box, compares numbers and words, and hands everything else to a child process
    worker.py      that child: compares expressions by math-verify and sympy
"""

from verl_cov.tasks.math.verifier import CPU_SECONDS, MATH_VERIFY, Verdict, judge, last_boxed, verify

__all__ = ["CPU_SECONDS", "MATH_VERIFY", "Verdict", "judge", "last_boxed", "verify"]
