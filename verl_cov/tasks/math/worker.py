"""The child process of `verifier`: compares answers with gold answers by math-verify, one pair per request.

    python -m verl_cov.tasks.math.worker        # speaks `process_pool`'s frames; not for people

A request is {gold, answer, cpu_seconds, memory_bytes, idle_bytes}, the reply {equal}. The parent kills a worker that is
late; the kernel kills it when one comparison has used `cpu_seconds`. A worker that has more than `idle_bytes` after its
reply starts afresh, in the same process.

sympy's `parse_expr` calls Python's `eval`, and two ways lead to it: math-verify's extraction of plain expressions,
which is not used here, and `sympy.Number("12")`, by which the LaTeX grammar makes its numbers. So before math-verify is
imported, `parse_expr` is replaced by a function that takes nothing but a numeral: should text from a model ever get
there, the answer is wrong and nothing is executed.

math-verify reads the text and compares expressions, relations and sets. Where it is too generous, this module decides:
its grammar takes N for n and drops a trailing letter as a unit, any equation stands for its last side, and lists are
compared as sets, whatever their brackets say.
"""

from __future__ import annotations

import logging
import math
import os
import re
import resource
import sys
from functools import lru_cache, partial
from typing import Any

from verl_cov.tasks.process_pool import die_first, read_frame, write_frame

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
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    math_verify.parser.latex2sympy = partial(latex2sympy, conversion_config=ConversionConfig(lowercase_symbols=False))
    last_side = math_verify.parser.get_last_eq  # what it reads of a chain of equations that it cannot parse
    math_verify.parser.get_last_eq = lambda text: last_side(text) if re.match(r"\s*[A-Za-z]", text) else text
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off, as intended


_INEQUALITY = re.compile(r"[<>≤≥≠]|\\(?:leq?|geq?|lt|gt|neq?)(?![A-Za-z])")
_OR, _AND = (
    re.compile(rf"\\text\s*\{{\s*{word}\s*\}}|\b{word}\b|\\(?:{signs})(?![A-Za-z])")
    for word, signs in (("or", "lor|vee"), ("and", "land|wedge"))
)


def _read(text: str) -> list[Any]:
    """What math-verify reads in `text`: a sympy expression first, the normalised string last."""
    from math_verify import LatexExtractionConfig, parse
    from math_verify.parser import NormalizationConfig

    # units: any of c, d, g, h, l, m, s, t, ab, bc at the end would be one. `verifier` has dropped the real ones.
    normal = NormalizationConfig(units=False, malformed_operators=True, nits=True)
    extraction = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=normal)]
    return parse(rf"\boxed{{{text}}}", extraction_config=extraction, parsing_timeout=None)


def _parse(text: str) -> list[Any]:
    """`_read`, with inequalities joined by "or" or "and" as `x \\in` their set, where math-verify makes a list."""
    import sympy
    from math_verify.grader import is_relation

    text = re.sub(r"\\varnothing(?![A-Za-z])", r"\\emptyset", text)
    for joint, together in ((_OR, sympy.Union), (_AND, sympy.Intersection)):
        pieces = joint.split(text)
        if len(pieces) == 1 or not _INEQUALITY.search(text):
            continue
        parts = [part for piece in pieces for part in _read(piece)[:1]]
        if len(parts) == len(pieces) and all(isinstance(part, sympy.Basic) and is_relation(part) for part in parts):
            symbols = set().union(*(part.free_symbols for part in parts))
            if len(symbols) == 1:
                return [sympy.Eq(symbols.pop(), together(*(part.as_set() for part in parts)), evaluate=False)]
    return _read(text)


_parse_gold = lru_cache(maxsize=256)(_parse)  # the responses to one prompt arrive together


def equal(gold: str, answer: str) -> bool:
    """Whether the LaTeX `answer` equals the LaTeX `gold`. Has no time limit of its own."""
    return any(_same(one, other) for other in _parse(answer) for one in _parse_gold(gold))


def _same(gold: Any, answer: Any) -> bool:
    from math_verify import grader
    from sympy import Basic, Eq, FiniteSet, Set, Tuple

    if not isinstance(gold, Basic) or not isinstance(answer, Basic):  # strings, matrices
        return _verify(gold, answer)
    if grader.is_equation(answer):
        if not _holds(answer):
            return False
        if not grader.is_equation(gold):
            if not _names(grader.take_first_relation(answer).lhs):
                return False
            answer = grader.take_last_relation(answer).rhs
        elif isinstance(answer, Eq) and isinstance(gold, Eq) and isinstance(gold.rhs, (Set, Tuple)):
            return _verify(gold.lhs, answer.lhs) and _same(gold.rhs, answer.rhs)
    elif grader.is_assignment_relation(gold):
        gold = grader.take_last_relation(gold).rhs
    if isinstance(gold, (FiniteSet, Tuple)) or isinstance(answer, (FiniteSet, Tuple)):
        several, others = _elements(gold), _elements(answer)
        if several is not None and others is not None:
            unordered = isinstance(gold, FiniteSet) and isinstance(answer, FiniteSet)
            return _same_elements(several, others, ordered=not unordered)
    return _verify(gold, answer)


def _verify(gold: Any, answer: Any) -> bool:
    """math-verify's comparison, with `i` as the imaginary unit, and symbols that differ in case kept apart."""
    from math_verify import verify
    from sympy import Expr, I, Symbol

    if isinstance(gold, Expr) and isinstance(answer, Expr):
        gold, answer = (
            side.xreplace({symbol: I for symbol in side.free_symbols if symbol.name == "i"}) for side in (gold, answer)
        )
    if isinstance(gold, Symbol) and isinstance(answer, Symbol):
        return gold.name == answer.name
    return verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None)


def _holds(equation: Any) -> bool:
    """False if an equation, or a link of a chain of them, says that two different numbers are equal: `8=7`."""
    from sympy import E, Eq, EulerGamma, I

    links = [equation] if isinstance(equation, Eq) else equation._unsorted_args
    return all(
        _verify(link.lhs, link.rhs)
        for link in links
        # Constants alone are names: I = \\int ...
        if _is_number(link.lhs) and _is_number(link.rhs) and link.lhs not in (I, E, EulerGamma)
    )


def _is_number(side: Any) -> bool:
    from sympy import Expr
    from sympy.core.function import AppliedUndef

    return isinstance(side, Expr) and not side.free_symbols and not side.has(AppliedUndef)


def _names(side: Any) -> bool:
    """Whether `side = 5` can stand for 5: x, A/a, m+n, f(2), \\text{Area}, and numbers; not 2x or x^2."""
    from latex2sympy2_extended import is_expr_of_only_symbols
    from sympy import Dummy
    from sympy.core.function import AppliedUndef, Derivative

    plain = side.replace(lambda part: isinstance(part, (AppliedUndef, Derivative)), lambda part: Dummy())
    return _is_number(side) or is_expr_of_only_symbols(plain)


def _elements(value: Any) -> list[Any] | None:
    """The elements of a list, set or tuple; an expression is its own only element; None for anything else.

    math-verify reads `(1,2)` as an open interval, which counts as a tuple here.
    """
    from sympy import Expr, FiniteSet, Interval, Tuple
    from sympy.core.relational import Relational

    if isinstance(value, FiniteSet):
        parts = getattr(value, "_unsorted_args", value.args)  # as written, repetitions too
        return [inner for part in parts for inner in (isinstance(part, FiniteSet) and _elements(part)) or [part]]
    if isinstance(value, Tuple):
        return list(value.args)
    if isinstance(value, Interval) and value.left_open and value.right_open:
        return [value.start, value.end]
    return [value] if isinstance(value, (Expr, Relational)) else None


def _same_elements(gold: list[Any], answer: list[Any], ordered: bool) -> bool:
    """Whether the two have the same elements, each as often.

    Bare values for `x=1, y=2` must come in its order, since nothing else says which is which.
    """
    from math_verify.grader import is_assignment_relation, is_equation

    if len(gold) != len(answer):
        return False
    names = {part.lhs for part in gold if is_assignment_relation(part)}
    if ordered or (len(names) > 1 and not any(map(is_equation, answer))):
        return all(map(_same, gold, answer))
    left = list(answer)
    for part in gold:
        match = next((index for index, other in enumerate(left) if _same(part, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def _limit(resource_id: int, value: int) -> None:
    _, hard = resource.getrlimit(resource_id)
    resource.setrlimit(resource_id, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a library that prints must not write into the frames
    _limit(resource.RLIMIT_CORE, 0)
    die_first()
    _load()
    while (request := read_frame(requests)) is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        # Whole seconds, counted from the start of the process.
        _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + request["cpu_seconds"]))
        _limit(resource.RLIMIT_AS, request["memory_bytes"])
        try:
            verdict = equal(request["gold"], request["answer"])
        except MemoryError:
            sys.exit(1)  # the parent starts a fresh worker
        except Exception:  # RecursionError, and whatever a parser raises on garbage
            verdict = False
        write_frame(answers, {"equal": verdict})
        if _resident_bytes() > request["idle_bytes"]:
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))  # loading takes longer than what may be left
            os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    main()
