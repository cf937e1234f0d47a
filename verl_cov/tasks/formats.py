r"""From a row as a data set's makers publish it to a question and its answer or tests.

A reader (one per format, by the fields it needs) returns an :class:`Item`, or raises :class:`Unusable` where the row
has no usable answer or tests, or :class:`Elsewhere` where the row is fine but not of this set. The formats are those of
the files on the Hugging Face Hub and of the copies in wide use; `sets.py` says which set has which, and where we know
them from.

No text of a row is ever run: tests are parsed (`ast`), never executed.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


class Unusable(Exception):
    """The row cannot be trained or evaluated on. The message is the reason, the same for all rows with it."""


class Elsewhere(Exception):
    """The row belongs to another set, or to none that the paper used. The message says why."""


@dataclass(frozen=True)
class Item:
    """question: without an instruction. ground_truth: as `rows.py` has it. task: a sentence on what the tests need.
    id: the source's, if it has one. group: what a split must keep together (default: the question)."""

    question: str
    ground_truth: str
    task: str = ""
    id: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Format:
    """fields: a row of this format has them all. optional: read as well where they are there."""

    fields: tuple[str, ...]
    read: Callable[[Row], Item]
    optional: tuple[str, ...] = ()


# --- mathematics ------------------------------------------------------------------------------------------------------


def plain(
    question: str, answer: str, id: str = "", *, extract: Callable[[Any], str] | None = None, context: str = ""
) -> Format:
    """Fields of these names; `extract` gets the answer out of the answer's field. `context`: a field that is put before
    the question where it is not empty."""

    def read(row: Row) -> Item:
        text = strip_instruction(_text(row[question], "question"))
        if context and _filled(row.get(context)):
            text = f"{row[context].strip()}\n\n{text}"
        return Item(text, _answer((extract or number_or_text)(row[answer])), id=_id(row.get(id)))

    return Format((question, answer), read, tuple(filter(None, (id, context))))


def number_or_text(value: Any) -> str:
    """An answer as text: 142.0 (the AMC file's answers are floats) is 142."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Unusable("no answer")
    if isinstance(value, float):
        if value != value:
            raise Unusable("no answer")
        return str(int(value)) if value.is_integer() else repr(value)
    return re.sub(r"^(-?\d+)\.0$", r"\1", str(value).strip())  # what a CSV makes of the float


def after_hashes(solution: Any) -> str:
    """GSM8K: the number after `####`, without the commas that group its digits."""
    _, found, answer = str(solution or "").rpartition("####")
    if not found:
        raise Unusable("no #### in the solution")
    return answer.strip().replace(",", "")


def boxed(solution: Any) -> str:
    r"""The content of the solution's last \boxed{}; braces nest."""
    text = str(solution or "")
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        raise Unusable(r"no \boxed{} in the solution")
    begin = text.index("{", start) + 1
    depth = 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position].strip()
    raise Unusable(r"no \boxed{} in the solution")


def several(answers: Any) -> str:
    """OlympiadBench: a list of answers, or of one string that holds them; and its print in a CSV."""
    if isinstance(answers, str):
        try:
            parsed = ast.literal_eval(answers)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            parsed = None
        answers = parsed if isinstance(parsed, list) else [answers]
    texts = [number_or_text(one) for one in answers or []]
    return ", ".join(unwrap_dollars(text) for text in texts if text)


def unwrap_dollars(text: str) -> str:
    r"""`$x$` and `\(x\)` around a whole answer are taken off; `$1$, $2$` stays."""
    text = text.strip().removesuffix(".")
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inside = text[len(left) : -len(right)]
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right) and left not in inside:
            return inside.strip()
    return text


def _answer(text: str) -> str:
    text = unwrap_dollars(text)
    if not text:
        raise Unusable("no answer")
    return text


def olympiad(row: Row) -> Item:
    """OlympiadBench, the open-ended English mathematics problems without pictures.

    A problem's `context` (what several parts share) goes before it: without it the part cannot be answered.
    """
    if (row.get("subject") or "Math").lower() not in ("math", "maths", "mathematics"):
        raise Elsewhere(f"subject {row['subject']}")
    if (row.get("language") or "English").lower() not in ("english", "en"):
        raise Elsewhere(f"language {row['language']}")
    if "theorem" in str(row.get("question_type") or "").lower():
        raise Elsewhere("a theorem to prove")
    images = [key for key in row if key.startswith("image")]
    if "multi" in str(row.get("modality") or "").lower() or any(_filled(row[key]) for key in images):
        raise Elsewhere("with pictures")
    return plain("question", "final_answer", "id", extract=several, context="context").read(row)


# --- chats: Eurus-2-RL-Data and DAPO-Math-17k, both in verl's format --------------------------------------------------

# The instructions that sources put around their questions. Ours takes their place: two that ask for different things
# would be scored by one only.
_INSTRUCTIONS = (
    # DAPO-Math-17k, before and after.
    r"\ASolve the following math problem step by step\.[^\n]*\n+",
    r"Remember to put your answer on its own line after \"Answer:\"\.?\Z",
    # Eurus-2-RL-Data, mathematics and code.
    r"Present the answer in LaTex format: \\boxed\{Your answer\}\Z",
    r"Write Python code to solve the problem\. "
    r"Present the code in\s*```python\s*Your code\s*```\s*at the end\.?\Z",
    # Qwen2.5-Math's evaluation and most of the recipes that follow it; GSM8K as verl's example prepares it.
    r"Please reason step by step, and put your final answer within \\+boxed\{\}\.?\Z",
    r"Let's think step by step and output the final answer (?:after \"####\"|within \\+boxed\{\})\.?\Z",
)
_INSTRUCTION = re.compile("|".join(_INSTRUCTIONS))


def strip_instruction(question: str) -> str:
    """The question without the instructions that we know of, at its beginning and its end."""
    return _INSTRUCTION.sub("", question.strip()).strip()


def chat(ability: str) -> Format:
    """verl's own format: `prompt` a list of messages (a system prompt is dropped), `reward_model.ground_truth`."""

    def read(row: Row) -> Item:
        found = str(row.get("ability") or ability).lower()
        if found != ability:
            raise Elsewhere(f"ability {found}")
        question = strip_instruction(_user(row["prompt"]))
        reward, info = _struct(row["reward_model"]), _struct(row.get("extra_info"))
        truth = reward.get("ground_truth")
        if ability == "code":
            tests, task = inputs_outputs(truth)
            return Item(question, tests, task, id=_id(info.get("index")))
        return Item(question, _answer(number_or_text(truth)), id=_id(info.get("index")))

    return Format(("prompt", "reward_model"), read, ("ability", "extra_info"))


def _user(prompt: Any) -> str:
    if isinstance(prompt, str):
        if not prompt.lstrip().startswith("[{"):
            return _text(prompt, "question")
        prompt = _parsed(prompt)
    said = [one["content"] for one in prompt or [] if isinstance(one, Mapping) and one.get("role") == "user"]
    if len(said) != 1:
        raise Unusable("not one message by the user")
    return _text(said[0], "question")


def _struct(value: Any) -> Mapping[str, Any]:
    value = _parsed(value) if isinstance(value, str) else value
    return value if isinstance(value, Mapping) else {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# --- code -------------------------------------------------------------------------------------------------------------

_BUILTINS = frozenset(dir(builtins))
STDIO_TASK = "The program reads from standard input and prints to standard output."


def inputs_outputs(ground_truth: Any) -> tuple[str, str]:
    """(tests, task) from the format of APPS, TACO and Eurus-2: {"inputs", "outputs"} and, for functions, "fn_name".

    Most functions' outputs stand in a list of their own there, [[4], [0]], some do not. A result that is a list of one
    element cannot be told from a wrapped one, so they stay as they are: the verifier accepts both, as APPS's does.
    """
    tests = _parsed(ground_truth) if isinstance(ground_truth, str) else ground_truth
    if not isinstance(tests, Mapping):
        raise Unusable("no tests")
    inputs, outputs = tests.get("inputs"), tests.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs:
        raise Unusable("no tests")
    if len(inputs) != len(outputs):
        raise Unusable("inputs and outputs differ in number")
    name = tests.get("fn_name")
    if name:
        if not str(name).isidentifier():
            raise Unusable("the function's name is not a name")
        if not all(isinstance(arguments, list) for arguments in inputs):
            raise Unusable("a function's arguments are not a list")
        return _tests(kind="call", function=name, inputs=inputs, outputs=outputs), f"Define the function `{name}`."
    texts = [[_lines(one) for one in side] for side in (inputs, outputs)]
    return _tests(kind="stdio", inputs=texts[0], outputs=texts[1]), STDIO_TASK


def _lines(value: Any) -> str:
    if isinstance(value, list):  # a few problems have a list of lines
        value = "\n".join(map(str, value))
    if not isinstance(value, str):
        raise Unusable("standard input and output are not text")
    return value


def acecode(row: Row) -> Item:
    """AceCode: a question and a list of assert statements, which also say what the function is called."""
    given = row["test_cases"] if isinstance(row["test_cases"], list) else []
    asserts = [one.strip() for one in given if isinstance(one, str) and one.strip()]
    trees = [tree for tree in map(_assert, asserts) if tree]
    if not trees or len(trees) < len(asserts):
        raise Unusable("no tests" if not asserts else "a test is not an assert statement")
    called = Counter(name for tree in trees for name in _called(tree))
    name = next((name for name, count in called.most_common() if count == len(trees)), None)
    question = _text(row["question"], "question")
    return Item(
        question,
        _tests(kind="asserts", asserts=asserts),
        f"Define the function `{name}`." if name else "",
        id=_id(row.get("id")),
    )


def _assert(text: str) -> ast.Assert | None:
    tree = _tree(text)
    return tree.body[0] if tree and len(tree.body) == 1 and isinstance(tree.body[0], ast.Assert) else None


def _called(tree: ast.AST) -> set[str]:
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {call.id for call in calls if isinstance(call, ast.Name)} - _BUILTINS


def kodcode(row: Row) -> Item:
    """KodCode: pytest functions that import from `solution`. The instruct and complete styles only, as the paper says.

    The styles are the same problems worded differently, with ids that differ in their last letter (`_I`, `_C`, `_O`):
    a split must keep them together.
    """
    style = row["style"]
    if style not in ("instruct", "complete"):
        raise Elsewhere(f"style {style}")
    tests = row.get("test") or row.get("test_code")
    if not isinstance(tests, str) or not tests.strip():
        raise Unusable("no tests")
    tree = _tree(tests)
    if tree is None:
        raise Unusable("the tests are not Python")
    if not any(
        isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test")
        for node in ast.walk(tree)
    ):
        raise Unusable("no test function")
    id = _id(row.get("question_id"))
    return Item(
        _text(row["question"], "question"),
        _tests(kind="pytest", tests=tests),
        _kodcode_task(row.get("test_info"), tree),
        id=id,
        group=re.sub(r"_[ICO]$", "", id) if id else None,
    )


def _kodcode_task(info: Any, tree: ast.AST) -> str:
    """The signatures, where the file has them; else the names that the tests import."""
    infos = [one for one in info or [] if isinstance(one, Mapping)] if isinstance(info, list) else []
    declared = [str(one["function_declaration"]) for one in infos if _filled(one.get("function_declaration"))]
    wanted = [re.sub(r"^\s*(?:async\s+)?(?:def|class)\s+|\s*:?\s*$", "", one) for one in declared]
    if not wanted:
        imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "solution")
        wanted = [alias.name for node in imports for alias in node.names if alias.name != "*"]
    # A dict: each once, in order.
    return f"Define {', '.join(f'`{one}`' for one in dict.fromkeys(wanted))}." if wanted else ""


def _tree(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "invalid escape sequence", once a row
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _tests(**fields: Any) -> str:
    text = json.dumps(fields, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no program can read or print
        raise Unusable("the tests are not Unicode") from None
    return text


# --- shared -----------------------------------------------------------------------------------------------------------


def _filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _text(value: Any, what: str) -> str:
    if not _filled(value):
        raise Unusable(f"no {what}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unusable(f"the {what} is not Unicode") from None
    return value.strip()


def _id(value: Any) -> str | None:
    return None if value is None or isinstance(value, (list, dict)) else str(value).strip() or None
