"""What a shell is offered: the protocol of the shells' scripts, which `verl-cov --install-completion` installs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from verl_cov.hooks.checks import command_line
from verl_cov.recipes import catalogue


def offered(line: str) -> list[str]:
    """What bash gets for the last word of a line."""
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-c", "from verl_cov.cli import main; main()"],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "_VERL_COV_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "there"),
    [
        (
            "verl-cov recipes run fig12-c",
            {"fig12-clip_cov", *(f"fig12-clip_cov/{run}" for run in catalogue.experiment("fig12-clip_cov").runs)},
        ),
        ("verl-cov recipes show sec4-7b/", {f"sec4-7b/{run}" for run in ("none", "clip_higher", "clip_cov", "kl_cov")}),
        ("verl-cov recipes check ", {*catalogue.options("experiment"), *catalogue.options("model")}),
        ("verl-cov recipes run tiny ", set(catalogue.options("algorithm"))),
        ("verl-cov recipes run tiny grpo kl", {"kl_cov"}),
        ("verl-cov recipes run tiny/grpo/kl", {"tiny/grpo/kl_cov"}),
        ("verl-cov recipes run tiny grpo kl_cov t", {"toy"}),
        ("verl-cov recipes run demo/vanilla demo/k", {"demo/kl_cov"}),
        ("verl-cov recipes run --scale g", {"gpu1"}),
        ("verl-cov recipes commands fig13", {"fig13-data"}),
        ("verl-cov data prepare math500 aime", {"aime24", "aime25"}),
        (
            "verl-cov doctor +verl_cov=",
            {f"+verl_cov={name}" for name in command_line.names("verl_cov")},
        ),
    ],
)
def test_names_are_completed(line, there):
    assert set(offered(line)) == there


def test_the_scripts_are_there_for_the_usual_shells():
    for shell, word in (("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --command")):
        command = [sys.executable, "-c", "from verl_cov.cli import main; main()", "--show-completion", shell]
        environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert word in done.stdout, done.stderr
        assert "verl-cov" in done.stdout
