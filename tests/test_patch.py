"""`verl-cov patch` on copies of real verl releases: byte for byte, all or nothing, whatever stands in the way.

The hashes that a patch states are checked by `git hash-object`. Runs with every release of verl (`make compat`).
"""

from __future__ import annotations

import importlib.util
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from typer.testing import CliRunner

from verl_cov import patch
from verl_cov.cli import app

ROOT = Path(__file__).parents[1]
INSTALLED = Path(importlib.util.find_spec("verl").origin).parent
RELEASE = (INSTALLED / "version" / "version").read_text().strip()
HOOK = "verl/utils/mini_batch_hook.py"
TOOLS = ("git", "patch")
DIFFS = {path.parent.name: path for path in sorted(ROOT.glob("patches/*/*.patch"))}
needs_patch = pytest.mark.skipif(RELEASE not in DIFFS, reason="this verl has no patch")


def stated(release: str) -> dict[str, tuple[str, str]]:
    """path -> git's hashes before and after, as the patch says."""
    lines = DIFFS[release].read_text().splitlines()
    paths = [line.split(" b/")[1] for line in lines if line.startswith("diff --git ")]
    hashes = [tuple(line.split()[1].split("..")) for line in lines if line.startswith("index ")]
    return dict(zip(paths, hashes, strict=True))


def git_hash(path: Path) -> str:
    command = ["git", "hash-object", "--no-filters", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def snapshot(site: Path) -> dict[str, tuple[int, bytes]]:
    """Mode bits and bytes of every file, those of a killed run's scratch folder left out."""
    files = [path for path in sorted(site.rglob("*")) if path.is_file() and ".verl_cov_patch-" not in str(path)]
    return {str(path.relative_to(site)): (path.stat().st_mode, path.read_bytes()) for path in files}


def copy_installed(site: Path) -> Path:
    """A site-packages with the files of the installed verl that matter here, as its wheel has them."""
    for name in ["verl/__init__.py", "verl/version/version", "verl/utils/import_utils.py", *stated(RELEASE)]:
        source = INSTALLED.parent / name
        if source.exists():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, site / name)
    return site


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return copy_installed(tmp_path / "site-packages")


def run(*words: object):
    return CliRunner().invoke(app, ["patch", *map(str, words)])


def run_at(site: Path, command: str):
    return run(command, "--verl-path", site)


def only(tool: str | None, folder: Path, monkeypatch) -> None:
    """Leaves one tool, or none, to be found."""
    folder.mkdir()
    if tool is not None:
        if (found := shutil.which(tool)) is None:
            pytest.skip(f"no {tool} here")
        (folder / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))


def assert_patched(site: Path, release: str = RELEASE) -> None:
    path = os.environ["PATH"]
    try:
        os.environ["PATH"] = os.defpath
        assert {name: git_hash(site / name) for name in stated(release)} == {
            name: after for name, (_, after) in stated(release).items()
        }
    finally:
        os.environ["PATH"] = path


def assert_refused(site: Path, says: str, *commands: str) -> None:
    """In one line that says why and how to go on, and nothing is changed."""
    before = snapshot(site)
    for command in commands or ("apply", "revert"):
        done = run_at(site, command)
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.output
        assert says in done.stderr
        assert "nothing was changed" in done.stderr
        assert snapshot(site) == before


# --- the patches ------------------------------------------------------------------------------------------------------


def test_there_is_a_patch_for_the_legacy_actors_and_one_for_upstream_each_with_its_documentation():
    assert list(patch.patches()) == list(DIFFS) == ["0.6.1", "0.7.1", "0.9.1"]
    table = re.findall(r"^\| \[([\d.]+)\]", (ROOT / "patches" / "README.md").read_text(), flags=re.MULTILINE)
    assert table == list(DIFFS)
    for release, path in DIFFS.items():
        assert (path.parent / "README.md").read_text().startswith(f"# verl {release}: ")


@pytest.mark.parametrize("release", DIFFS)
def test_a_patch_names_full_hashes_and_has_the_new_file_before_those_that_import_it(release, tmp_path):
    hashes = stated(release)
    assert next(iter(hashes)) == HOOK
    for name, (before, after) in hashes.items():
        assert name.startswith("verl/")
        assert re.fullmatch("[0-9a-f]{40}", before)
        assert re.fullmatch("[0-9a-f]{40}", after)
        assert (set(before) == {"0"}) == (name == HOOK)
    text = DIFFS[release].read_text()
    hook = text.partition("diff --git")[2].partition("diff --git")[0].partition("@@\n")[2]
    (tmp_path / "hook.py").write_text("".join(line[1:] + "\n" for line in hook.splitlines()))
    assert git_hash(tmp_path / "hook.py") == hashes[HOOK][1] == stated("0.9.1")[HOOK][1]  # the same in all


@pytest.mark.release
@pytest.mark.parametrize("release", DIFFS)
@pytest.mark.parametrize("tool", TOOLS)
def test_each_patch_on_the_wheel_of_its_release(release, tool, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"verl=={release}", "-d", str(tmp_path)]
    subprocess.run(command, check=True)
    site = tmp_path / "site-packages"
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(site)
    before = snapshot(site)
    only(tool, tmp_path / "bin", monkeypatch)
    assert run_at(site, "apply").exit_code == 0
    assert_patched(site, release)
    changed = {name for name, content in snapshot(site).items() if before.get(name) != content}
    assert changed == set(stated(release))
    assert run_at(site, "revert").exit_code == 0
    assert snapshot(site) == before


# --- apply and revert -------------------------------------------------------------------------------------------------


@needs_patch
@pytest.mark.parametrize("tool", TOOLS)
def test_the_four_commands_with_either_tool(site, tool, tmp_path, monkeypatch):
    only(tool, tmp_path / "bin", monkeypatch)
    names, package, before = ", ".join(stated(RELEASE)), site / "verl", snapshot(site)
    not_applied = f"verl {RELEASE}, {package}: not applied; apply would change {names}\n"
    done = run_at(site, "list")
    assert (done.exit_code, done.stdout.splitlines()[-1] + "\n") == (0, f"here: {not_applied}")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [*(f"verl {r}" for r in DIFFS), "here"]
    assert (run_at(site, "check").exit_code, run_at(site, "check").stdout) == (0, not_applied)
    assert snapshot(site) == before

    done = run_at(site, "apply")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, f"{package}: applied in {names}")
    assert "Every node" in done.stdout
    assert "`ray stop`" in done.stdout
    assert_patched(site)
    patched = snapshot(site)
    assert patched.keys() - before.keys() == {HOOK}
    for command in ("check", "apply"):  # what is applied stays as it is
        done = run_at(site, command)
        assert (done.exit_code, done.stdout) == (0, f"verl {RELEASE}, {package}: applied\n")
        assert snapshot(site) == patched

    done = run_at(site, "revert")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, f"{package}: reverted in {names}")
    assert snapshot(site) == before
    assert (run_at(site, "revert").exit_code, run_at(site, "revert").stdout) == (0, not_applied)


@needs_patch
def test_without_git_and_patch_the_line_names_what_to_install(site, tmp_path, monkeypatch):
    only(None, tmp_path / "bin", monkeypatch)
    before = snapshot(site)
    done = run_at(site, "apply")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "neither git nor patch is installed: install one of them" in done.stderr
    assert snapshot(site) == before


@needs_patch
def test_inside_a_repository_that_ignores_the_installation(site, tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("site-packages/\n")
    before = snapshot(site)
    plain = subprocess.run(["git", "apply", str(DIFFS[RELEASE])], cwd=site)
    assert plain.returncode == 0
    assert snapshot(site) == before  # the trap is there: git skips everything and says nothing
    monkeypatch.chdir(tmp_path)
    assert run_at(site, "apply").exit_code == 0
    assert_patched(site)
    assert run_at(site, "revert").exit_code == 0
    assert snapshot(site) == before


@needs_patch
def test_the_users_settings_of_git_change_nothing(site, tmp_path, monkeypatch):
    settings = "[core]\n autocrlf = true\n[apply]\n whitespace = error-all\n ignorewhitespace = change\n"
    (tmp_path / ".gitconfig").write_text(settings)
    monkeypatch.setenv("HOME", str(tmp_path))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as in a hook of git
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    before = snapshot(site)
    for command in ("apply", "revert"):
        assert run_at(site, command).exit_code == 0
    assert snapshot(site) == before


@needs_patch
def test_modes_stay_and_a_hard_linked_cache_is_not_changed(site, tmp_path):
    changed = next(name for name in stated(RELEASE) if name != HOOK)
    (site / changed).chmod(0o640)
    (site / "verl" / "__init__.py").chmod(0o664)
    os.link(site / changed, tmp_path / "cache")
    before, cached = snapshot(site), (tmp_path / "cache").read_bytes()
    run_at(site, "apply")
    assert (site / changed).stat().st_mode & 0o777 == 0o640
    assert (site / HOOK).stat().st_mode & 0o777 == 0o664  # as the package's, whatever the umask
    assert (tmp_path / "cache").read_bytes() == cached
    run_at(site, "revert")
    assert snapshot(site) == before


@needs_patch
def test_stale_bytecode_of_the_changed_files_is_removed(site):
    """Bytecode that Python does not compare with its source would keep the old code alive."""

    def compile_files() -> set[Path]:
        files = [site / name for name in [*stated(RELEASE), "verl/utils/import_utils.py"] if (site / name).exists()]
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        return {Path(py_compile.compile(str(file), doraise=True, invalidation_mode=unchecked)) for file in files}

    for command in ("apply", "revert"):
        compiled = compile_files()
        run_at(site, command)
        assert [file.name.partition(".")[0] for file in compiled if file.exists()] == ["import_utils"]


# --- what stands in the way -------------------------------------------------------------------------------------------

EDITS = {
    "a line more": lambda content: content + b"# ours\n",
    "CRLF": lambda content: content.replace(b"\n", b"\r\n"),
    "gone": None,
}


@needs_patch
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("patched", [False, True])
def test_an_edited_file_is_named_and_nothing_is_touched(site, edit, patched):
    if patched:
        run_at(site, "apply")
    name = list(stated(RELEASE))[-1]
    file, change = site / name, EDITS[edit]
    file.unlink() if change is None else file.write_bytes(change(file.read_bytes()))
    done = run_at(site, "check")
    assert (done.exit_code, done.stdout.count("\n")) == (1, 1)
    assert_refused(site, f"edited; neither verl's own nor patched: {name}: undo the edits, or pip install --force-")


@needs_patch
def test_another_file_in_the_place_of_the_new_one_is_left_alone(site):
    (site / HOOK).write_text("somebody's own\n")
    assert_refused(site, f"neither verl's own nor patched: {HOOK}: ")


@needs_patch
@pytest.mark.parametrize("release", ["0.8.0", "0.5.0", "main"])
def test_a_release_without_a_patch_is_told_which_have_one(site, release):
    (site / "verl" / "version" / "version").write_text(f"{release}\n")
    done = run_at(site, "check")
    line = f"verl {release}, {site}/verl: no patch; only 0.6.1, 0.7.1, 0.9.1 have one; from 0.8 on none is needed"
    assert (done.exit_code, done.stdout) == (1, line + "\n")
    assert_refused(site, line)


@needs_patch
def test_a_build_of_ones_own_has_the_patch_of_its_release_if_its_files_are_the_same(site):
    (site / "verl" / "version" / "version").write_text(f"{RELEASE}+ours\n")
    before = snapshot(site)
    assert run_at(site, "apply").exit_code == 0
    assert_patched(site)
    assert run_at(site, "revert").exit_code == 0
    assert snapshot(site) == before


@needs_patch
def test_what_another_release_left_behind_is_brought_to_an_end(site):
    """pip removes the old release's files, and not the one that the patch added."""
    before = snapshot(site)
    run_at(site, "apply")
    for name in set(stated(RELEASE)) - {HOOK}:
        (site / name).write_bytes(before[name][1])
    done = run_at(site, "check")
    assert done.exit_code == 1
    assert "partly applied; `verl-cov patch apply` or `revert` finishes it" in done.stdout
    assert run_at(site, "revert").exit_code == 0
    assert snapshot(site) == before


def as_nobody() -> None:
    if os.getuid() == 0:  # whom no mode stops
        os.setuid(65534)


@needs_patch
@pytest.mark.parametrize("closed", ["verl", "verl/workers"])
def test_a_read_only_installation_is_refused_before_anything_is_written(closed):
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        site = copy_installed(Path(folder) / "site-packages")
        for path in [site, *site.rglob("*")]:
            path.chmod(0o644 if path.is_file() else 0o777)
        for path in (site / closed, *(site / closed).glob("**/")):
            path.chmod(0o555)
        before = snapshot(site)
        with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=as_nobody) as pool:
            refused = pool.submit(run_and_say, site, "apply").result(timeout=1000)
        assert refused[0] == 2
        assert re.search(rf"{site}/{closed}\S* is read-only for you: run this as its owner; nothing was", refused[1])
        assert snapshot(site) == before


def run_and_say(site: Path, command: str) -> tuple[int, str]:
    done = run_at(site, command)
    return done.exit_code, done.stderr


@needs_patch
@pytest.mark.parametrize("command", ["apply", "revert"])
@pytest.mark.parametrize("moves", [0, 1])
@pytest.mark.parametrize("then", ["apply", "revert"])
def test_a_killed_run_leaves_whole_files_and_another_finishes_it(site, tmp_path, command, moves, then):
    before = snapshot(site)
    if command == "revert":
        run_at(site, "apply")
    start = snapshot(site)
    code = f"""
import os, signal
from pathlib import Path
from verl_cov import patch
move, moved = Path.replace, []
def replace(copy, target):
    if len(moved) == {moves}:
        os.kill(os.getpid(), signal.SIGKILL)
    moved.append(move(copy, target))
Path.replace = replace
patch.change(patch.status(Path({str(site)!r})), reverse={command == "revert"})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment)
    count = sum(hashes[0] != patch.ABSENT for hashes in stated(RELEASE).values()) + (command == "apply")
    assert killed.returncode == (-signal.SIGKILL if moves < count else 0)
    if moves:
        assert snapshot(site) != start
    assert patch.status(site).state in ("applied", "not applied", "partly applied")
    if not (site / HOOK).exists():  # at no time does a file import a hook that is not there
        assert not [name for name, (_, content) in snapshot(site).items() if b"mini_batch_hook import" in content]
    assert run_at(site, then).exit_code == 0
    if then == "revert":
        assert snapshot(site) == before
    else:
        assert_patched(site)


@needs_patch
def test_a_disk_that_fails_ends_in_one_line_and_revert_repairs_it(site, monkeypatch):
    before, move, moved = snapshot(site), Path.replace, []

    def replace(copy, target):
        if moved:
            raise OSError(28, "No space left on device", str(target))
        moved.append(move(copy, target))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", replace)
        done = run_at(site, "apply")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "o space left on device" in done.stderr
    assert not list(site.rglob(".verl_cov_patch-*"))
    assert "partly applied" in run_at(site, "check").stdout
    assert run_at(site, "revert").exit_code == 0
    assert snapshot(site) == before


# --- finding verl -----------------------------------------------------------------------------------------------------


@needs_patch
def test_the_verl_of_this_python_is_found_and_not_imported(site, tmp_path):
    (site / "verl" / "__init__.py").write_text("raise ImportError('verl was imported')\n")
    command = [sys.executable, "-c", "from verl_cov.cli import main; main()", "patch", "check"]
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"verl {RELEASE}, {site}/verl: not applied")


@needs_patch
def test_the_path_is_the_package_or_the_folder_it_is_in_also_relative_or_through_a_link(site, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(site / "verl")
    monkeypatch.chdir(site)
    for path in (site, site / "verl", "verl", ".", tmp_path / "link"):
        assert run("check", "--verl-path", path).stdout.startswith(f"verl {RELEASE}, {site}/verl: not applied")


def test_no_verl_is_said(tmp_path, monkeypatch):
    says = f"there is no verl in {tmp_path}: --verl-path is the package's folder verl, or the one it is in\n"
    for command in ("check", "apply", "revert"):
        done = run(command, "--verl-path", tmp_path)
        assert (done.exit_code, done.stderr) == (2, f"verl-cov: {says}")
    done = run("list", "--verl-path", tmp_path)  # the patches are there all the same
    assert (done.exit_code, done.stdout.endswith(says), len(done.stdout.splitlines())) == (0, True, len(DIFFS) + 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert f"there is no verl in {sys.executable}: install it there, or use --verl-path" in run("check").stderr
