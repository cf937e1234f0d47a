r"""Judges a mathematical answer: is what the response puts in its last `\boxed{}` the gold answer?

    verify(r"... so the answer is \boxed{\frac{1}{2}}", "1/2")      # True

Only the last box counts: a response without a box, or whose last box is never closed, is wrong, whatever is outside.
The first of these rules that applies decides:

1. The same characters, apart from spaces, `$`, `\left`, `\,`, `\dfrac` and the like: right.
2. Both are numbers (integers, decimals, fractions and mixed numbers, powers of ten; thousands separators, units, degree
   and currency signs are dropped): right if equal as exact rationals. Where a decimal is involved and the gold answer
   is not an integer, a relative error of 1e-4 is allowed, as in PRIME's grader (Cui et al. 2025). `033` is 33. If one
   side has a percent sign, it is read as written or divided by 100, so 10 and 0.1 are both 10%. Subscripted bases must
   agree if both are given.
3. The gold answer is words (`\text{Monday}`, `(A)`, five letters or more): right if the same words, in any case.
4. The answer is longer than `LONGEST`: wrong. A gold answer has a few dozen characters.
5. Otherwise math-verify 0.8 or 0.9 decides, by its LaTeX grammar and sympy: expressions, equations (`x=3` is 3),
   intervals, sets, tuples, matrices. Answers separated by commas, `and` or `or` match in any order, and all must be
   given. A set given as relations matches its interval.

Rules 1 to 4 take microseconds and no process. Rule 5 runs in a few persistent children (`worker`), because its time
limit must work in threads: math-verify's own needs signals, which only the main thread gets. A child that is late is
killed and the answer counts as wrong; text from a model is never evaluated as Python.

Needs only the standard library; sympy is loaded in the children.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from fractions import Fraction

from verl_cov.tasks.node_places import NodePlaces
from verl_cov.tasks.process_pool import ChildFailed, ProcessPool, usable_cpus

MATH_VERIFY = ">=0.8,<0.10"  # as in pyproject.toml: the child replaces parts of it, and 0.7 judges otherwise
LONGEST = 1000  # characters; longer answers are not given to math-verify
CPU_SECONDS = 3  # of one comparison; whole seconds, since the kernel counts in seconds
RELATIVE_TOLERANCE = Fraction(1, 10_000)
POOL_SIZE = min(4, usable_cpus())  # children of each reward worker, of which verl has eight
# What the children may take together on a node: those at work, NODE_CHILDREN of all reward workers', MEMORY_BYTES each;
# the others IDLE_BYTES each. With verl's eight workers 12 GiB at worst, for answers made to be costly; 70 MiB each as a
# rule.
NODE_CHILDREN = min(8, usable_cpus())
MEMORY_BYTES = 2**30
IDLE_BYTES = 2**27  # a child that has grown beyond it starts afresh


@dataclass(frozen=True)
class Verdict:
    """How a response did. boxed: it has a box. late: math-verify ran out of time, so the answer counts as wrong."""

    right: bool
    boxed: bool
    late: bool = False


def verify(response: str, gold: str, cpu_seconds: int = CPU_SECONDS) -> bool:
    """Whether `response` boxes the answer `gold`. Every response gets a verdict; the module says what is right."""
    return judge(response, gold, cpu_seconds).right


def judge(response: str, gold: str, cpu_seconds: int = CPU_SECONDS) -> Verdict:
    """`verify` with the reasons. `cpu_seconds`, a whole number of at least 1, bounds one comparison by math-verify.

    Raises ValueError for an empty gold answer: a damaged data set must not silently score 0. Thread-safe.
    """
    if not isinstance(gold, str) or not _light(gold):
        raise ValueError(f"reward_model.ground_truth must be the answer as text, got {gold!r}: repair the data set")
    answer = last_boxed(response)
    if answer is None:
        return Verdict(right=False, boxed=False)
    try:
        return Verdict(_equal(answer, gold, cpu_seconds), boxed=True)
    except ChildFailed as failure:
        return Verdict(right=False, boxed=True, late=failure.late)


# --- the box ----------------------------------------------------------------------------------------------------------

_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")


def last_boxed(response: str) -> str | None:
    r"""The content of the last `\boxed{...}` (or `\fbox{...}`), braces balanced; None without one, or if it stays open.

    Of nested boxes the inner one is the last. `\{` and `\}` are not braces. Linear in the length of the response.
    """
    boxes = list(_BOX.finditer(response))
    if not boxes:
        return None
    depth, position = 1, boxes[-1].end()
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(response, position):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return response[position : match.start()].strip()
    return None


# --- light comparison -------------------------------------------------------------------------------------------------

# What changes the look of an answer and not its meaning.
# The lookbehind: two backslashes end a row of a matrix.
_LOOKS = re.compile(
    r"(?<!\\)\\(?:(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|quad|qquad)(?![A-Za-z])|[,!;: ])|\\?\$|~"
)
_FRACTION_STYLES = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_MIXED = re.compile(r"(?<![\d.,/^_])(\d+)(?:\s|\\[,;: ]|~)+(\d{1,2})\s*/\s*(\d{1,3})(?!\d)")  # 2 1/2, which is not 21/2
_APPROXIMATELY = re.compile(r"^(?:\\(?:approx|sim|simeq)(?![A-Za-z])|≈)")
_THOUSANDS = re.compile(r"(?<=\d)\{,\}(?=\d{3})")


def _light(text: str) -> str:
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _FRACTION_STYLES.sub(r"\\frac", _THOUSANDS.sub(",", _LOOKS.sub("", text)))
    text = text.replace("\u2212", "-").strip()
    return _APPROXIMATELY.sub("", text).removesuffix(".").strip()


def _equal(answer: str, gold: str, cpu_seconds: int) -> bool:
    answer, gold = _light(answer), _light(gold)
    if re.sub(r"\s", "", answer) == re.sub(r"\s", "", gold):
        return True
    if len(answer) > LONGEST:
        return False
    number, gold_number = _number(answer), _number(gold)
    if number is not None and gold_number is not None:
        return _equal_numbers(number, gold_number)
    words = _words(gold)
    if words is not None:
        return words in (_words(answer, in_text=True), _choice(answer))
    # Between two numbers the percent sign has been dealt with; math-verify's grammar does not read one by itself.
    answer, gold = (re.sub(r"\\?%", "", _UNIT.sub("", text) or text) for text in (answer, gold))
    request = {"gold": gold, "answer": answer, "cpu_seconds": cpu_seconds, "memory_bytes": MEMORY_BYTES}
    request["idle_bytes"] = IDLE_BYTES
    # The kernel limits the child's CPU seconds; this limit is for a machine whose cores are all busy.
    return _POOL.call(request, seconds=5 * cpu_seconds + 10)["equal"]


# --- numbers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Number:
    value: Fraction
    decimal: bool = False  # written with a point or a power of ten
    percent: bool = False
    base: str | None = None


_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,200})"  # int() of more than 4,300 digits raises
_DECIMAL = rf"(?P<decimal>{_DIGITS}\.?\d{{0,200}}|\.\d{{1,200}})"
_POWER = r"(?:\s*(?:[eE]|(?:\\times|\\cdot|\*|×)\s*10\s*(?:\^|\*\*))\s*\{?\s*(?P<exponent>[+-]?\d{1,3})\s*\}?)?"
_SUBSCRIPT = r"(?:_\{?(?P<base>\d{1,2})\}?)?"
_SLASH = rf"(?P<above>{_DIGITS})\s*/\s*(?P<below>{_DIGITS})"
_FRAC = (  # \frac{1}{2}, \frac12, 1\frac{1}{2}
    rf"(?P<whole>{_DIGITS})?\s*\\frac\s*(?:\{{\s*(?P<minus>-)?\s*(?P<top>{_DIGITS})\s*\}}|(?P<top_digit>\d))\s*"
    rf"(?:\{{\s*(?P<bottom>{_DIGITS})\s*\}}|(?P<bottom_digit>\d))"
)
_NUMBER = re.compile(rf"(?P<sign>[+-]?)\s*(?:{_DECIMAL}{_POWER}{_SUBSCRIPT}|{_SLASH}|{_FRAC})")
_UNIT_WORDS = (  # no single letters, which can be symbols
    r"(?<![A-Za-z\\])(?:(?:square|cubic|sq)\s+)?(?:dollar|cent|degree|unit|inch|inche|yard|mile|meter|metre|centimeter|"
    r"millimeter|kilometer|gram|kilogram|pound|liter|litre|gallon|second|minute|hour|day|week|month|year|people|student|"
    r"way|feet|foot|ft|cm|mm|km|kg|mph)s?(?![A-Za-z])(?:\s*\^\s*\{?[23]\}?)?"
)
_UNIT = re.compile(  # at the end: \text{ cm}^2, \mathrm{kg}\,\mathrm{m}, ^\circ, dollars
    r"(?:\s*(?:\\(?:text|mathrm|mbox|textrm|textbf)\s*\{(?!\s*(?:or|and)\b)[^{}]*\}(?:\s*\^\s*\{?-?\d\}?)?"
    rf"|\^\s*\{{?\s*\\(?:circ|degree)\s*\}}?|\\(?:degree|degrees)|°|[·/]|{_UNIT_WORDS}))+$"
)


def _number(text: str) -> _Number | None:
    percent = re.search(r"\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|percent)\s*\}|\s+percent)$", text)
    text = text[: percent.start()] if percent else _UNIT.sub("", text)
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None

    def integer(name: str) -> int:
        return int(match[name].replace(",", ""))

    try:
        if match["decimal"] is not None:
            value = Fraction(match["decimal"].replace(",", "")) * Fraction(10) ** int(match["exponent"] or 0)
        elif match["above"] is not None:
            value = Fraction(integer("above"), integer("below"))
        else:
            value = Fraction(integer("top" if match["top"] else "top_digit"), 1)
            value /= integer("bottom" if match["bottom"] else "bottom_digit")
            if match["minus"]:
                if match["whole"]:
                    return None
                value = -value
            value += integer("whole") if match["whole"] else 0
    except ZeroDivisionError:
        return None
    decimal = bool(match["decimal"]) and ("." in match["decimal"] or match["exponent"] is not None)
    return _Number(-value if match["sign"] == "-" else value, decimal, percent is not None, match["base"])


def _equal_numbers(answer: _Number, gold: _Number) -> bool:
    if answer.base and gold.base and answer.base != gold.base:
        return False
    candidates = [(answer.value, gold.value)]
    if answer.percent and not gold.percent:
        candidates.append((answer.value / 100, gold.value))
    if gold.percent and not answer.percent:
        candidates.append((answer.value, gold.value / 100))
    tolerant = (answer.decimal or gold.decimal) and gold.value.denominator != 1
    tolerance = RELATIVE_TOLERANCE if tolerant else 0
    return any(abs(value - gold_value) <= tolerance * abs(gold_value) for value, gold_value in candidates)


# --- words ------------------------------------------------------------------------------------------------------------

_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|textrm|textit|mathbf)\s*\{([^{}]*)\}")


def _words(text: str, in_text: bool = False) -> str | None:
    r"""The words of an answer that is only words, lower case; None for anything else.

    Letters in a row can be a product; sympy would take `listen` for `silent`. So words must be in `\text{}`, or be a
    single capital from A to E, or have five letters, or be yes or no; with `in_text` any letters will do.
    """
    plain = _TEXT.sub(r"\1", text)
    letters = re.fullmatch(r"\(?\s*([A-Za-z][A-Za-z' -]*?)\s*\)?", plain)
    if letters is None:
        return None
    words = " ".join(letters[1].lower().split())
    evident = (
        plain != text or re.search(r"[a-z]{5}", words) or words in ("yes", "no") or re.fullmatch(r"\(?[A-E]\)?", plain)
    )
    return words if in_text or evident else None


_CHOICE = re.compile(r"(?:\\(?:text|mathrm|mbox|textbf|textrm|textit|mathbf)\s*\{\s*)?\(([A-E])\)")


def _choice(text: str) -> str | None:
    r"""The letter, lower case, of an answer that begins with a choice, like `\textbf{(C)}\ 12`, and names no other."""
    letters = _CHOICE.findall(text)
    return letters[0].lower() if len(letters) == 1 and _CHOICE.match(text) else None


# --- the children -----------------------------------------------------------------------------------------------------


def _command() -> list[str]:
    return [sys.executable, "-m", "verl_cov.tasks.math.worker"]


def _environment() -> dict[str, str]:
    # The child must find what this process finds: Ray extends sys.path in its workers, not the environment.
    # One thread each: sympy has no use for OpenBLAS's threads, should something load numpy.
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


_POOL = ProcessPool(_command, POOL_SIZE, _environment, NodePlaces("math", NODE_CHILDREN).one)  # starts nothing yet
