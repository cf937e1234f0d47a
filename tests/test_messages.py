"""What the commands say of paths that are not there, and that what they advise to type can be typed."""

from __future__ import annotations

import time

import pytest
from typer.testing import CliRunner

from verl_cov import terminal
from verl_cov.cli import app


def refused(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "Errno" not in line
    return line


@pytest.mark.parametrize(
    "words",
    [
        *([word, "nowhere"] for word in ("fit", "forecast", "compare", "plot", "report", "tokens")),
        ["watch", "nowhere", "--once"],
        ["scale", "nowhere"],
        ["scale", "7=nowhere"],
        ["data", "check", "nowhere"],
        ["data", "contamination", "nowhere"],
        ["data", "prepare", "gsm8k", "--from", "./nowhere"],
    ],
    ids=" ".join,
)
def test_a_path_that_does_not_exist_is_no_such_file(words):
    line = refused(*words)
    assert "no such file" in line
    assert "nowhere" in line


def test_a_run_of_a_table_that_does_not_exist_is_no_such_file_either():
    assert "nowhere.csv::a: no such file" in refused("fit", "nowhere.csv::a")


def test_a_sign_of_life_comes_if_it_takes_long_and_only_then(capsys):
    with terminal.working("doing it", patience_s=0.01):
        time.sleep(0.5)
    assert capsys.readouterr() == ("", "verl-cov: doing it ...\n")
    with terminal.working("doing it"):
        pass
    assert capsys.readouterr() == ("", "")
