"""Rows out of the files and folders that people have."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_cov.tasks.data.sources import Files, Hub, HubRows, is_hub_id

ROWS = [{"problem": "Q1", "answer": "1"}, {"problem": "Q2", "answer": "2"}, {"problem": "Q3", "answer": "3"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(path: Path, hubs: tuple[Hub, ...] = (), **options: bool) -> list[dict]:
    return [row for row, _ in Files(path, hubs, **options).rows({"problem", "answer"})]


def parquet(path: Path, rows: list[dict] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


class TestKinds:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.jsonl", LINES),
            ("a.json", LINES),  # JSON Lines under another name
            ("a.jsonl", "\ufeff\n" + LINES.replace("\n", "\r\n\r\n")),
            ("a.json", json.dumps(ROWS)),
            ("a.json", json.dumps(ROWS, indent=2)),
            ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=1)),
            ("a.json", json.dumps({name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]})),
            ("a.csv", "problem,answer\nQ1,1\nQ2,2\nQ3,3\n"),
        ],
    )
    def test_text(self, name: str, text: str, tmp_path: Path):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read(tmp_path / name) == ROWS
        with gzip.open(tmp_path / f"{name}.gz", "wt", encoding="utf-8") as file:
            file.write(text)
        assert read(tmp_path / f"{name}.gz") == ROWS

    def test_answers_of_several_types(self, tmp_path: Path):
        (tmp_path / "a.jsonl").write_text('{"answer": 1}\n{"answer": "x"}\n{"answer": [2.5]}\n')
        assert [row["answer"] for row in read(tmp_path / "a.jsonl")] == [1, "x", [2.5]]

    def test_one_row(self, tmp_path: Path):
        (tmp_path / "a.jsonl").write_text(LINES.splitlines()[0])
        assert read(tmp_path / "a.jsonl") == ROWS[:1]

    def test_long_csv_fields(self, tmp_path: Path):
        with (tmp_path / "a.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["problem", "answer"], ["x" * 300_000, "line\nline"]])
        assert read(tmp_path / "a.csv") == [{"problem": "x" * 300_000, "answer": "line\nline"}]

    def test_parquet_reads_only_the_columns(self, tmp_path: Path):
        path = parquet(tmp_path / "a.parquet", [{**row, "completions": "long"} for row in ROWS])
        assert read(path) == ROWS
        assert Files(path).total() == 3

    def test_what_datasets_saves(self, tmp_path: Path):
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
        assert read(tmp_path / "saved") == ROWS

    def test_an_arrow_file(self, tmp_path: Path):
        table = pa.Table.from_pylist(ROWS)
        with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
            writer.write_table(table)
        assert read(tmp_path / "a.arrow") == ROWS

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.jsonl", LINES.encode() + b'{"problem": "Q4", "ans'),
            ("a.jsonl", LINES.encode() + b"[1]\n"),
            ("a.json", b'{"problem": [1, 2'),
            ("a.json", b"[1, 2]"),
            ("a.jsonl.gz", gzip.compress(LINES.encode() * 1000)[:-30]),
            ("a.jsonl", b"\xff\xfe broken"),
            ("a.parquet", b"PAR1 and no more"),
            ("a.arrow", b"ARROW1 and no more"),
        ],
    )
    def test_damaged(self, name: str, content: bytes, tmp_path: Path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read after row") as error:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)

    def test_other_files(self, tmp_path: Path):
        (tmp_path / "a.txt").write_text("x")
        with pytest.raises(ValueError, match=r"a.txt: not a file that can be read"):
            Files(tmp_path / "a.txt")
        with pytest.raises(ValueError, match="no data files"):
            Files(tmp_path)
        with pytest.raises(FileNotFoundError, match="no such file"):
            Files(tmp_path / "b.jsonl")


class TestFolders:
    def test_a_download_keeps_its_notes_beside_the_data(self, tmp_path: Path):
        parquet(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:2])
        parquet(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[2:])
        parquet(tmp_path / ".cache" / "huggingface" / "train-x.parquet")
        (tmp_path / "README.md").write_text("# card")
        (tmp_path / "dataset_infos.json").write_text("{}")
        (tmp_path / "train.jsonl").write_text(LINES)  # the same once more: parquet is preferred
        assert read(tmp_path) == ROWS

    def test_the_split_that_is_wanted(self, tmp_path: Path):
        parquet(tmp_path / "main" / "train-00000-of-00001.parquet", ROWS[:1])
        parquet(tmp_path / "main" / "test-00000-of-00001.parquet", ROWS[1:2])
        parquet(tmp_path / "socratic" / "test-00000-of-00001.parquet", ROWS[2:])
        assert read(tmp_path, (Hub("openai/gsm8k", "main", "test"),), strict=True) == ROWS[1:2]
        assert read(tmp_path, (Hub("openai/gsm8k", "main"),), strict=True) == ROWS[:1]

    def test_another_split_is_refused_where_it_is_another_set(self, tmp_path: Path):
        path = parquet(tmp_path / "train-00000-of-00001.parquet")
        wanted = (Hub("PRIME-RL/Eurus-2-RL-Data", split="validation"),)
        with pytest.raises(ValueError, match=r"this is the split train of the source; .* its split validation"):
            Files(path, wanted, strict=True)
        assert read(path, wanted) == ROWS

    def test_a_file_of_another_name_is_taken_at_its_word(self, tmp_path: Path):
        path = parquet(tmp_path / "eurus.parquet")
        assert read(path, (Hub("a/b", split="validation"),), strict=True) == ROWS

    def test_the_hubs_cache(self, tmp_path: Path):
        old, new = tmp_path / "snapshots" / "aaa", tmp_path / "snapshots" / "bbb"
        parquet(old / "train.parquet", ROWS[:1])
        (tmp_path / "blobs").mkdir()
        assert read(tmp_path) == ROWS[:1]
        parquet(tmp_path / "blobs" / "123")
        new.mkdir()
        (new / "train.parquet").symlink_to(tmp_path / "blobs" / "123")
        with pytest.raises(ValueError, match="it has 2 snapshots"):
            Files(tmp_path)
        (tmp_path / "refs").mkdir()
        (tmp_path / "refs" / "main").write_text("bbb")
        assert read(tmp_path) == ROWS

    def test_the_digest_is_of_the_content(self, tmp_path: Path):
        one = parquet(tmp_path / "one" / "a.parquet")
        other = tmp_path / "other.parquet"
        other.write_bytes(one.read_bytes())
        assert Files(one).digest == Files(other).digest == Files(tmp_path / "one").digest
        assert Files(parquet(tmp_path / "b.parquet", ROWS[:2])).digest != Files(one).digest


class TestHub:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("openai/gsm8k", True),
            ("HuggingFaceH4/MATH-500", True),
            ("data/test.jsonl", False),
            ("data/test.jsonl.gz", False),
            ("a/b/c", False),
            ("./data", False),
            ("../data", False),
            ("gsm8k", False),
        ],
    )
    def test_ids(self, text: str, expected: bool):
        assert is_hub_id(text) is expected

    def test_what_exists_is_a_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
        assert not is_hub_id("openai/gsm8k")

    def test_out_of_reach(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(OSError, match=r"openai/gsm8k cannot be read .*hf auth login.*--from DIR") as error:
            next(HubRows(Hub("openai/gsm8k", "main")).rows({"question"}))
        assert "\n" not in str(error.value)

    def test_what_the_hub_streams(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """`datasets` itself, of a folder: only the Hub's answer about the revision is not real."""
        hub = pytest.importorskip("huggingface_hub")
        pytest.importorskip("datasets")
        parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", [{**row, "long": "x"} for row in ROWS])
        monkeypatch.setattr(hub.HfApi, "dataset_info", lambda self, id: hub.DatasetInfo(id=id, sha="abc"))
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        source = HubRows(Hub(str(tmp_path / "set")))
        assert list(source.rows({"problem", "answer"})) == [(row, n) for n, row in enumerate(ROWS, start=1)]
        assert source.digest == "abc"
