"""`python -m verl_cov.patch.make RELEASE ORIGINAL MODIFIED`: a patch set from two trees, for maintainers. Needs git.

ORIGINAL and MODIFIED hold verl/, as site-packages and a checkout do. The same trees give the same files.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from verl_cov import terminal
from verl_cov.patch import PatchError, backup, diff, installation, sets
from verl_cov.patch.installation import sha256

# Nothing of the maintainer's git: neither settings nor a repository around the temporary folder.
_GIT = [
    *("git", "-c", "core.quotePath=false", "-c", "diff.algorithm=histogram", "-c", "diff.indentHeuristic=true"),
    *("diff", "--no-index", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--text", "--unified=3"),
    *("--inter-hunk-context=0", "--full-index", "--no-prefix", "a", "b"),
]
_ALONE = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1", "LC_ALL": "C"}


def write(release: str, original: Path, modified: Path, folder: Path, summary: str) -> sets.PatchSet:
    """Write folder/mini_batch_hook.patch and folder/manifest.json, and check them. Raises PatchError."""
    before, after = _tree(original), _tree(modified)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if not changed:
        raise PatchError(f"{original} and {modified} have the same verl")
    for name in changed:
        if name not in after:
            raise PatchError(f"{name} is not in {modified}: a patch set changes and adds files, it removes none")
        if not sets.is_inside(name) or not name.isprintable() or '"' in name:
            raise PatchError(f"{name!r}: a path that a patch cannot name")
    old = {name: before[name] for name in changed if name in before}
    new = {name: after[name] for name in changed}
    patch = _git_diff(old, new)
    manifest = {
        "verl": release,
        "summary": summary,
        "files": {name: {"before": sha256(old.get(name)), "after": sha256(new[name])} for name in changed},
    }
    for name, one in diff.parse(patch).items():
        if (diff.apply(one, old.get(name)), diff.apply(one.reversed(), new[name])) != (new[name], old.get(name)):
            raise PatchError(f"git's diff of {name} does not give the file back")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / sets.PATCH).write_bytes(patch)
    (folder / sets.MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return sets.read(folder)


def _tree(parent: Path) -> dict[str, bytes]:
    """The package's files, without what Python and `verl-cov patch` put there."""
    found = {}
    for path in (parent / "verl").rglob("*"):
        parts = path.relative_to(parent).parts
        if path.is_file() and not {"__pycache__", backup.FOLDER} & set(parts) and path.suffix != ".pyc":
            found["/".join(parts)] = path.read_bytes()
    return found


def _git_diff(before: dict[str, bytes], after: dict[str, bytes]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        for side, tree in (("a", before), ("b", after)):
            (Path(folder) / side).mkdir()
            for name, content in tree.items():
                path = Path(folder) / side / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                path.chmod(0o644)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(
            _GIT,
            cwd=folder,
            env={**environment, **_ALONE, "GIT_CEILING_DIRECTORIES": str(Path(folder).parent)},
            capture_output=True,
        )
    if done.returncode != 1:
        raise PatchError(f"git diff failed: {done.stderr.decode(errors='replace').strip()}")
    return b"".join(map(_header, diff.lines(done.stdout)))


def _header(line: bytes) -> bytes:
    """Of a new file, git without prefixes names b/ twice."""
    start = b"diff --git b/"
    if not line.startswith(start):
        return line
    names = line[len(b"diff --git ") :]
    return b"diff --git a" + names[1:]


def main(
    release: Annotated[str, typer.Argument(help="Of verl: 0.9.1.")],
    original: Annotated[Path, typer.Argument(help="Holds that release's verl/.")],
    modified: Annotated[Path, typer.Argument(help="Holds verl/ as it should be.")],
    summary: Annotated[str | None, typer.Option(help="What the patch does, in a line; else as it was.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder of patch sets; else patches/.")] = None,
) -> None:
    """Write a patch set: the patch and its manifest."""
    with terminal.one_line():
        for path in (original, modified):
            found = installation.find(path).release
            if found != release:
                raise PatchError(f"{path} is verl {found}, not {release}")
        folder = (output or sets.PLACES[-1]) / release
        if summary is None:
            if not (folder / sets.MANIFEST).exists():
                raise PatchError("--summary: what does the patch do?")
            summary = str(json.loads((folder / sets.MANIFEST).read_bytes())["summary"])
        made = write(release, original, modified, folder, summary)
    typer.echo(f"written: {made.patch}, {len(made.files)} files")
    if not (folder / "README.md").exists():
        typer.echo(f"To be written: {folder / 'README.md'}, and a line in {folder.parent / 'README.md'}")


if __name__ == "__main__":
    typer.run(main)
