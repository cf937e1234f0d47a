"""Apply and revert: all of it or nothing, byte for byte, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patch.conftest import CHANGED, CREATED, EMPTY, MODIFIED, NEW, ORIGINAL, A, B, Place, dist_info, lay, snapshot
from verl_cov.patch import PatchError, backup, commands, files, make, sets
from verl_cov.patch.commands import State


def refused(place: Place, said: str, command=commands.apply) -> None:
    """With that line, and nothing changed."""
    before = snapshot(place.site)
    with pytest.raises(PatchError, match=said) as found:
        command(place.site)
    assert "\n" not in str(found.value)
    assert snapshot(place.site) == before


def state(place: Place) -> State:
    """Looked at, which changes nothing."""
    before = snapshot(place.site)
    found = commands.status(place.site).state
    assert snapshot(place.site) == before
    return found


def test_apply_and_revert(place):
    assert state(place) is State.NOT_APPLIED
    said = commands.apply(place.site)
    place.assert_patched()
    assert said[0] == (
        f"verl 0.9.1, {place.package}: applied, changed verl/trainer/a.py, verl/workers/b.py "
        "and added verl/update/__init__.py, verl/update/mini_batch.py"
    )
    assert state(place) is State.APPLIED
    said = commands.revert(place.site)
    assert said[0] == f"verl 0.9.1, {place.package}: reverted, {', '.join(CREATED + CHANGED)}"
    place.assert_as_before()
    assert state(place) is State.NOT_APPLIED


def test_what_apply_leaves_is_the_backup_and_nothing_else(place):
    commands.apply(place.site)
    left = {name for name, (_, content) in snapshot(place.site).items() if content is not None} - set(place.before)
    kept = ("state.json", "originals/trainer/a.py", "originals/workers/b.py")
    assert left == {*CREATED, *(f"verl/.verl_cov_patch/{name}" for name in kept)}
    record = json.loads((place.package / ".verl_cov_patch" / "state.json").read_text())
    assert (record["state"], record["verl"], set(record["files"])) == ("applied", "0.9.1", set(CHANGED + CREATED))
    assert record["time"]


def test_modes_are_kept_and_a_new_file_has_the_packages(place):
    (place.package / "__init__.py").chmod(0o664)
    commands.apply(place.site)
    assert stat.S_IMODE(place.file(A).stat().st_mode) == 0o640
    assert stat.S_IMODE(place.file(NEW).stat().st_mode) == 0o664
    commands.revert(place.site)
    assert stat.S_IMODE(place.file(A).stat().st_mode) == 0o640


def test_a_file_that_other_environments_link_to_is_not_changed_in_them(place, tmp_path):
    os.link(place.file(A), tmp_path / "uv's cache")
    commands.apply(place.site)
    assert (tmp_path / "uv's cache").read_bytes() == ORIGINAL[A]
    place.assert_patched()


def test_twice_is_once(place):
    commands.apply(place.site)
    before = snapshot(place.site)
    assert commands.apply(place.site) == [f"verl 0.9.1, {place.package}: already applied"]
    assert snapshot(place.site) == before
    commands.revert(place.site)
    assert commands.revert(place.site) == [f"verl 0.9.1, {place.package}: nothing to revert"]
    place.assert_as_before()


def test_a_status_says_what_would_change(place):
    found = commands.status(place.site)
    assert found.line() == (
        f"verl 0.9.1, {place.package}: not applied; apply would change verl/trainer/a.py, verl/workers/b.py "
        "and add verl/update/__init__.py, verl/update/mini_batch.py"
    )
    assert (found.applied, found.applicable) == (False, True)
    commands.apply(place.site)
    found = commands.status(place.site)
    assert found.line() == f"verl 0.9.1, {place.package}: applied"
    assert (found.applied, found.applicable) == (True, False)


def test_bytecode_of_the_files_is_gone_and_of_others_is_not(place):
    def compile_all() -> None:
        for name in (A, EMPTY, "verl/other.py"):
            path = place.file(name)
            if path.exists():
                cache = path.parent / "__pycache__"
                cache.mkdir(exist_ok=True)
                for tag in ("cpython-310", "cpython-311.opt-1"):
                    (cache / f"{path.stem}.{tag}.pyc").write_bytes(b"")
        (place.file(A).parent / "__pycache__" / "ab.cpython-311.pyc").write_bytes(b"")

    def compiled() -> set[str]:
        return {str(path.relative_to(place.package)).partition(".")[0] for path in place.package.rglob("*.pyc")}

    for command in (commands.apply, commands.revert):
        compile_all()
        command(place.site)
        assert compiled() == {"__pycache__/other", "trainer/__pycache__/ab"}
    assert not (place.package / "update").exists()


# What stands in the way


def test_a_release_without_a_set_is_refused(place):
    (place.package / "version" / "version").write_text("0.9.2")
    shutil.rmtree(place.site / "verl-0.9.1.dist-info")
    refused(place, r"verl 0\.9\.2, .*: no patch; the releases that have one: 0\.9\.1$")
    assert commands.revert(place.site)[0].endswith("nothing to revert")
    shutil.rmtree(place.patches / "0.9.1")
    refused(place, "have one: none$")


@pytest.mark.parametrize("name", [A, B])
@pytest.mark.parametrize("content", [b"fork\n", None])
def test_a_fork_is_refused_and_the_file_named(place, name, content):
    path = place.file(name)
    path.unlink() if content is None else path.write_bytes(content)
    refused(place, rf"other; neither verl 0\.9\.1's nor patched: {name} ")
    refused(place, rf"neither verl 0\.9\.1's nor as patched: {name}: .*; nothing done", commands.revert)
    assert state(place) is State.OTHER


def test_a_file_or_a_folder_where_a_new_file_belongs_is_refused(place):
    place.file(EMPTY).parent.mkdir()
    place.file(NEW).write_bytes(b"somebody's")
    refused(place, f"nor patched: {NEW} ")
    place.file(NEW).unlink()
    place.file(NEW).mkdir()
    refused(place, f"nor patched: {NEW} ")
    shutil.rmtree(place.file(NEW).parent)
    place.file(NEW).parent.write_bytes(b"a file where a folder belongs")
    refused(place, f"nor patched: {EMPTY}, {NEW} ")


def test_half_applied_without_a_backup_is_refused_and_reverted(place):
    place.file(A).write_bytes(MODIFIED[A])
    place.file(EMPTY).parent.mkdir()
    place.file(NEW).write_bytes(MODIFIED[NEW])
    assert state(place) is State.HALF_APPLIED
    refused(place, "half applied; `verl-cov patch revert` first")
    commands.revert(place.site)
    place.assert_as_before()


def test_a_checkout_is_left_to_git(place):
    shutil.rmtree(place.site / "verl-0.9.1.dist-info")
    subprocess.run(["git", "init", "-q", str(place.site)], check=True)
    found = commands.status(place.site)
    assert (found.state, found.applicable) == (State.NOT_APPLIED, False)
    refused(place, f"git -C {place.site} apply {place.patches}/0.9.1/mini_batch_hook.patch$")
    subprocess.run(found.obstacle.partition(": ")[2], shell=True, check=True)
    place.assert_patched()
    assert commands.status(place.site).applied
    assert commands.apply(place.site) == [f"verl 0.9.1, {place.package}: already applied"]
    refused(place, f"git -C {place.site} apply -R {place.patches}/0.9.1/", commands.revert)
    place.file(A).write_bytes(ORIGINAL[A])
    refused(place, f"half applied; see what has changed: git -C {place.site} status")


@pytest.mark.parametrize("damage", ["patch", "hash"])
def test_a_patch_that_gives_something_else_is_not_written(place, damage):
    path = place.patches / "0.9.1" / ("mini_batch_hook.patch" if damage == "patch" else "manifest.json")
    text = path.read_bytes()
    changed = text.replace(b"+hook\n", b"+rook\n") if damage == "patch" else text.replace(after(B), b"0" * 64)
    assert changed != text
    path.write_bytes(changed)
    name = A if damage == "patch" else B
    refused(place, f"is damaged: {name} would not become what manifest.json says; nothing done")


def after(name: str) -> bytes:
    found = sets.find("0.9.1")
    assert found is not None
    return found.files[name].after.encode()


# Read-only


@pytest.fixture
def read_only(place: Place) -> Iterator[None]:
    """A mount that is read-only for root too."""
    bind = subprocess.run(["mount", "--bind", place.site, place.site], capture_output=True)
    if bind.returncode:
        pytest.skip("no right to mount here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place.site], check=True)
        yield
    finally:
        subprocess.run(["umount", place.site], check=True)


@pytest.mark.usefixtures("read_only")
def test_a_read_only_mount_is_refused_in_a_line(place):
    assert commands.status(place.site).applicable
    refused(place, rf"^{place.package}(/\w+)? is read-only for you: run this as the owner")


def test_a_mount_that_does_not_say_so_is_refused_in_a_line(place, request, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *words, **more: True)
    request.getfixturevalue("read_only")
    refused(place, r"^Read-only file system \(.*\): nothing done$")


def as_nobody(act) -> str:
    """What a function says that runs as a user who owns nothing; tests often run as root, whom no mode stops."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            try:
                act()
                text = "done"
            except PatchError as error:
                text = str(error)
            except BaseException as error:
                text = repr(error)
            os.write(write, text.encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.parametrize("closed", ["verl", "verl/workers"])
def test_folders_of_somebody_else_are_refused_before_anything_is_written(place, monkeypatch, closed):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for name in ("site", "patches"):
            shutil.copytree(place.site.parent / name, Path(folder) / name)
        site = Path(folder) / "site"
        monkeypatch.setattr(sets, "PLACES", (Path(folder) / "patches",))
        for path in [*site.rglob("*"), site]:
            shut = path.relative_to(site) == Path(closed)
            path.chmod(0o644 if path.is_file() else 0o555 if shut else 0o777)
        commands.status(site)  # imports what it needs while this is still somebody
        before = snapshot(site)
        assert as_nobody(lambda: commands.apply(site)).startswith(f"{site / closed} is read-only for you: ")
        assert snapshot(site) == before
        (site / closed).chmod(0o777)
        assert as_nobody(lambda: commands.apply(site)) == "done"
        (site / closed).chmod(0o555)
        before = snapshot(site)
        assert as_nobody(lambda: commands.revert(site)).startswith(f"{site / closed} is read-only for you: ")
        assert snapshot(site) == before
        (site / closed).chmod(0o755)


# A write that fails


def failing(monkeypatch, at: int, error: BaseException) -> None:
    """The so-manieth rename of a file into its place raises."""
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == at:
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


# state.json, two new files, two changed ones, state.json
RENAMES = range(1, 7)


@pytest.mark.parametrize("at", RENAMES)
def test_a_write_that_fails_leaves_everything_as_it_was(place, monkeypatch, at):
    failing(monkeypatch, at, OSError(28, "No space left on device", "a file"))
    with pytest.raises(
        PatchError, match=r"^No space left on device \(a file\): (nothing done|everything is as it was before)$"
    ):
        commands.apply(place.site)
    place.assert_as_before()
    monkeypatch.undo()


def test_there_are_six_renames(place, monkeypatch):
    failing(monkeypatch, len(RENAMES) + 1, OSError(28, "No space left on device"))
    commands.apply(place.site)
    place.assert_patched()


@pytest.mark.parametrize("at", RENAMES)
def test_ctrl_c_leaves_everything_as_it_was(place, monkeypatch, at):
    failing(monkeypatch, at, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        commands.apply(place.site)
    place.assert_as_before()


def test_a_disk_that_fills_up_while_a_file_is_written(place, monkeypatch):
    real = os.fsync
    calls = []

    def fsync(file):
        calls.append(file)
        if stat.S_ISREG(os.fstat(file).st_mode) and os.path.exists(files.temporary(place.file(B))):
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    refused(place, "^No space left on device: everything is as it was before$")
    place.assert_as_before()


def test_a_disk_that_stays_broken_is_repaired_by_revert_later(place, monkeypatch):
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) > 4:
            raise OSError(5, "Input/output error", "a file")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(
        PatchError, match=r"putting the originals back failed too .*half applied; `verl-cov patch revert`"
    ):
        commands.apply(place.site)
    monkeypatch.setattr(os, "replace", real)
    assert state(place) is State.HALF_APPLIED
    commands.revert(place.site)
    place.assert_as_before()


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("backed_up", [True, False])
def test_a_revert_that_fails_can_be_repeated(place, monkeypatch, at, backed_up):
    commands.apply(place.site)
    if not backed_up:
        shutil.rmtree(place.package / backup.FOLDER)
    real = os.replace
    failing(monkeypatch, at, OSError(5, "Input/output error"))
    with pytest.raises(
        PatchError, match=r"^Input/output error: if it is half reverted, `verl-cov patch revert` again$"
    ):
        commands.revert(place.site)
    monkeypatch.setattr(os, "replace", real)
    commands.revert(place.site)
    place.assert_as_before()


# Killed

KILL = """
real, calls = os.replace, []
def replace(source, target):
    calls.append(target)
    if len(calls) == {at} and not {late}:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
commands.{command}(site)
"""


def killed(place: Place, command: str, at: int, late: bool) -> None:
    done = place.python(KILL.format(command=command, at=at, late=late))
    _, errors = done.communicate(timeout=60)
    assert done.returncode == -signal.SIGKILL, errors


@pytest.mark.parametrize(("at", "late"), [(at, False) for at in RENAMES] + [(6, True)])
def test_a_killed_apply_is_seen_and_repaired(place, at, late):
    killed(place, "apply", at, late)
    assert snapshot(place.site) != place.before
    expected = State.NOT_APPLIED if at == 1 else State.APPLIED if late else State.HALF_APPLIED
    assert state(place) is expected
    if expected is State.HALF_APPLIED:
        # The killed one's lock file, which the next to hold the lock removes.
        (place.package / ".verl_cov_patch.lock").unlink(missing_ok=True)
        refused(place, "half applied; `verl-cov patch revert` first")
    commands.revert(place.site)
    place.assert_as_before()


def test_an_apply_that_was_killed_before_it_changed_anything_can_be_repeated(place):
    killed(place, "apply", 1, False)
    commands.apply(place.site)
    place.assert_patched()
    commands.revert(place.site)
    place.assert_as_before()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("at", [1, 2])
def test_a_killed_revert_is_repaired_by_another(place, at, late):
    commands.apply(place.site)
    killed(place, "revert", at, late)
    assert state(place) is (State.APPLIED if (at, late) == (1, False) else State.HALF_APPLIED)
    commands.revert(place.site)
    place.assert_as_before()


# Revert


def test_without_a_backup_the_patch_is_taken_back(place):
    """As after `git apply`."""
    patch = place.patches / "0.9.1" / "mini_batch_hook.patch"
    subprocess.run(["git", "apply", "--whitespace=nowarn", str(patch)], cwd=place.site, check=True)
    place.file(A).chmod(0o640)  # git knows 0644 and 0755 only
    place.assert_patched()
    assert commands.apply(place.site)[0].endswith("already applied")
    commands.revert(place.site)
    place.assert_as_before()


@pytest.mark.parametrize("backed_up", [True, False])
@pytest.mark.parametrize("name", [A, NEW])
def test_a_file_that_was_edited_since_is_named_and_nothing_touched(place, name, backed_up):
    commands.apply(place.site)
    if not backed_up:
        shutil.rmtree(place.package / backup.FOLDER)
    with place.file(name).open("ab") as file:
        file.write(b"# mine\n")
    assert state(place) is State.OTHER
    refused(place, f"nor as patched: {name}: undo the edits, or install verl again; nothing done", commands.revert)


def test_a_damaged_backup_is_not_used(place):
    commands.apply(place.site)
    original = backup.original(place.package, A)
    original.write_bytes(b"rotten")
    commands.revert(place.site)  # by the patch
    place.assert_as_before()
    commands.apply(place.site)
    original.unlink()
    shutil.rmtree(place.patches / "0.9.1")
    refused(place, rf"the original of .*/{A} is lost: install verl 0\.9\.1 again", commands.revert)


def test_with_a_backup_the_set_is_not_needed(place):
    """verl-cov may have been upgraded since, and have another patch or none."""
    commands.apply(place.site)
    shutil.rmtree(place.patches / "0.9.1")
    assert state(place) is State.NO_PATCH
    commands.revert(place.site)
    place.assert_as_before()


def test_another_revision_of_the_patch_says_revert_first(place, tmp_path):
    commands.apply(place.site)
    newer = {**MODIFIED, A: MODIFIED[A] + b"newer\n"}
    make.write("0.9.1", lay(tmp_path / "o", ORIGINAL), lay(tmp_path / "m", newer), place.patches / "0.9.1", "newer")
    refused(place, "another verl-cov patched it, with another patch: `verl-cov patch revert`, then apply")
    commands.revert(place.site)
    place.assert_as_before()
    commands.apply(place.site)
    assert place.file(A).read_bytes() == newer[A]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"state": "x", "verl": "0.9.1", "files": {}, "time": ""}'])
def test_a_damaged_record_is_said(place, text):
    commands.apply(place.site)
    (place.package / backup.FOLDER / "state.json").write_text(text)
    for command in (commands.revert, commands.status):
        refused(place, r"state\.json is damaged: install verl again", command)


def test_a_record_that_names_files_elsewhere_is_damaged(place, tmp_path):
    commands.apply(place.site)
    path = place.package / backup.FOLDER / "state.json"
    path.write_text(path.read_text().replace(f'"{NEW}"', '"verl/../../victim"'))
    refused(place, "is damaged", commands.revert)


# verl installed again, over what apply left


def reinstall(place: Place, release: str, contents: dict[str, bytes]) -> None:
    """As pip does: what it once put there goes, what a patch added stays."""
    for name in ORIGINAL:
        place.file(name).write_bytes(contents.get(name, ORIGINAL[name]))
    shutil.rmtree(place.site / "verl-0.9.1.dist-info")
    dist_info(place.site, release)


def test_the_same_release_installed_again(place):
    commands.apply(place.site)
    reinstall(place, "0.9.1", {})
    assert state(place) is State.HALF_APPLIED  # the new files are still there
    commands.revert(place.site)
    place.assert_as_before()


@pytest.mark.parametrize("has_a_set", [True, False])
def test_another_release_installed_over_a_patched_one(place, tmp_path, has_a_set):
    commands.apply(place.site)
    newer = {**ORIGINAL, A: b"newer\n", "verl/version/version": b"0.9.2\n"}
    if has_a_set:
        modified = {**newer, A: b"newer\nhook\n", EMPTY: b"", NEW: b"newer hook\n"}
        make.write("0.9.2", lay(tmp_path / "o", newer), lay(tmp_path / "m", modified), place.patches / "0.9.2", "newer")
    reinstall(place, "0.9.2", newer)
    refused(place, r"the patch of verl 0\.9\.1, which was here before, left files behind: `verl-cov patch revert`")
    commands.revert(place.site)
    found = {name: content for name, (_, content) in snapshot(place.package).items() if content is not None}
    assert found == {name.removeprefix("verl/"): content for name, content in newer.items()}
    assert not (place.package / "update").exists()
    assert commands.status(place.site).applicable == has_a_set


# Locks


def test_while_another_process_works_apply_waits(place):
    with files.locked(place.package):
        other = place.python("print('go', flush=True); print(commands.apply(site)[0])")
        assert other.stdout is not None
        assert other.stdout.readline() == "go\n"
        time.sleep(1)
        assert other.poll() is None
        assert place.file(A).read_bytes() == ORIGINAL[A]
    text, errors = other.communicate(timeout=30)
    assert ": applied, changed" in text, errors
    place.assert_patched()


def test_of_many_nodes_one_applies_and_the_others_see_it(place):
    go = place.site.parent / "go"
    code = (
        f"import time\nprint('ready', flush=True)\nwhile not os.path.exists({str(go)!r}): time.sleep(0.001)\n"
        "print(commands.apply(site)[0])"
    )
    nodes = [place.python(code) for _ in range(5)]
    for node in nodes:
        assert node.stdout is not None
        assert node.stdout.readline() == "ready\n"
    go.touch()
    said = [node.communicate(timeout=60) for node in nodes]
    assert sorted("already" in text for text, _ in said) == [False, True, True, True, True], said
    place.assert_patched()
    assert not list(place.package.glob(".verl_cov_patch.*"))


COUNT = """
for _ in range(150):
    with files.locked(site):
        count = int((site / 'count').read_text())
        (site / 'count').write_text(str(count + 1))
"""


def test_the_lock_keeps_others_out_though_its_file_comes_and_goes(place):
    (place.site / "count").write_text("0")
    many = [place.python(COUNT) for _ in range(4)]
    for one in many:
        assert one.wait(timeout=120) == 0, one.communicate()
    assert (place.site / "count").read_text() == "600"
    assert not (place.site / files.LOCK).exists()


def test_a_lock_that_is_not_let_go_names_its_owner(place, monkeypatch):
    monkeypatch.setattr(files, "WAIT", 0.2)
    with files.locked(place.package):
        with pytest.raises(
            PatchError, match=rf"\.lock is locked by process {os.getpid()} on .*: wait until it is done"
        ):
            commands.apply(place.site)
        assert place.file(A).read_bytes() == ORIGINAL[A]
    place.assert_as_before()


def test_a_killed_process_does_not_keep_the_lock(place):
    holder = place.python("with files.locked(site / 'verl'):\n  print('held', flush=True)\n  signal.pause()")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    assert (place.package / files.LOCK).exists()
    commands.apply(place.site)
    commands.revert(place.site)
    place.assert_as_before()


def test_a_file_system_without_locks(place, monkeypatch):
    import fcntl

    def flock(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(files, "WAIT", 0.2)
    commands.apply(place.site)
    commands.revert(place.site)
    place.assert_as_before()
    said = []
    with files.locked(place.package):

        def other() -> None:
            try:
                commands.apply(place.site)
            except PatchError as error:
                said.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(30)
    soft = place.package / ".verl_cov_patch.lock.soft"
    assert said == [f"{soft} is locked: wait, or if no `verl-cov patch` is running anywhere, rm {soft}"]
    place.assert_as_before()
