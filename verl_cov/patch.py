"""`verl-cov patch`: reviewed diffs that give an installed verl a mini-batch hook in its own code.

A diff names each file by git's hash of its bytes before and after (`index BEFORE..AFTER`): a file is verl's own, or
patched, or neither, and one that is neither stops everything. `git apply` or `patch` works on copies; those with the
right hash are moved into place. So an interrupted run leaves whole files, and `apply` or `revert` finishes it.
Trap: inside a repository `git apply` silently skips what it takes for another's; `patch` leaves .orig and .rej behind.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer

from verl_cov import terminal

PLACES = (Path(__file__).parent / "patches", Path(__file__).parents[1] / "patches")  # a wheel's, a checkout's
ABSENT = "0" * 40  # git's hash of a file that is not there
TOOLS = {"git": ["git", "apply", "-p1", "--whitespace=nowarn"], "patch": ["patch", "-p1"]}
REMINDER = """Every node needs the same: run this on each that has a verl of its own; a shared folder needs it once.
Running trainings and Ray workers keep the old code: `ray stop`, then start them again."""

State = Literal["not applied", "applied", "partly applied", "edited", "no patch"]


@dataclass(frozen=True)
class FileDiff:
    """The part of a patch that changes one file: its path from site-packages, hash before and after, and the diff."""

    path: str
    before: str
    after: str
    diff: bytes


@dataclass(frozen=True)
class Status:
    """How the verl in the folder `site` compares with the patch of its release, and what a user can do about it."""

    site: Path
    release: str
    state: State
    advice: str = ""
    files: tuple[FileDiff, ...] = ()

    def __str__(self) -> str:
        return f"verl {self.release}, {self.site / 'verl'}: {self.state}" + (f"; {self.advice}" if self.advice else "")


def patches() -> dict[str, Path]:
    """The patch of each release of verl that has one, oldest first."""
    return {path.parent.name: path for place in PLACES for path in sorted(place.glob("*/mini_batch_hook.patch"))}


def read_patch(path: Path) -> tuple[FileDiff, ...]:
    """The files of a patch, in its order: a new file comes before those that import it."""
    header = re.compile(rb"diff --git a/(\S+) .*\n(?:new file .*\n)?index (\w{40})\.\.(\w{40})")
    diffs = re.split(rb"^(?=diff --git )", path.read_bytes(), flags=re.MULTILINE)
    found = [(match, diff) for diff in diffs if (match := header.match(diff))]
    return tuple(FileDiff(match[1].decode(), match[2].decode(), match[3].decode(), diff) for match, diff in found)


def status(path: Path | None = None) -> Status:
    """Compares the verl of this Python, or the one at path, with the patch of its release; changes nothing.

    path: the package's folder `verl`, or the one it is in. Raises ValueError if there is no verl.
    """
    site = _find_site(path)
    release = (site / "verl" / "version" / "version").read_text().strip()
    base = release.partition("+")[0]  # a build of one's own, 0.9.1+ours: the hashes say whether the patch fits
    if base not in patches():
        return Status(site, release, "no patch", f"only {', '.join(patches())} have one; from 0.8 on none is needed")
    files = read_patch(patches()[base])
    hashes = {file: _hash(site / file.path) for file in files}
    if edited := [file.path for file in files if hashes[file] not in (file.before, file.after)]:
        fix = f"undo the edits, or pip install --force-reinstall --no-deps verl=={base}"
        return Status(site, release, "edited", f"neither verl's own nor patched: {', '.join(edited)}: {fix}", files)
    applied = [hashes[file] == file.after for file in files]
    if all(applied):
        return Status(site, release, "applied", files=files)
    if any(applied):
        return Status(site, release, "partly applied", "`verl-cov patch apply` or `revert` finishes it", files)
    return Status(site, release, "not applied", f"apply would change {', '.join(file.path for file in files)}", files)


def change(found: Status, *, reverse: bool = False) -> str:
    """Applies the patch, or takes it back, in all files that need it or in none; returns what to tell the user.

    Raises ValueError, and changes nothing, if a file was edited, a folder is read-only, or no tool is there or works.
    """
    if found.state in ("edited", "no patch"):
        raise ValueError(f"{found}; nothing was changed")
    package = found.site / "verl"
    goals = {file: file.before if reverse else file.after for file in found.files}
    wanted = [file for file in goals if _hash(found.site / file.path) != goals[file]]
    if not wanted:
        return str(found)
    for folder in [package, *((found.site / file.path).parent for file in wanted)]:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"{folder} is read-only for you: run this as its owner; nothing was changed")
    with TemporaryDirectory(dir=package, prefix=".verl_cov_patch-") as scratch:
        staged = [(file, Path(scratch) / file.path, found.site / file.path) for file in wanted]
        for file, copy, target in staged:
            copy.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                shutil.copyfile(target, copy)
            _run_tool(file.diff, Path(scratch), reverse)
            if _hash(copy) != goals[file]:
                raise ValueError(f"the patch of {file.path} is damaged: install verl-cov again; nothing was changed")
            if copy.exists():
                shutil.copymode(target if target.exists() else package / "__init__.py", copy)
        for _, copy, target in reversed(staged) if reverse else staged:
            if copy.exists():
                copy.replace(target)  # not written over: uv links the files of many environments together
            else:
                target.unlink(missing_ok=True)
            for bytecode in (target.parent / "__pycache__").glob(f"{target.stem}.*.pyc"):
                bytecode.unlink(missing_ok=True)
    return f"{package}: {'reverted' if reverse else 'applied'} in {', '.join(file.path for file in wanted)}\n{REMINDER}"


def _find_site(path: Path | None) -> Path:
    if path is None:
        spec = importlib.util.find_spec("verl")  # of a top-level name: finds it, does not import it
        if spec is None or spec.origin is None:
            raise ValueError(f"there is no verl in {sys.executable}: install it there, or use --verl-path DIR")
        path = Path(spec.origin).parent
    for package in (path / "verl", path):
        if (package / "version" / "version").is_file():
            return package.resolve().parent
    raise ValueError(f"there is no verl in {path}: --verl-path is the package's folder verl, or the one it is in")


def _hash(path: Path) -> str:
    if not path.is_file():
        return ABSENT
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _run_tool(diff: bytes, folder: Path, reverse: bool) -> None:
    """Runs git, or else patch, in a folder: without the user's settings, and blind to any repository around it."""
    command = next((command for tool, command in TOOLS.items() if shutil.which(tool)), None)
    if command is None:
        raise ValueError("neither git nor patch is installed: install one of them (apt-get install patch)")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    environment |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1", "LC_ALL": "C"}
    done = subprocess.run(command + ["-R"] * reverse, cwd=folder, env=environment, input=diff, capture_output=True)
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        raise ValueError(f"{command[0]} failed, and nothing was changed: {said}")


app = typer.Typer(no_args_is_help=True, add_completion=False, help="Patch an installed verl with a reviewed diff.")
VerlPath = Annotated[Path | None, typer.Option(help="The folder verl, or the one it is in; else this Python's verl.")]


@app.command("list")
def list_patches(verl_path: VerlPath = None) -> None:
    """Which releases of verl there is a patch for, and which one is here."""
    for path in patches().values():
        typer.echo((path.parent / "README.md").read_text().partition("\n")[0].removeprefix("# "))
    try:
        typer.echo(f"here: {status(verl_path)}")
    except ValueError as error:
        typer.echo(str(error))


@app.command(epilog=terminal.examples("verl-cov patch check", "verl-cov patch check --verl-path /opt/verl"))
def check(verl_path: VerlPath = None) -> None:
    """Is it applied, or can it be? One line; exit code 0 if so, 1 if not. Changes nothing."""
    with terminal.one_line():
        found = status(verl_path)
    typer.echo(found)
    raise typer.Exit(0 if found.state in ("applied", "not applied") else 1)


@app.command(epilog=terminal.examples("verl-cov patch apply", "verl-cov patch apply --verl-path /opt/verl"))
def apply(verl_path: VerlPath = None) -> None:
    """Patch verl, all of it or nothing."""
    with terminal.one_line():
        typer.echo(change(status(verl_path)))


@app.command()
def revert(verl_path: VerlPath = None) -> None:
    """Bring verl's own files back, byte for byte; also after an `apply` that was interrupted."""
    with terminal.one_line():
        typer.echo(change(status(verl_path), reverse=True))
