"""`verl-cov data` as a user types it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from verl_cov.cli import app
from verl_cov.tasks.data.sets import SETS


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def said(result: Result) -> str:
    """The one line that a failure ends with."""
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("verl-cov: ")
    return line


def test_list_names_every_set():
    result = run("list")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in SETS)
    assert "455,261" in result.stdout
    assert "greedy" in result.stdout


def test_prepare_everything_and_check_it(tmp_path: Path):
    result = run("prepare", *SETS, "--from", "sample", "-o", tmp_path)
    assert result.exit_code == 0, result.output
    assert {path.stem for path in tmp_path.glob("*.parquet")} == set(SETS)
    assert "eurus2_rl_math: 1 of 3 questions is in math500" in result.stdout  # evaluation sets came first
    assert "gsm8k: 1 of 3 questions is in gsm8k_test" in result.stdout
    assert "2 duplicates, 1 of them with another answer" in result.stdout
    assert "not for training" in result.stdout
    checked = run("check", "--full", *sorted(tmp_path.glob("*.parquet")))
    assert checked.exit_code == 0, checked.output
    assert len(checked.stdout.splitlines()) == len(SETS)
    again = run("prepare", "gsm8k", "--from", "sample", "-o", tmp_path)
    assert "was there already" in again.stdout
    assert "is in gsm8k_test" not in again.stdout


def test_contamination(tmp_path: Path):
    run("prepare", "gsm8k", "gsm8k_test", "math500", "--from", "sample", "-o", tmp_path)
    files = sorted(tmp_path.glob("*.parquet"))
    looked = run("contamination", *files)
    assert looked.exit_code == 0
    (hint,) = (line for line in looked.stdout.splitlines() if line.startswith("  1 row in all; `"))
    command = shlex.split(hint.split("`")[1])
    assert hint.endswith("` removes it")
    assert command[:4] == ["verl-cov", "data", "contamination", "--remove"]
    assert pq.read_metadata(tmp_path / "gsm8k.parquet").num_rows == 3
    removed = run(*command[2:])  # as it was printed
    assert "gsm8k.parquet: 1 row removed, 2 left" in removed.stdout
    assert pq.read_metadata(tmp_path / "gsm8k.parquet").num_rows == 2
    assert "none of 2 questions is in gsm8k_test, math500" in run("contamination", *files).stdout
    again = run("prepare", "gsm8k", "--from", "sample", "-o", tmp_path).stdout
    assert "gsm8k.parquet (was there already): 2 of 5 rows" in again  # what is in the file now
    assert "1 removed that is in gsm8k_test" in again
    assert not re.search(r"\b1 (rows|duplicates|questions)\b", looked.stdout + removed.stdout + again)
    assert again.splitlines()[-1].startswith(f"Next: `verl-cov recipes check RECIPE --data {tmp_path}`")


def test_failures_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "there is no set 'math50': did you mean math500" in said(run("prepare", "math50", "-o", tmp_path))
    assert "no such file or folder" in said(run("prepare", "math500", "--from", tmp_path / "x.jsonl", "-o", tmp_path))
    assert "omni_math_rule.jsonl" in said(run("prepare", "omni_math", "-o", tmp_path))
    assert "cannot be read from the Hugging Face Hub" in said(run("prepare", "math500", "-o", tmp_path))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    assert "has the fields text" in said(run("prepare", "math500", "--from", tmp_path / "a.jsonl", "-o", tmp_path))
    assert "not a parquet file" in said(run("check", tmp_path / "a.jsonl"))
    assert "there is no such file" in said(run("check", tmp_path / "b.parquet"))
    (tmp_path / "file").write_text("")
    assert "file" in said(run("prepare", "math500", "--from", "sample", "-o", tmp_path / "file"))


def test_a_set_that_cannot_be_had_does_not_stop_the_others(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"problem": "What is 1 + 1?", "answer": "2"}) + "\n")
    out = tmp_path / "out"
    result = run("prepare", "gsm8k_test", "math500", "gsm8k", "aime24", "--from", tmp_path / "a.jsonl", "-o", out)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert [line.split()[1] for line in lines] == ["gsm8k_test:", "gsm8k:"]
    assert all(line.startswith("verl-cov: ") and "has the fields answer, problem" in line for line in lines)
    assert sorted(path.name for path in out.glob("[!.]*")) == [
        "aime24.json",
        "aime24.parquet",
        "math500.json",
        "math500.parquet",
    ]


def test_a_set_without_a_place_on_the_hub_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = run("prepare", "omni_math", "aime24", "-o", tmp_path)
    assert result.exit_code == 2
    first, second = result.stderr.splitlines()
    assert first.startswith("verl-cov: omni_math is not on the Hugging Face Hub: ")
    assert second.startswith("verl-cov: aime24: HuggingFaceH4/aime_2024 cannot be read from the Hugging Face Hub")


def test_text_that_is_not_unicode_is_shown_escaped(tmp_path: Path):
    rows = [{"question": "\ud800x", "answer": "#### 6"}, {"question": "What is 3 + 3?", "answer": "#### 6"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("prepare", "gsm8k", "--from", tmp_path / "a.jsonl", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert r"1 dropped: the question is not Unicode, such as row 0: \ud800x" in result.stdout
    assert (tmp_path / "out" / "gsm8k.json").is_file()


def test_contamination_takes_a_file_once_however_it_is_given(tmp_path: Path):
    run("prepare", "gsm8k", "gsm8k_test", "--from", "sample", "-o", tmp_path)
    training, evaluation = tmp_path / "gsm8k.parquet", tmp_path / "gsm8k_test.parquet"
    again = tmp_path / "." / ".." / tmp_path.name / training.name
    (tmp_path / "link.parquet").symlink_to(training)
    files = (training, training, again, tmp_path / "link.parquet", evaluation, evaluation)
    removed = run("contamination", "--remove", *files)
    assert removed.exit_code == 0, removed.output
    assert removed.stdout.count("row removed") == removed.stdout.count("is in gsm8k_test") == 1
    assert pq.read_metadata(training).num_rows == 2


def test_an_unknown_number_of_rows(tmp_path: Path):
    row = {"problem": "What is 1 + 1?", "answer": "2"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    command = ("prepare", "math500", "--from", tmp_path / "a.jsonl", "-o", tmp_path)
    assert "Warning: 1 row, where the known source has 500" in run(*command).stdout
    assert "1 row, where the known source has 500 (--strict)" in said(run(*command, "--strict"))


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from verl_cov.cli import app;"
        "assert CliRunner().invoke(app, ['data', '--help']).exit_code == 0;"
        "print(sorted({'torch', 'pyarrow', 'datasets', 'verl', 'filelock'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
