"""Mathematics: GSM8K, AIME, AMC, MATH-500, Omni-MATH, OlympiadBench, Minerva, and DAPO as open-r1 publishes it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from verl_cov.tasks.data.formats.items import (
    Elsewhere,
    Format,
    Item,
    Row,
    Unusable,
    is_text,
    required_text,
    row_id,
    strip_instruction,
)
from verl_cov.tasks.math import last_boxed


def plain(
    question: str, answer: str, id: str = "", *, extract: Callable[[object], str] | None = None, context: str = ""
) -> Format:
    """A field for the question, one for the answer, and maybe one for an id, by their names.

    extract: gets the answer out of its field's value. context: a field that goes before the question if it is filled.
    """

    def read(row: Row) -> Item:
        text = strip_instruction(required_text(row[question], "question"))
        if context and is_text(row.get(context)):
            text = f"{row[context].strip()}\n\n{text}"
        return Item(text, final_answer((extract or number_or_text)(row[answer])), id=row_id(row.get(id)))

    return Format((question, answer), read, tuple(filter(None, (id, context))))


def number_or_text(value: object) -> str:
    """An answer as text: 142.0 is 142 (the AMC file's answers are floats)."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Unusable("no answer")
    if isinstance(value, float):
        if value != value:
            raise Unusable("no answer")
        return str(int(value)) if value.is_integer() else repr(value)
    return re.sub(r"^(-?\d+)\.0$", r"\1", str(value).strip())  # what a CSV makes of the float


def after_hashes(solution: object) -> str:
    """GSM8K: the number after `####`, without the commas that group its digits."""
    _, hashes, answer = str(solution or "").rpartition("####")
    if not hashes:
        raise Unusable("no #### in the solution")
    return answer.strip().replace(",", "")


def boxed(solution: object) -> str:
    r"""The content of the solution's last \boxed{}; braces nest."""
    answer = last_boxed(str(solution or ""))
    if answer is None:
        raise Unusable(r"no \boxed{} in the solution")
    return answer


def several(answers: object) -> str:
    """OlympiadBench: a list of answers, or of one string that holds them all, or such a list printed in a CSV."""
    if isinstance(answers, str):
        try:
            parsed = ast.literal_eval(answers)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            parsed = None
        answers = parsed if isinstance(parsed, list) else [answers]
    if not isinstance(answers, list):
        raise Unusable("no answer")
    texts = [number_or_text(answer) for answer in answers]
    return ", ".join(unwrap_dollars(text) for text in texts if text)


def unwrap_dollars(text: str) -> str:
    r"""The answer without the dollars or brackets around all of it: `$x$` and `\(x\)` become x; `$1$, $2$` stays."""
    text = text.strip().removesuffix(".")
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inside = text[len(left) : -len(right)]
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right) and left not in inside:
            return inside.strip()
    return text


def final_answer(text: str) -> str:
    """The ground truth that an answer becomes. Raises Unusable if nothing is left of it."""
    text = unwrap_dollars(text)
    if not text:
        raise Unusable("no answer")
    return text


def olympiad(row: Row) -> Item:
    """OlympiadBench: the open-ended English mathematics problems without pictures.

    A problem's `context`, which several parts share, goes before the question: without it a part cannot be answered.
    """
    if (row.get("subject") or "Math").lower() not in ("math", "maths", "mathematics"):
        raise Elsewhere(f"subject {row['subject']}")
    if (row.get("language") or "English").lower() not in ("english", "en"):
        raise Elsewhere(f"language {row['language']}")
    if "theorem" in str(row.get("question_type") or "").lower():
        raise Elsewhere("a theorem to prove")
    images = [key for key in row if key.startswith("image")]
    if "multi" in str(row.get("modality") or "").lower() or any(is_text(row[key]) for key in images):
        raise Elsewhere("with pictures")
    return plain("question", "final_answer", "id", extract=several, context="context").read(row)
