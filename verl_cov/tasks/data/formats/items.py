"""What every format has in common: the item that a row becomes, and helpers that read its fields."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

Row = Mapping[str, Any]


class Unusable(Exception):
    """The row cannot be trained or evaluated on. The message is the reason, the same for all rows with it."""


class Elsewhere(Exception):
    """The row belongs to another set, or to none that the paper used. The message says why."""


@dataclass(frozen=True)
class Item:
    """What a row becomes.

    question: without an instruction. ground_truth: as in `rows`. task: a sentence on what the tests need. id: the
    source's, if it has one. group: a split keeps items of one group together (default: the question is the group).
    """

    question: str
    ground_truth: str
    task: str = ""
    id: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Format:
    """A way of publishing rows: every row has all of `fields`; those of `optional` are read where a row has them."""

    fields: tuple[str, ...]
    read: Callable[[Row], Item]
    optional: tuple[str, ...] = ()


# The instructions that sources put around their questions. Ours replaces them: of two that ask for different things,
# the score would follow only one.
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
    """The question without the sources' instructions at its beginning and its end, as far as we know them."""
    return _INSTRUCTION.sub("", question.strip()).strip()


def is_text(value: object) -> TypeGuard[str]:
    """Whether a field holds text, and not only white space."""
    return isinstance(value, str) and bool(value.strip())


def required_text(value: object, what: str) -> str:
    """The text of a field that an item cannot do without. Raises Unusable, which calls the field `what`."""
    if not is_text(value):
        raise Unusable(f"no {what}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unusable(f"the {what} is not Unicode") from None
    return value.strip()


def row_id(value: object) -> str | None:
    """A row's id as text; None where there is none."""
    return None if value is None or isinstance(value, (list, dict)) else str(value).strip() or None


def as_mapping(value: object) -> Mapping[str, Any]:
    """A struct, which CSV and some JSON files hold as JSON text; empty where it is something else."""
    value = parse_json(value) if isinstance(value, str) else value
    return value if isinstance(value, Mapping) else {}


def parse_json(text: str) -> Any:
    """The JSON value, None if the text is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
