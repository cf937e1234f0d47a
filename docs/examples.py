"""The examples of docs/commands.md: `python -m docs.examples` runs its commands and writes what they print below them.

An example is a fenced block ``console`` with `$ verl-cov ...` and what that prints, its first lines and columns. They
run one after the other in one folder that has the demo's runs of docs/notebooks. A block below the comment
``<!-- by hand -->`` (a training, a patch of verl, what changes by the day) keeps the output that it has;
``<!-- last lines -->`` shows the end.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE / "commands.md"
LINES, COLUMNS = 16, 108  # what is shown of an output
BLOCK = re.compile(
    r"^(?P<note><!-- (?:by hand|last lines) -->\n)?```console\n\$ (?P<command>.+)\n(?P<output>(?:.*\n)*?)```$",
    re.MULTILINE,
)


_MAIN = "import sys; sys.argv[0] = 'verl-cov'; from verl_cov.cli import main; main()"


@dataclass(frozen=True)
class Example:
    command: str
    output: str
    note: str

    @property
    def by_hand(self) -> bool:
        return "by hand" in self.note

    @property
    def words(self) -> list[str]:
        return shlex.split(self.command)


def examples(text: str) -> list[Example]:
    return [Example(one["command"], one["output"], one["note"] or "") for one in BLOCK.finditer(text)]


def outputs(wanted: list[Example]) -> Iterator[tuple[Example, str]]:
    """Run the examples that are not by hand, in order; each with what it prints. Raises RuntimeError if one fails."""
    # Processes of their own, with these variables alone: who runs them may have others.
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env |= {"COLUMNS": str(COLUMNS), "TERM": "xterm", "VERL_PLATFORM": "cpu", "PYTHONPATH": str(HERE.parent)}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        shutil.copytree(HERE / "notebooks" / "demo", "demo")
        places = {folder: "/home/me", str(HERE.parent): "/home/me/verl-cov", sys.prefix: "/home/me/.venv"}
        for example in wanted:
            if example.by_hand:
                continue
            command = [sys.executable, "-c", _MAIN, *example.words[1:]]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if done.returncode not in (0, 1):  # 1: a check that says no
                raise RuntimeError(f"{example.command}: {done.stdout}{done.stderr}")
            printed = done.stdout
            for place, name in sorted(places.items(), key=lambda each: -len(each[0])):
                printed = printed.replace(place, name)
            yield example, shown(printed, last="last lines" in example.note)


def shown(output: str, last: bool = False) -> str:
    """The first lines of an output, or the last ones, as wide as the page."""
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    lines = [line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…" for line in lines]
    if len(lines) > LINES:
        lines = ["...", *lines[-LINES:]] if last else [*lines[:LINES], "..."]
    return "\n".join(lines) + "\n"


def form(output: str) -> list[str]:
    """What of an output does not depend on the machine and the numbers: the words of its lines."""
    output = re.sub(r"\S*/\S*", " ", output)  # paths
    output = "\n".join(line[:40] for line in output.splitlines())
    return [" ".join(re.findall(r"[A-Za-z]{2,}", line)) for line in output.splitlines() if line.strip()]


def renewed(text: str) -> str:
    """The page with what its commands print today."""
    new = {example.command: output for example, output in outputs(examples(text))}

    def block(found: re.Match[str]) -> str:
        if found["command"] not in new:
            return found[0]
        return f"{found['note'] or ''}```console\n$ {found['command']}\n{new[found['command']]}```"

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
