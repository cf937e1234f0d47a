r"""The rows that the recipes train and validate on: one schema for all files, so that verl can concatenate them.

| column                    | type           | meaning                                                              |
| ------------------------- | -------------- | -------------------------------------------------------------------- |
| data_source               | string         | the set's name, as `verl-cov data list` shows it                     |
| prompt                    | list of struct | messages {role, content}; ours: one, the question and an instruction |
| ability                   | string         | math or code                                                         |
| reward_model.style        | string         | rule                                                                 |
| reward_model.ground_truth | string         | math: the answer; code: the tests, as JSON                           |
| extra_info.split          | string         | train or test                                                        |
| extra_info.index          | int64          | the problem's number in its set; copies share it                     |
| extra_info.id             | string         | the problem's id in its source                                       |
| extra_info.verifier       | string         | math or code: who scores it                                          |
| extra_info.temperature    | double or null | how validation samples this prompt; 0: greedy; null: as configured   |

`code.ground_truth` has the formats of the tests. Needs pyarrow, and nothing
of verl.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_cov.tasks.code import check_tests

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
_MAX_TEMPERATURE = 2.0
FIRST = 64  # rows that a check looks at if it is not a full one


def with_instruction(question: str, ability: str, task: str = "") -> str:
    """The prompt's text: the question, then how to answer. task: a sentence on what the tests need, or nothing."""
    instruction = MATH_INSTRUCTION if ability == "math" else CODE_INSTRUCTION
    return f"{question}\n\n{instruction}{' ' if task else ''}{task}"


def question_of(content: str) -> str:
    """The inverse of `with_instruction`; a prompt with another instruction comes back whole."""
    for instruction in (MATH_INSTRUCTION, CODE_INSTRUCTION):
        question, separator, _ = content.rpartition(f"\n\n{instruction}")
        if separator:
            return question
    return content


# --- checking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileReport:
    """What `check_file` saw. checked: how many of the rows it looked at; the fields after it are about those."""

    path: Path
    rows: int
    checked: int
    data_sources: tuple[str, ...]
    splits: tuple[str, ...]
    temperatures: tuple[float | None, ...]


def check_file(path: Path | str, *, full: bool = False) -> FileReport:
    """Check the columns of a parquet file, and what is in its first rows (full: in all of them).

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
        read = batches(file, 1024 if full else FIRST, SCHEMA.names)
        for row in (row for batch in read for row in batch.to_pylist()):
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
    """The rows of a parquet file, at most `size` at a time.

    Row group by row group: `iter_batches` over a whole file keeps all it has read in memory until the end.
    """
    for group in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=size, row_groups=[group], columns=columns)


def check_schema(schema: pa.Schema, path: Path) -> None:
    """Raise ValueError unless all of our columns are there with exactly our types. Further columns are allowed.

    Exactly, since verl concatenates files, and `datasets` refuses structs that differ in a field.
    """
    for column in SCHEMA:
        if column.name not in schema.names:
            raise ValueError(
                f"{path}: the column {column.name!r} is missing (there are: {', '.join(schema.names)}); "
                "`verl-cov data prepare` writes files that have it"
            )
        _check_type(column.name, schema.field(column.name).type, column.type, path)


def _check_type(name: str, actual: pa.DataType, expected: pa.DataType, path: Path) -> None:
    if pa.types.is_list(expected) and pa.types.is_list(actual):
        return _check_type(f"{name}[]", actual.value_type, expected.value_type, path)
    if pa.types.is_struct(expected) and pa.types.is_struct(actual):
        fields = {field.name: field.type for field in actual}
        for field in expected:
            if field.name not in fields:
                raise ValueError(f"{path}: the field {name}.{field.name} is missing (there are: {', '.join(fields)})")
            _check_type(f"{name}.{field.name}", fields.pop(field.name), field.type, path)
        if fields:
            raise ValueError(
                f"{path}: the field {name}.{next(iter(fields))} is not in the schema: verl could not concatenate it "
                "with our files"
            )
    elif actual != expected:
        raise ValueError(f"{path}: {name} is of type {actual}; it must be {expected}")
    return None


def check_row(row: Mapping[str, Any]) -> None:
    """Raise ValueError, one line that names the field, unless verl can train on the row. Its types are the schema's."""
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
        raise ValueError(f"prompt ends with a message of the {prompt[-1]['role']}; the last must be the user's")
