"""From a source to verl's file: what is kept, what is said of it, and that a file is whole or not there."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.tasks.data import stamped_file
from verl_cov.tasks.data.prepare import held_out, prepare, question_digest, source_of
from verl_cov.tasks.data.rows import MATH_INSTRUCTION, check_file
from verl_cov.tasks.data.sets import KODCODE_HELD_OUT, SETS
from verl_cov.tasks.data.sources import HubRows
from verl_cov.tasks.data.stamped_file import read_stamp, stamp_of

GSM8K, AIME24, MATH500 = SETS["gsm8k"], SETS["aime24"], SETS["math500"]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problems(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [
        {"problem": f"What is {n} + {n}?", "answer": str(2 * n), "unique_id": f"p{n}", **fields} for n in range(count)
    ]


def gsm8k(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(count)]


def read(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def test_the_papers_evaluation_has_8844_samples():
    """Table 2's averages are over all of them."""
    seven = ("aime24", "aime25", "amc", "math500", "omni_math", "olympiadbench", "minerva")
    assert sum(SETS[name].rows[0] * SETS[name].copies for name in seven) == 8844


class TestRows:
    @pytest.mark.parametrize("name", SETS)
    def test_the_samples(self, name: str, tmp_path: Path):
        """Each has a duplicate and a row that is of no use."""
        done = prepare(SETS[name], "sample", tmp_path)
        rows = done.stamp["rows"]
        assert rows["duplicates"]["count"] >= 1
        assert sum(found["count"] for found in rows["dropped"].values()) == 1
        assert 2 <= rows["kept"] < rows["read"] <= 8
        assert done.warnings == []
        report = check_file(done.path, full=True)
        assert report.data_sources == (name,)
        assert report.splits == (SETS[name].split,)
        assert report.temperatures == (SETS[name].temperature,)
        assert report.rows == rows["kept"] * SETS[name].copies == rows["written"]

    def test_a_row(self, tmp_path: Path):
        source = write(tmp_path / "a.jsonl", problems(2))
        row = read(prepare(MATH500, source, tmp_path).path)[1]
        assert row == {
            "data_source": "math500",
            "prompt": [{"role": "user", "content": f"What is 1 + 1?\n\n{MATH_INSTRUCTION}"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "2"},
            "extra_info": {"split": "test", "index": 1, "id": "p1", "verifier": "math", "temperature": 0.0},
        }

    def test_copies_follow_each_other_as_whole_sets(self, tmp_path: Path):
        rows = read(prepare(AIME24, write(tmp_path / "a.jsonl", problems(30)), tmp_path).path)
        assert len(rows) == 960
        assert [row["extra_info"]["index"] for row in rows[:60]] == [*range(30), *range(30)]
        assert set(Counter(row["prompt"][0]["content"] for row in rows).values()) == {32}
        assert {row["extra_info"]["temperature"] for row in rows} == {0.6}

    def test_a_source_that_has_the_copies_already(self, tmp_path: Path):
        done = prepare(AIME24, write(tmp_path / "a.jsonl", problems(30) * 32), tmp_path)
        assert (done.stamp["rows"]["kept"], done.stamp["rows"]["written"]) == (30, 960)
        assert done.warnings == []

    def test_duplicates(self, tmp_path: Path):
        source = [
            {"question": "Caf\u00e9:  1 + 1?", "answer": "#### 2"},
            {"question": "Cafe\u0301: 1 +\n1? ", "answer": "#### 2"},
            {"question": "Caf\u00e9: 1 - 1?", "answer": "#### 0"},
            {"question": "Caf\u00e9: 1 + 1?", "answer": "#### 3"},
        ]
        done = prepare(GSM8K, write(tmp_path / "a.jsonl", source), tmp_path)
        assert [row["reward_model"]["ground_truth"] for row in read(done.path)] == ["2", "0"]
        found = done.stamp["rows"]["duplicates"]
        assert (found["count"], found["conflicts"]) == (2, 1)
        assert found["conflict"].startswith("row 3: Caf\u00e9")
        assert any("another answer" in warning for warning in done.warnings)

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ({"problem": "\ud800x", "answer": "6"}, "the question is not Unicode"),
            ({"problem": "x", "answer": "\udfff"}, "text that is not Unicode"),
            ({"problem": "x", "answer": "6", "unique_id": "\ud800"}, "text that is not Unicode"),
        ],
    )
    def test_text_that_is_not_unicode(self, bad: dict[str, str], reason: str, tmp_path: Path):
        """JSON can spell half of a surrogate pair; neither parquet nor the stamp can hold it."""
        source = write(tmp_path / "a.jsonl", [bad, {"problem": "What is 3 + 3?", "answer": "6"}])
        done = prepare(MATH500, source, tmp_path)
        assert [row["reward_model"]["ground_truth"] for row in read(done.path)] == ["6"]
        (found,) = done.stamp["rows"]["dropped"].items()
        question = "\\ud800x" if reason.startswith("the question") else "x"
        assert found == (reason, {"count": 1, "example": f"row 0: {question}"})
        assert read_stamp(done.path) == done.stamp

    def test_a_reason_that_quotes_such_text(self, tmp_path: Path):
        row = {"prompt": [{"role": "user", "content": "Q"}], "reward_model": {"ground_truth": "6"}, "ability": "math"}
        source = write(tmp_path / "a.jsonl", [row, {**row, "ability": "\ud800"}])
        done = prepare(SETS["eurus2_rl_math"], source, tmp_path)
        assert list(done.stamp["rows"]["left_out"]) == ["ability \\ud800"]
        assert read_stamp(done.path) == done.stamp

    def test_a_benchmark_of_the_published_size_is_kept_as_published(self, tmp_path: Path):
        rows = problems(499)
        source = write(tmp_path / "a.jsonl", [*rows[:7], {**rows[3], "unique_id": "twice"}, *rows[7:]])
        done = prepare(MATH500, source, tmp_path)
        assert done.stamp["rows"]["kept"] == 500
        assert [row["extra_info"]["id"] for row in read(done.path)][5:9] == ["p5", "p6", "twice", "p7"]
        done = prepare(MATH500, write(tmp_path / "b.jsonl", [*rows, *rows]), tmp_path)
        assert done.stamp["rows"]["kept"] == 499

    def test_kodcodes_split(self, tmp_path: Path):
        """The sides are apart, also for a problem in its two styles, and together they are everything."""
        rows = [
            {
                "style": style,
                "question_id": f"Sub_{n}_{style[0].upper()}",
                "question": f"{style} {n}",
                "test": "from solution import f\ndef test_f(): pass",
            }
            for n in range(3000)
            for style in ("instruct", "complete")
        ]
        source = write(tmp_path / "a.jsonl", rows)
        sides = {}
        for name in ("kodcode", "kodcode_test"):
            made = read(prepare(SETS[name], source, tmp_path).path)
            sides[name] = Counter(row["extra_info"]["id"][:-2] for row in made)
        assert not sides["kodcode"].keys() & sides["kodcode_test"].keys()
        assert sum(map(len, sides.values())) == 3000
        assert set(sides["kodcode_test"].values()) == {2}
        assert len(sides["kodcode_test"]) / 3000 == pytest.approx(KODCODE_HELD_OUT, rel=0.6)

    @given(st.text(alphabet="aé \u0301\n\u3000", max_size=20))
    def test_the_digest_knows_no_white_space_and_no_composition(self, text: str):
        spaced = text.replace(" ", " \n").replace("\u3000", " ")
        assert question_digest(text) == question_digest(unicodedata.normalize("NFD", f" {spaced} "))

    @given(st.text(), st.floats(0, 1), st.floats(0, 1))
    def test_a_larger_share_holds_out_more(self, group: str, one: float, other: float):
        assert held_out(group, min(one, other)) <= held_out(group, max(one, other))
        assert not held_out(group, 0.0)

    def test_the_split_is_the_same_on_every_machine(self):
        assert [n for n in range(1000) if held_out(f"Algorithm_{n}", KODCODE_HELD_OUT)] == HELD_OUT


class TestWarnings:
    def test_the_number_of_rows(self, tmp_path: Path):
        source = write(tmp_path / "a.jsonl", problems(40))
        done = prepare(SETS["amc"], source, tmp_path)
        assert done.warnings[0].startswith("40 rows, where the known source has 83: the paper's is AI-MO/")
        with pytest.raises(ValueError, match=r"amc: 40 rows, where .* \(--strict\)"):
            prepare(SETS["amc"], source, tmp_path, strict=True)
        with pytest.raises(ValueError, match="40 rows"):
            prepare(SETS["amc"], source, tmp_path / "new", strict=True)
        assert not list((tmp_path / "new").glob("*.parquet"))

    def test_many_dropped(self, tmp_path: Path):
        rows = [*problems(95), *[{"problem": f"Prove {n}.", "answer": ""} for n in range(6)]]
        done = prepare(MATH500, write(tmp_path / "a.jsonl", rows), tmp_path)
        assert any(
            "6% of the rows dropped; most often: no answer (6), such as row 95: Prove 0." in w for w in done.warnings
        )
        done = prepare(MATH500, write(tmp_path / "b.jsonl", rows[:-1]), tmp_path)
        assert not any("dropped" in warning for warning in done.warnings)

    def test_another_format_is_named(self, tmp_path: Path):
        source = write(tmp_path / "a.jsonl", [{"Problem": "Q", "Solution": "A"}] * 3)
        with pytest.raises(ValueError, match="has the fields") as error:
            prepare(AIME24, source, tmp_path)
        assert str(error.value) == (
            f"aime24: {source} has the fields Problem, Solution; what can be read has problem and answer, or Problem "
            "and Answer, or question and answer, or prompt and reward_model"
        )

    def test_another_file_is_not_read_to_its_end(self, tmp_path: Path):
        """A thousand rows say enough: what is damaged behind them is not met."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "x"}\n' * 2000 + "damaged")
        with pytest.raises(ValueError, match="has the fields text"):
            prepare(GSM8K, str(path), tmp_path)

    def test_nothing_usable(self, tmp_path: Path):
        source = write(tmp_path / "a.jsonl", [{"question": "Q", "answer": "2"}] * 3)
        with pytest.raises(ValueError, match=r"none of the 3 rows .* can be used: no #### in the solution \(3\)"):
            prepare(GSM8K, source, tmp_path)
        with pytest.raises(ValueError, match="has no rows"):
            prepare(GSM8K, write(tmp_path / "b.jsonl", []), tmp_path)

    def test_sources(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"omni_math is not on the Hugging Face Hub: get omni_math_rule.jsonl"):
            source_of(SETS["omni_math"], None)
        default, other = source_of(GSM8K, None), source_of(SETS["gsm8k_test"], "someone/gsm8k-copy")
        assert isinstance(default, HubRows)
        assert default.hub.id == "openai/gsm8k"
        assert isinstance(other, HubRows)
        assert (other.hub.id, other.hub.split) == ("someone/gsm8k-copy", "test")
        with pytest.raises(ValueError, match="split train of the source"):
            source_of(SETS["gsm8k_test"], write(tmp_path / "train.jsonl", gsm8k(3)))


class TestFiles:
    def test_a_second_run_does_nothing(self, tmp_path: Path):
        source = write(tmp_path / "a.jsonl", gsm8k(50))
        first = prepare(GSM8K, source, tmp_path / "out")
        before = {path: path.stat().st_mtime_ns for path in (first.path, stamp_of(first.path))}
        moved = write(tmp_path / "moved.jsonl", gsm8k(50))
        for again in (source, moved):
            found = prepare(GSM8K, again, tmp_path / "out")
            assert not found.fresh
            assert found.stamp == first.stamp
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert prepare(GSM8K, source, tmp_path / "out", force=True).fresh
        assert prepare(GSM8K, write(tmp_path / "a.jsonl", gsm8k(51)), tmp_path / "out").stamp["rows"]["kept"] == 51
        assert prepare(GSM8K, "sample", tmp_path / "out").stamp["rows"]["kept"] == 3

    def test_the_same_source_gives_the_same_file(self, tmp_path: Path):
        source = write(tmp_path / "a.jsonl", gsm8k(50))
        one, other = (prepare(GSM8K, source, tmp_path / name).path for name in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()

    @pytest.mark.parametrize("damage", ["cut", "stamp", "other", "format"])
    def test_what_does_not_fit_its_stamp_is_made_again(self, damage: str, tmp_path: Path):
        source = write(tmp_path / "a.jsonl", gsm8k(50))
        path = prepare(GSM8K, source, tmp_path).path
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:500])
        elif damage == "stamp":
            stamp_of(path).write_text("{")
        elif damage == "other":
            pq.write_table(pq.read_table(path).slice(0, 10), path)
        else:
            stamp_of(path).write_text(json.dumps({**json.loads(stamp_of(path).read_text()), "format": 0}))
        assert read_stamp(path) is None
        assert prepare(GSM8K, source, tmp_path).fresh
        assert len(read(path)) == 50

    def test_a_failure_leaves_what_was_there(self, tmp_path: Path):
        path = prepare(GSM8K, write(tmp_path / "a.jsonl", gsm8k(50)), tmp_path / "out").path
        before = path.read_bytes()
        (tmp_path / "b.jsonl").write_text(json.dumps(gsm8k(1)[0]) + "\n{")
        with pytest.raises(ValueError, match="cannot be read after row 1"):
            prepare(GSM8K, str(tmp_path / "b.jsonl"), tmp_path / "out")
        assert path.read_bytes() == before
        assert read_stamp(path) is not None
        assert not list((tmp_path / "out").glob("*.partial"))

    def test_an_old_stamp_never_stands_beside_a_new_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """As many rows in both: only the stamp could tell them apart."""
        old, new = write(tmp_path / "old.jsonl", gsm8k(50)), write(tmp_path / "new.jsonl", gsm8k(60)[10:])
        path = prepare(GSM8K, old, tmp_path).path
        replace = os.replace

        def dies_before_the_stamp(source: Path, target: Path) -> None:
            if target == stamp_of(path):
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(stamped_file.os, "replace", dies_before_the_stamp)
        with pytest.raises(KeyboardInterrupt):
            prepare(GSM8K, new, tmp_path)
        monkeypatch.undo()
        assert prepare(GSM8K, old, tmp_path).fresh
        assert read(path)[0]["reward_model"]["ground_truth"] == "0"

    def test_a_stamp_that_cannot_be_written_leaves_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        path = prepare(GSM8K, write(tmp_path / "a.jsonl", gsm8k(50)), tmp_path / "out").path
        before = path.read_bytes(), stamp_of(path).read_bytes()

        def full(*_: object) -> None:
            raise OSError("No space left on device")

        for name in ("write_text", "write_bytes"):
            monkeypatch.setattr(Path, name, full)
        with pytest.raises(OSError, match="No space left"):
            prepare(GSM8K, str(tmp_path / "a.jsonl"), tmp_path / "out", force=True)
        assert (path.read_bytes(), stamp_of(path).read_bytes()) == before
        assert not list((tmp_path / "out").glob(".*.partial"))

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
    def test_a_source_whose_name_is_not_unicode(self, tmp_path: Path):
        source = tmp_path / os.fsdecode(b"a\xff.jsonl")
        done = prepare(GSM8K, write(source, gsm8k(3)), tmp_path / "out")
        assert read_stamp(done.path) == done.stamp
        assert done.stamp["source"]["name"] == str(source)

    def test_killed_in_the_middle(self, tmp_path: Path):
        """SIGKILL while it writes: no file, and the next run finishes."""
        source = write(tmp_path / "a.jsonl", gsm8k(20_000))
        code = (
            "import sys, time; from pathlib import Path; from verl_cov.tasks.data.prepare import prepare;"
            "from verl_cov.tasks.data.sets import SETS;"
            "slow = lambda done, total: (print(done, flush=True), time.sleep(60)) if done == 15000 else None;"
            "prepare(SETS['gsm8k'], sys.argv[1], Path(sys.argv[2]), progress=slow)"
        )
        out = tmp_path / "out"
        child = subprocess.Popen([sys.executable, "-c", code, source, str(out)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"15000\n"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert [path.name for path in out.glob("gsm8k*")] == []
        assert [path.name for path in out.glob(".*.partial")] == [".gsm8k.parquet.partial"]
        assert prepare(GSM8K, source, out).stamp["rows"]["kept"] == 20_000
        assert sorted(path.name for path in out.iterdir() if not path.name.endswith(".lock")) == [
            "gsm8k.json",
            "gsm8k.parquet",
        ]

    def test_two_at_once(self, tmp_path: Path):
        """Of two processes one makes the file; the other finds it."""
        source = write(tmp_path / "a.jsonl", gsm8k(20_000))
        context = multiprocessing.get_context("spawn")
        with context.Pool(3) as pool:
            fresh = pool.map(_prepare, [(source, str(tmp_path / "out"))] * 3, chunksize=1)
        assert sorted(fresh) == [False, False, True]
        assert len(read(tmp_path / "out" / "gsm8k.parquet")) == 20_000

    def test_row_groups_are_bounded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(stamped_file, "_GROUP_ROWS", 100)
        path = prepare(GSM8K, write(tmp_path / "a.jsonl", gsm8k(250)), tmp_path).path
        file = pq.ParquetFile(path)
        assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [100, 100, 50]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        assert [row["extra_info"]["index"] for row in read(path)] == [*range(250)]


def _prepare(job: tuple[str, str]) -> bool:
    return prepare(GSM8K, job[0], Path(job[1])).fresh


# Of 1,000 names; fixed by the hash, not by this program.
HELD_OUT = [156, 427, 773, 809]


class TestVerl:
    def test_verl_reads_all_sets_together(self, tmp_path: Path):
        """verl's own RLHFDataset over all prepared samples, as the recipes' train_files and val_files list them."""
        pytest.importorskip("verl")
        from omegaconf import OmegaConf
        from torch.utils.data import DataLoader
        from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

        from verl_cov.tasks import tiny_model

        for split in ("train", "test"):
            made = [prepare(one, "sample", tmp_path) for one in SETS.values() if one.split == split]
            config = OmegaConf.create(
                {
                    "cache_dir": str(tmp_path / "cache"),
                    "prompt_key": "prompt",
                    "max_prompt_length": 4096,
                    "filter_overlong_prompts": True,
                    "filter_overlong_prompts_workers": 1,
                    "truncation": "error",
                }
            )
            files = [str(one.path) for one in made]
            dataset = RLHFDataset(data_files=files, tokenizer=tiny_model.tokenizer(), config=config)
            assert len(dataset) == sum(one.stamp["rows"]["written"] for one in made)
            rows = [row for one in made for row in read(one.path)]
            batch = next(iter(DataLoader(dataset, batch_size=len(dataset), collate_fn=collate_fn)))
            for column in ("data_source", "ability", "reward_model", "extra_info"):
                assert list(batch[column]) == [row[column] for row in rows]
            assert list(batch["raw_prompt"]) == [row["prompt"] for row in rows]
            assert list(batch["index"]) == [row["extra_info"]["index"] for row in rows]
