"""The schema of the recipes' rows, and what a check says of rows and files that break it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.tasks.data import rows
from verl_cov.tasks.data.rows import SCHEMA, check_file, question_of, with_instruction

MATH: dict[str, Any] = {
    "data_source": "gsm8k",
    "prompt": [{"role": "user", "content": "What is 1 + 1?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 0, "id": "a", "verifier": "math", "temperature": None},
}
STDIO = {"kind": "stdio", "inputs": ["1\n"], "outputs": ["2\n"]}
CALL = {"kind": "call", "function": "f", "inputs": [[1]], "outputs": [2]}


def changed(**changes: Any) -> dict[str, Any]:
    """A good row with fields changed; a name with two underscores is a field of a struct."""
    row = copy.deepcopy(MATH)
    for name, value in changes.items():
        struct, _, field = name.rpartition("__")
        (row[struct] if struct else row)[field] = value
    return row


def code(tests: Any) -> dict[str, Any]:
    text = tests if isinstance(tests, str) else json.dumps(tests)
    return changed(ability="code", extra_info__verifier="code", reward_model__ground_truth=text)


def write(path: Path, *made: dict[str, Any], schema: pa.Schema = SCHEMA) -> Path:
    pq.write_table(pa.Table.from_pylist(list(made), schema=schema), path)
    return path


class TestInstructions:
    @given(st.text().filter(str.strip), st.sampled_from(rows.ABILITIES), st.sampled_from(["", "Define `f`."]))
    def test_the_question_comes_back(self, question: str, ability: str, task: str):
        assert question_of(with_instruction(question, ability, task)) == question

    def test_another_prompt_is_left_alone(self):
        assert question_of("What is 1 + 1?\n\nSay it.") == "What is 1 + 1?\n\nSay it."

    def test_mathematics_asks_for_a_box(self):
        assert with_instruction("Q", "math") == (
            "Q\n\nPlease reason step by step, and put your final answer within \\boxed{}."
        )


@pytest.mark.parametrize(
    "row",
    [
        MATH,
        changed(extra_info__split="test", extra_info__temperature=0.6),
        changed(prompt=[{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]),
        code(STDIO),
        code(CALL),
        code({"kind": "asserts", "asserts": ["assert f(1) == 2"]}),
        code({"kind": "pytest", "tests": "def test_f():\n    pass\n"}),
    ],
)
def test_good_rows(row: dict[str, Any], tmp_path: Path):
    rows.check_row(row)
    assert check_file(write(tmp_path / "a.parquet", row)).rows == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (changed(data_source=" "), "data_source is empty"),
        (changed(data_source=None), "data_source is empty"),
        (changed(ability="maths"), "ability is 'maths'"),
        (changed(prompt=[]), "prompt is empty"),
        (changed(prompt=None), "prompt is empty"),
        (changed(prompt=[{"role": "user", "content": " \n"}]), r"prompt\[0\].content is empty"),
        (changed(prompt=[{"role": "user", "content": None}]), r"prompt\[0\].content is empty"),
        (changed(prompt=[{"role": "human", "content": "q"}]), r"prompt\[0\].role must be"),
        (changed(prompt=[{"role": "assistant", "content": "q"}]), "ends with a message of the assistant"),
        (changed(reward_model=None), "reward_model is null"),
        (changed(reward_model__style="model"), "reward_model.style is 'model'"),
        (changed(reward_model__ground_truth=""), "ground_truth is empty"),
        (changed(extra_info=None), "extra_info is null"),
        (changed(extra_info__split=None), "extra_info.split is empty"),
        (changed(extra_info__index=-1), "extra_info.index is -1"),
        (changed(extra_info__verifier="prime"), "extra_info.verifier is 'prime'"),
        (changed(extra_info__temperature=0.6), "null"),
        (changed(extra_info__split="test", extra_info__temperature=-0.1), "extra_info.temperature is -0.1"),
        (changed(extra_info__split="test", extra_info__temperature=60.0), "extra_info.temperature is 60"),
        (changed(extra_info__split="test", extra_info__temperature=float("nan")), "extra_info.temperature is nan"),
        (code("assert f(1) == 2"), "ground_truth is not JSON"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], message: str, tmp_path: Path):
    path = write(tmp_path / "a.parquet", MATH, row)
    with pytest.raises(ValueError, match=message) as error:
        check_file(path)
    assert str(error.value).startswith(f"{path}: row 1: ")
    assert "\n" not in str(error.value)


class TestFiles:
    def test_what_is_in_it(self, tmp_path: Path):
        row = changed(extra_info__split="test", extra_info__temperature=0.6, data_source="amc")
        report = check_file(write(tmp_path / "a.parquet", *[row] * 100))
        assert (report.rows, report.checked) == (100, 64)
        assert (report.data_sources, report.splits, report.temperatures) == (("amc",), ("test",), (0.6,))

    def test_a_bad_row_far_down_is_found_by_the_full_check_only(self, tmp_path: Path):
        path = write(tmp_path / "a.parquet", *[MATH] * 2000, changed(prompt=[]))
        check_file(path)
        with pytest.raises(ValueError, match="row 2000: prompt is empty"):
            check_file(path, full=True)

    def test_not_there_not_parquet_or_empty(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"no.parquet: there is no such file"):
            check_file(tmp_path / "no.parquet")
        (tmp_path / "a.parquet").write_text('{"prompt": 1}')
        with pytest.raises(ValueError, match=r"a.parquet: not a parquet file"):
            check_file(tmp_path / "a.parquet")
        whole = write(tmp_path / "b.parquet", *[MATH] * 10).read_bytes()
        (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"b.parquet: not a parquet file"):
            check_file(tmp_path / "b.parquet")
        with pytest.raises(ValueError, match="it has no rows"):
            check_file(write(tmp_path / "c.parquet"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda schema: schema.remove(2), "the column 'ability' is missing"),
            (lambda schema: schema.set(1, pa.field("prompt", pa.string())), "prompt is of type string"),
            (
                lambda schema: schema.set(
                    4, pa.field("extra_info", pa.struct([f for f in schema.field(4).type if f.name != "temperature"]))
                ),
                "the field extra_info.temperature is missing",
            ),
            (
                lambda schema: schema.set(
                    4, pa.field("extra_info", pa.struct([*schema.field(4).type, pa.field("level", pa.int64())]))
                ),
                "the field extra_info.level is not in the schema",
            ),
            (
                lambda schema: schema.set(
                    3,
                    pa.field("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.int64())])),
                ),
                "reward_model.ground_truth is of type int64; it must be string",
            ),
        ],
    )
    def test_another_schema(self, change: Any, message: str, tmp_path: Path):
        path = tmp_path / "a.parquet"
        pq.write_table(change(SCHEMA).empty_table(), path)
        with pytest.raises(ValueError, match=message) as error:
            check_file(path)
        assert str(path) in str(error.value)

    def test_other_columns_are_the_users_business(self, tmp_path: Path):
        schema = SCHEMA.append(pa.field("level", pa.int64()))
        assert check_file(write(tmp_path / "a.parquet", {**MATH, "level": 3}, schema=schema)).rows == 1
