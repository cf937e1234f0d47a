"""Programming: the tests of APPS, TACO and Eurus-2, AceCode and KodCode.

No text of a row is ever run: tests are parsed (`ast`), never executed.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping

from verl_cov.tasks.data.formats.items import (
    Elsewhere,
    Item,
    Row,
    Unusable,
    is_text,
    parse_json,
    required_text,
    row_id,
)

_BUILTINS = frozenset(dir(builtins))
STDIO_TASK = "The program reads from standard input and prints to standard output."


def inputs_outputs(ground_truth: object) -> tuple[str, str]:
    """(tests, task) from the format of APPS, TACO and Eurus-2: {"inputs", "outputs"} and, for functions, "fn_name".

    There, most outputs of functions are wrapped in a list of their own, [[4], [0]], and some are not. A result that is
    a list of one element cannot be told from a wrapped one, so all stay as they are: the verifier accepts both forms,
    as APPS's does.
    """
    tests = parse_json(ground_truth) if isinstance(ground_truth, str) else ground_truth
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
    tests = _tests(kind="stdio", inputs=list(map(_lines, inputs)), outputs=list(map(_lines, outputs)))
    return tests, STDIO_TASK


def _lines(value: object) -> str:
    if isinstance(value, list):  # a few problems have a list of lines
        value = "\n".join(map(str, value))
    if not isinstance(value, str):
        raise Unusable("standard input and output are not text")
    return value


def acecode(row: Row) -> Item:
    """AceCode: a question and a list of assert statements, which also tell the function's name."""
    cases = row["test_cases"] if isinstance(row["test_cases"], list) else []
    asserts = [case.strip() for case in cases if is_text(case)]
    trees = [tree for tree in map(_assert, asserts) if tree]
    if not trees or len(trees) < len(asserts):
        raise Unusable("no tests" if not asserts else "a test is not an assert statement")
    called = Counter(name for tree in trees for name in _called(tree))
    name = next((name for name, count in called.most_common() if count == len(trees)), None)
    question = required_text(row["question"], "question")
    return Item(
        question,
        _tests(kind="asserts", asserts=asserts),
        f"Define the function `{name}`." if name else "",
        id=row_id(row.get("id")),
    )


def _assert(text: str) -> ast.Assert | None:
    tree = _tree(text)
    return tree.body[0] if tree and len(tree.body) == 1 and isinstance(tree.body[0], ast.Assert) else None


def _called(tree: ast.AST) -> set[str]:
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {call.id for call in calls if isinstance(call, ast.Name)} - _BUILTINS


def kodcode(row: Row) -> Item:
    """KodCode: pytest functions that import from `solution`. Only the instruct and complete styles, as in the paper.

    The styles word the same problems differently, under ids that differ in their last letter (`_I`, `_C`, `_O`): a
    split must keep them together.
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
    id = row_id(row.get("question_id"))
    return Item(
        required_text(row["question"], "question"),
        _tests(kind="pytest", tests=tests),
        _kodcode_task(row.get("test_info"), tree),
        id=id,
        group=re.sub(r"_[ICO]$", "", id) if id else None,
    )


def _kodcode_task(info: object, tree: ast.AST) -> str:
    """What to define: the signatures, where the file has them; else the names that the tests import."""
    infos = [entry for entry in info if isinstance(entry, Mapping)] if isinstance(info, list) else []
    declared = [entry["function_declaration"] for entry in infos if is_text(entry.get("function_declaration"))]
    names = [re.sub(r"^\s*(?:async\s+)?(?:def|class)\s+|\s*:?\s*$", "", text) for text in declared]
    if not names:
        imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "solution")
        names = [alias.name for node in imports for alias in node.names if alias.name != "*"]
    # A dict keeps each name once, in order.
    return f"Define {', '.join(f'`{name}`' for name in dict.fromkeys(names))}." if names else ""


def _tree(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "invalid escape sequence", for every row
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _tests(**fields: object) -> str:
    text = json.dumps(fields, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no program can read or print
        raise Unusable("the tests are not Unicode") from None
    return text
