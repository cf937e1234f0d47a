"""The child process of `math_verifier`: compares one answer with one gold answer by math-verify, as often as asked.

    python -m verl_cov.tasks.math_worker        # speaks `process_pool`'s frames; not for people

A request is {gold, answer, cpu_seconds, memory_bytes}, the answer {equal}. The parent kills it when it is late; beyond
that the kernel ends it when one comparison has used `cpu_seconds`.

sympy's `parse_expr` is Python's `eval`, and two ways lead to it: math-verify's extraction of plain expressions, which
is not used here, and `sympy.Number("12")`, by which the LaTeX grammar makes its numbers. So `parse_expr` is replaced
before math-verify is imported by one that takes nothing but a numeral: should text from a model ever get there, the
answer is wrong rather than executed.
"""

from __future__ import annotations

import logging
import math
import re
import resource
import sys
from functools import lru_cache
from typing import Any

from verl_cov.tasks.process_pool import read_frame, write_frame

_NUMERAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def _load() -> None:
    import sympy.parsing
    import sympy.parsing.sympy_parser
    import sympy.physics.units  # simplify() loads it, and loading it parses the names of the units

    evaluate = sympy.parsing.sympy_parser.parse_expr

    def parse_numeral(text: str, *arguments: Any, **named: Any) -> Any:
        if not _NUMERAL.fullmatch(text):
            raise ValueError("text from a model is never evaluated as Python")
        return evaluate(text, *arguments, **named)

    sympy.parsing.parse_expr = sympy.parsing.sympy_parser.parse_expr = parse_numeral
    import math_verify

    assert math_verify.parser.parse_expr is parse_numeral
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limit, SIGALRM, is off: it is


def _parse(text: str) -> list[Any]:
    """What math-verify reads in `text`: sympy expressions first, the normalised string last."""
    from math_verify import LatexExtractionConfig, parse

    extraction = [LatexExtractionConfig(boxed_match_priority=0)]
    return parse(rf"\boxed{{{text}}}", extraction_config=extraction, parsing_timeout=None)


_parse_gold = lru_cache(maxsize=256)(_parse)  # the responses to one prompt arrive together


def equal(gold: str, answer: str) -> bool:
    """Whether math-verify takes the LaTeX `answer` for `gold`. No time limit of its own."""
    from math_verify import verify

    read = _parse(answer)
    return bool(read) and verify(_parse_gold(gold), read, allow_set_relation_comp=True, timeout_seconds=None)


def _limit(resource_id: int, value: int) -> None:
    _, hard = resource.getrlimit(resource_id)
    resource.setrlimit(resource_id, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main() -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a library that prints must not write into the frames
    _limit(resource.RLIMIT_CORE, 0)
    _load()
    while (request := read_frame(requests)) is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        # Whole seconds, counted from the start of the process.
        _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + request["cpu_seconds"]))
        _limit(resource.RLIMIT_AS, request["memory_bytes"])
        try:
            verdict = equal(request["gold"], request["answer"])
        except MemoryError:
            sys.exit(1)  # what is left of the heap is not worth keeping
        except Exception:  # RecursionError, and whatever a parser does with garbage
            verdict = False
        write_frame(answers, {"equal": verdict})


if __name__ == "__main__":
    main()
