"""Which training questions are found in evaluation sets, and how they are taken out."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.tasks.data import contamination
from verl_cov.tasks.data.contamination import COMMON, WORDS, exact_key, find, grams, remove, split_files, words
from verl_cov.tasks.data.formats.items import Item
from verl_cov.tasks.data.prepare import prepare, row_of
from verl_cov.tasks.data.rows import SCHEMA, check_file
from verl_cov.tasks.data.sets import SETS
from verl_cov.tasks.data.stamped_file import read_stamp

TWENTY = [f"word{n}" for n in range(20)]


def write(path: Path, questions: list[str], name: str = "gsm8k") -> Path:
    rows = [row_of(SETS[name], Item(question, "1"), index) for index, question in enumerate(questions)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return path


def find_in(training: Path, evaluation: list[Path]) -> contamination.Contamination:
    (report,) = find([training], evaluation)
    return report


def counts(tmp_path: Path, training: list[str], evaluation: list[str]) -> tuple[int, int, set[int]]:
    found = find_in(write(tmp_path / "t.parquet", training), [write(tmp_path / "e.parquet", evaluation, "math500")])
    (one,) = found.overlaps
    return one.exact, one.overlap, found.indexes


class TestFind:
    def test_exactly_the_same(self, tmp_path: Path):
        training = ["Is  $x + 1$\nEven?", "Is x - 1 even?", "other", "is x+1 even?"]
        assert counts(tmp_path, training, ["is x + 1 even?"]) == (2, 0, {0, 3})

    def test_thirteen_words_in_a_row(self, tmp_path: Path):
        shared = TWENTY[:WORDS]
        training = [
            "before, " + "  ".join(shared).upper() + " after",
            " ".join([*shared[:-1], "x", shared[-1]]),
            " ".join(shared[:-1]),
        ]
        assert counts(tmp_path, training, ["It says: {" + ", ".join(shared) + "}!"]) == (0, 1, {0})

    def test_short_questions_match_exactly_only(self, tmp_path: Path):
        assert counts(tmp_path, ["Find x, and then find y"], ["Find x"]) == (0, 0, set())

    def test_our_own_instruction_is_no_overlap(self, tmp_path: Path):
        """It has 13 words with the last one of a question: every row of a set would be found."""
        assert counts(tmp_path, ["How many apples"], ["So many apples"]) == (0, 0, set())

    @pytest.mark.parametrize(("times", "found"), [(COMMON, COMMON), (COMMON + 1, 0)])
    def test_common_phrases_do_not_count(self, times: int, found: int, tmp_path: Path):
        training = [f"{' '.join(TWENTY[:WORDS])} number {n}" for n in range(times)]
        assert counts(tmp_path, training, [" ".join(TWENTY[:WORDS]) + " here"])[:2] == (0, found)

    def test_a_common_phrase_and_a_rare_one(self, tmp_path: Path):
        phrase = " ".join(TWENTY[:WORDS])
        training = [f"{phrase} number {n}" for n in range(20)]
        training[7] = " ".join(TWENTY)
        assert counts(tmp_path, training, [" ".join(TWENTY)]) == (1, 0, {7})

    def test_chinese_has_words(self, tmp_path: Path):
        text = "一个正方形的边长是三厘米它的面积是多少平方厘米"
        assert len(words(text)) == len(text)
        assert counts(tmp_path, [f"请问{text}呢"], [text]) == (0, 1, {0})

    def test_each_evaluation_set_has_its_count_and_example(self, tmp_path: Path):
        training = write(tmp_path / "t.parquet", ["both", "one", "none"])
        first = write(tmp_path / "first.parquet", ["both", "one"], "math500")
        second = write(tmp_path / "second.parquet", ["Both", "x"], "amc")
        (found,) = find([training], [first, second])
        assert [(one.evaluation, one.exact) for one in found.overlaps] == [("first", 2), ("second", 1)]
        assert found.overlaps[1].example == ("both", "Both")
        assert found.indexes == {0, 1}

    @given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=40))
    def test_grams_against_the_definition(self, drawn: list[str]):
        wanted = [drawn[i : i + WORDS] for i in range(len(drawn)) if len(drawn[i : i + WORDS]) == WORDS]
        assert [one.split() for one in grams(", ".join(drawn))] == wanted

    @given(st.text())
    def test_the_key_is_stable(self, text: str):
        assert exact_key(f" ${text}\n") == exact_key(text)

    def test_the_work_is_linear(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Each question is taken apart a fixed number of times, however many others there are."""
        calls = 0

        def counted(text: str) -> list[str]:
            nonlocal calls
            calls += 1
            return words(text)

        monkeypatch.setattr(contamination, "words", counted)

        def work(size: int) -> int:
            nonlocal calls
            texts = [" ".join(f"w{(n * 31 + k * k) % 9973}" for k in range(60)) for n in range(size)]
            training = write(tmp_path / "t.parquet", texts)
            evaluation = write(tmp_path / "e.parquet", [f"{text} x" for text in texts], "math500")
            calls = 0
            find_in(training, [evaluation])
            return calls

        assert work(400) == 4 * work(100) > 0


class TestRemove:
    def test_rows_go_and_the_stamp_says_so(self, tmp_path: Path):
        training = prepare(SETS["gsm8k"], "sample", tmp_path)
        evaluation = prepare(SETS["gsm8k_test"], "sample", tmp_path)
        before = pq.read_table(training.path).to_pylist()
        found = find_in(training.path, [evaluation.path])
        assert remove(found) == 1
        after = pq.read_table(training.path).to_pylist()
        assert after == [row for index, row in enumerate(before) if index not in found.indexes]
        check_file(training.path, full=True)
        stamp = read_stamp(training.path)
        assert stamp is not None
        assert stamp["contamination_removed"] == {"gsm8k_test": {"exact": 1, "overlap": 0}}
        assert stamp["rows"]["written"] == len(after)
        assert find_in(training.path, [evaluation.path]).indexes == set()
        # Preparing it again does not bring them back.
        assert not prepare(SETS["gsm8k"], "sample", tmp_path).fresh

    def test_a_file_without_a_stamp(self, tmp_path: Path):
        training = write(tmp_path / "t.parquet", ["a", "b"])
        assert remove(find_in(training, [write(tmp_path / "e.parquet", ["a"], "math500")])) == 1
        assert [row["prompt"][0]["content"][:1] for row in pq.read_table(training).to_pylist()] == ["b"]
        assert not (tmp_path / "t.json").exists()

    def test_what_changed_meanwhile_is_left_alone(self, tmp_path: Path):
        training = write(tmp_path / "t.parquet", ["a", "b"])
        found = find_in(training, [write(tmp_path / "e.parquet", ["a"], "math500")])
        write(training, ["x", "y", "z"])
        with pytest.raises(ValueError, match="has changed meanwhile"):
            remove(found)
        assert pq.read_metadata(training).num_rows == 3

    def test_never_everything(self, tmp_path: Path):
        training = write(tmp_path / "t.parquet", ["a"])
        found = find_in(training, [write(tmp_path / "e.parquet", ["a"], "math500")])
        with pytest.raises(ValueError, match="every row"):
            remove(found)
        assert pq.read_metadata(training).num_rows == 1

    def test_a_failure_leaves_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        training = prepare(SETS["gsm8k"], "sample", tmp_path).path
        found = find_in(training, [prepare(SETS["gsm8k_test"], "sample", tmp_path).path])
        before = training.read_bytes()

        def full(*_: object) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(contamination.pq.ParquetWriter, "write_batch", full)
        with pytest.raises(OSError, match="No space left"):
            remove(found)
        assert training.read_bytes() == before
        assert read_stamp(training) is not None
        assert not list(tmp_path.glob(".*.partial"))


class TestFiles:
    def test_which_is_which(self, tmp_path: Path):
        training = write(tmp_path / "a.parquet", ["a"])
        evaluation = write(tmp_path / "b.parquet", ["a"], "amc")
        assert split_files([evaluation, training]) == ([training], [evaluation])
        with pytest.raises(ValueError, match="no evaluation file among"):
            split_files([training])
        with pytest.raises(ValueError, match="no training file among"):
            split_files([evaluation])
        (tmp_path / "c.parquet").write_text(json.dumps({}))
        with pytest.raises(ValueError, match=r"c.parquet: not a parquet file"):
            split_files([training, tmp_path / "c.parquet"])
