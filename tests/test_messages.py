"""What the commands say of paths that are not there, and that what they advise to type can be typed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from typing import Any

import pytest
import typer
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


def commands() -> Iterator[tuple[list[str], Any]]:
    def below(command: Any, words: list[str]) -> Iterator[tuple[list[str], Any]]:
        for name, each in getattr(command, "commands", {}).items():
            yield from below(each, [*words, name]) if hasattr(each, "commands") else [([*words, name], each)]

    return below(typer.main.get_command(app), [])


# What takes no argument is its own example; what a script reads has one reader.
PLAIN = {"data list", "patch list", "patch revert", "recipes commands"}


def test_the_help_of_each_command_ends_with_examples_that_it_accepts():
    listed = {" ".join(words): command for words, command in commands()}
    assert len(listed) > 15
    assert {name for name, command in listed.items() if not command.epilog} == PLAIN
    for name, command in listed.items():
        for line in (command.epilog or "").split("\n\n")[1:]:
            program, *words = shlex.split(line)
            if program == "torchrun":  # of a command that also runs on several ranks
                assert f"-m verl_cov.{name}" in line
                continue
            given = words[len(name.split()) :]
            assert [program, *words[: len(name.split())]] == ["verl-cov", *name.split()]
            assert line in " ".join(
                CliRunner().invoke(app, [*name.split(), "-h"], env={"COLUMNS": "200"}).stdout.split()
            )
            if "--config" not in given:  # whose file must exist
                command.make_context(name, given)  # raises for an option that is not there


def test_an_unknown_name_among_hundreds_prints_few_of_them() -> None:
    from verl_cov.suggestions import did_you_mean, unknown

    known = [f"actor.field_{number}" for number in range(900)]
    for line in (unknown("field", "zzz", known), did_you_mean("zzz", known)):
        assert len(line) < 300
        assert "and 890 more" in line
