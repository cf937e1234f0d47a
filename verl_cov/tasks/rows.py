r"""The rows that the recipes train and validate on: one schema for every file, so that verl can concatenate them.

| column                    | type           | meaning                                                              |
| ------------------------- | -------------- | -------------------------------------------------------------------- |
| data_source               | string         | the set's name, as `verl-cov data list` has it                       |
| prompt                    | list of struct | messages {role, content}; ours: one, the question and an instruction |
| ability                   | string         | math or code                                                         |
| reward_model.style        | string         | rule                                                                 |
| reward_model.ground_truth | string         | math: the answer; code: the tests as JSON, see below                 |
| extra_info.split          | string         | train or test                                                        |
| extra_info.index          | int64          | the problem's number in its set; copies share it                     |
| extra_info.id             | string         | the problem's id in its source                                       |
| extra_info.verifier       | string         | math or code: who scores it                                          |
| extra_info.temperature    | double or null | how validation samples this prompt; 0: greedy; null: as configured   |

The tests of a code problem are one of

    {"kind": "stdio", "inputs": [str, ...], "outputs": [str, ...]}                  the program reads stdin and prints
    {"kind": "call", "function": str, "inputs": [[arg, ...], ...], "outputs": [value, ...]}
        (a value may stand in a list of its own, [value], as APPS has it)
    {"kind": "asserts", "asserts": ["assert f(1) == 2", ...]}                       each assert a test
    {"kind": "pytest", "tests": "from solution import f\ndef test_f(): ..."}        each test function a test

Needs pyarrow, nothing of verl.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct(
                [
                    ("split", pa.string()),
                    ("index", pa.int64()),
                    ("id", pa.string()),
                    ("verifier", pa.string()),
                    ("temperature", pa.float64()),
                ]
            ),
        ),
    ]
)

MATH_INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
CODE_INSTRUCTION = "Solve the problem in Python. Put the whole solution into one code block that starts with ```python."

ABILITIES = ("math", "code")
# The field that holds the tests, and its type, for each kind.
_TESTS: dict[str, dict[str, type]] = {
    "stdio": {"inputs": list, "outputs": list},
    "call": {"function": str, "inputs": list, "outputs": list},
    "asserts": {"asserts": list},
    "pytest": {"tests": str},
}
_MAX_TEMPERATURE = 2.0
FIRST = 64  # rows that a check looks into when it is not a full one


def with_instruction(question: str, ability: str, task: str = "") -> str:
    """The prompt's text: the question, then how to answer. `task`: what the tests need, a sentence or nothing."""
    instruction = MATH_INSTRUCTION if ability == "math" else CODE_INSTRUCTION
    return f"{question}\n\n{instruction}{' ' if task else ''}{task}"


def question_of(content: str) -> str:
    """The inverse of :func:`with_instruction`; a prompt with another instruction comes back whole."""
    for instruction in (MATH_INSTRUCTION, CODE_INSTRUCTION):
        question, found, _ = content.rpartition(f"\n\n{instruction}")
        if found:
            return question
    return content


# --- checking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileReport:
    """What :func:`check_file` saw. `checked`: how many of the rows it looked into; the rest is of those."""

    path: Path
    rows: int
    checked: int
    data_sources: tuple[str, ...]
    splits: tuple[str, ...]
    temperatures: tuple[float | None, ...]


def check_file(path: Path | str, *, full: bool = False) -> FileReport:
    """Check a parquet file against the schema and its first rows (`full`: all) against what the columns mean.

    Reads the footer and 64 rows: cheap enough for a start-up check. Raises ValueError, one line that names the file,
    the row (from 0) and the field.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; `verl-cov data prepare` writes it")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None
    with file:
        check_schema(file.schema_arrow, path)
        rows = file.metadata.num_rows
        if rows == 0:
            raise ValueError(f"{path}: it has no rows")
        seen: dict[str, Counter[Any]] = {"data_source": Counter(), "split": Counter(), "temperature": Counter()}
        checked = 0
        found = batches(file, 1024 if full else FIRST, SCHEMA.names)
        for row in (row for batch in found for row in batch.to_pylist()):
            try:
                check_row(row)
            except ValueError as error:
                raise ValueError(f"{path}: row {checked}: {error}") from None
            seen["data_source"][row["data_source"]] += 1
            seen["split"][row["extra_info"]["split"]] += 1
            seen["temperature"][row["extra_info"]["temperature"]] += 1
            checked += 1
            if not full and checked == FIRST:
                break
    return FileReport(path, rows, checked, *(tuple(counts) for counts in seen.values()))


def batches(file: pq.ParquetFile, size: int = 1024, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A parquet file's rows, at most `size` at a time.

    One row group after another: `iter_batches` over a whole file keeps what it has read until it is through.
    """
    for group in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=size, row_groups=[group], columns=columns)


def check_schema(schema: pa.Schema, path: Path) -> None:
    """Raise ValueError unless the schema's columns are there and of its types; others are left to whoever wrote them.

    Exactly its types: verl concatenates files, and `datasets` refuses structs that differ in a field.
    """
    for wanted in SCHEMA:
        if wanted.name not in schema.names:
            raise ValueError(
                f"{path}: the column {wanted.name!r} is missing (found: {', '.join(schema.names)}); "
                "`verl-cov data prepare` writes files that have it"
            )
        _check_type(wanted.name, schema.field(wanted.name).type, wanted.type, path)


def _check_type(name: str, found: pa.DataType, wanted: pa.DataType, path: Path) -> None:
    if pa.types.is_list(wanted) and pa.types.is_list(found):
        return _check_type(f"{name}[]", found.value_type, wanted.value_type, path)
    if pa.types.is_struct(wanted) and pa.types.is_struct(found):
        there = {field.name: field.type for field in found}
        for field in wanted:
            if field.name not in there:
                raise ValueError(f"{path}: the field {name}.{field.name} is missing (found: {', '.join(there)})")
            _check_type(f"{name}.{field.name}", there.pop(field.name), field.type, path)
        if there:
            raise ValueError(
                f"{path}: the field {name}.{next(iter(there))} is not in the schema: verl could not concatenate it "
                "with our files"
            )
    elif found != wanted:
        raise ValueError(f"{path}: {name} is of type {found}; it must be {wanted}")
    return None


def check_row(row: Mapping[str, Any]) -> None:
    """Raise ValueError, one line that names the field, unless the row means something. Types are the schema's."""
    info, reward = row["extra_info"], row["reward_model"]
    for name, struct in (("extra_info", info), ("reward_model", reward)):
        if struct is None:
            raise ValueError(f"{name} is null")
    if not (row["data_source"] or "").strip():
        raise ValueError("data_source is empty")
    if row["ability"] not in ABILITIES:
        raise ValueError(f"ability is {row['ability']!r}; it must be one of {', '.join(ABILITIES)}")
    _check_prompt(row["prompt"])
    if reward["style"] != "rule":
        raise ValueError(f"reward_model.style is {reward['style']!r}; it must be 'rule'")
    if info["verifier"] not in ABILITIES:
        raise ValueError(f"extra_info.verifier is {info['verifier']!r}; it must be one of {', '.join(ABILITIES)}")
    if not (reward["ground_truth"] or "").strip():
        raise ValueError("reward_model.ground_truth is empty")
    if info["verifier"] == "code":
        check_tests(reward["ground_truth"])
    if not info["split"]:
        raise ValueError("extra_info.split is empty; it must be 'train' or 'test'")
    if info["index"] is None or info["index"] < 0:
        raise ValueError(f"extra_info.index is {info['index']}; it must be 0 or more")
    temperature = info["temperature"]
    if temperature is None:
        return
    if not (math.isfinite(temperature) and 0 <= temperature <= _MAX_TEMPERATURE):
        raise ValueError(f"extra_info.temperature is {temperature:g}; it must be 0 (greedy) to {_MAX_TEMPERATURE:g}")
    if info["split"] == "train":
        raise ValueError(f"extra_info.temperature is {temperature:g} in a training row; only validation reads it: null")


def _check_prompt(prompt: Any) -> None:
    if not prompt:
        raise ValueError("prompt is empty")
    for number, message in enumerate(prompt):
        if message is None or message["role"] not in ("system", "user", "assistant"):
            raise ValueError(f"prompt[{number}].role must be system, user or assistant: {message!r}")
        if not (message["content"] or "").strip():
            raise ValueError(f"prompt[{number}].content is empty")
    if prompt[-1]["role"] != "user":
        raise ValueError(f"prompt ends with a message of the {prompt[-1]['role']}; it must be the user's")


def check_tests(ground_truth: str) -> None:
    """Raise ValueError, one line that names the field, unless the text is the tests of a code problem."""
    name = "reward_model.ground_truth"
    try:
        tests = json.loads(ground_truth)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON ({error}): {ground_truth[:60]!r}") from None
    kind = tests.get("kind") if isinstance(tests, dict) else None
    if not isinstance(kind, str) or kind not in _TESTS:
        raise ValueError(f"{name}.kind is {kind!r}; it must be one of {', '.join(_TESTS)}")
    for field, wanted in _TESTS[kind].items():
        value = tests.get(field)
        if not isinstance(value, wanted) or not value:
            raise ValueError(f"{name}.{field} must be a {wanted.__name__} with something in it (kind {kind})")
    if kind in ("stdio", "call") and len(tests["inputs"]) != len(tests["outputs"]):
        raise ValueError(f"{name} has {len(tests['inputs'])} inputs and {len(tests['outputs'])} outputs")
    strings: Iterable[tuple[str, Any]] = ()
    if kind == "stdio":
        strings = (("inputs", tests["inputs"]), ("outputs", tests["outputs"]))
    elif kind == "asserts":
        strings = (("asserts", tests["asserts"]),)
    for field, values in strings:
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{name}.{field} must hold strings only (kind {kind})")
    if kind == "call" and not all(isinstance(arguments, list) for arguments in tests["inputs"]):
        raise ValueError(f"{name}.inputs must hold one list of arguments a test (kind call)")
