"""What `verl-cov patch` does: look, apply, revert. `status` is for whoever asks, and writes nothing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from verl_cov.patch import PatchError, backup, diff, files, installation, sets
from verl_cov.patch.backup import Record
from verl_cov.patch.installation import Installation, State, read, sha256
from verl_cov.patch.sets import Hashes, PatchSet

AFTERWARDS = (
    "Every node needs it: run this on each that has a verl of its own; a folder that they share needs it once.",
    "Trainings and Ray workers that run keep the old code: `ray stop`, then start them again.",
    "`verl-cov patch revert` takes it back; installing verl again does too.",
)


@contextmanager
def _one_line(then: str) -> Iterator[None]:
    """What the file system says, as one line."""
    try:
        yield
    except OSError as error:
        raise PatchError(f"{_reason(error)}{then}") from error


@dataclass(frozen=True)
class Status:
    """The verl found, against its patch set.

    files: path -> NOT_APPLIED, APPLIED or OTHER. obstacle: why `apply` would refuse, and what to do then; else "".
    """

    installation: Installation
    patch_set: PatchSet | None
    state: State
    files: Mapping[str, State] = field(default_factory=dict)
    obstacle: str = ""

    @property
    def applied(self) -> bool:
        return self.state is State.APPLIED

    @property
    def applicable(self) -> bool:
        return self.state is State.NOT_APPLIED and not self.obstacle

    def line(self) -> str:
        """Release, folder, state, and what would change or what to do."""
        text = f"verl {self.installation.release}, {self.installation.package}: {self.state.value}"
        if self.obstacle:
            return f"{text}; {self.obstacle}"
        return f"{text}; apply would {_changes(self.patch_set, 'change', 'add')}" if self.applicable else text


@_one_line("")
def status(path: Path | None = None) -> Status:
    """Of the verl of this Python, or at path. Raises PatchError if there is none or the patch set is damaged."""
    return _status(installation.find(path))


@_one_line(": nothing done")
def apply(path: Path | None = None) -> list[str]:
    """Apply the set of the release, all of it or nothing; what there is to say. Raises PatchError."""
    found = installation.find(path)
    now = _status(found)
    # Half applied may be another node at work: that is judged under the lock.
    if not now.applicable and (now.state is not State.HALF_APPLIED or now.patch_set is None):
        return _already(now)
    patch_set = _set(now)
    _check_writable(found, patch_set.files)
    with files.locked(found.package):
        now = _status(found)  # another node may have been faster
        if not now.applicable:
            return _already(now)
        _apply(found, patch_set)
    return [f"verl {found.release}, {found.package}: applied, {_changes(patch_set, 'changed', 'added')}", *AFTERWARDS]


@_one_line(": nothing done")
def revert(path: Path | None = None) -> list[str]:
    """Bring the originals back, also after an `apply` that was killed; what there is to say. Raises PatchError."""
    found = installation.find(path)
    nothing = [f"verl {found.release}, {found.package}: nothing to revert"]
    reversal = _Reversal.of(found)
    if not reversal.needed:
        return nothing
    if found.checkout is not None and reversal.patch_set is not None:
        raise PatchError(f"{found.package}: a checkout is git's to change: {found.git(reversal.patch_set.patch, '-R')}")
    _check_writable(found, reversal.files)
    with _one_line(": if it is half reverted, `verl-cov patch revert` again"), files.locked(found.package):
        reversal = _Reversal.of(found)  # another node may have been faster
        if not reversal.needed:
            return nothing
        reversal.run()
    done = [name for name, one in reversal.each.items() if one is State.APPLIED]
    if not done:
        return [f"verl {found.release}, {found.package}: nothing to revert but the backup, which is removed"]
    return [f"verl {found.release}, {found.package}: reverted, {', '.join(done)}", *AFTERWARDS[1:2]]


def _status(found: Installation) -> Status:
    patch_set = sets.find(found.release)
    record = backup.read(found.package)
    state, each = (State.NO_PATCH, {}) if patch_set is None else installation.compare(found, patch_set.files)
    if record is not None and record.state == backup.APPLYING:
        state = State.HALF_APPLIED
    return Status(found, patch_set, state, each, _obstacle(found, patch_set, record, state, each))


def _obstacle(
    found: Installation,
    patch_set: PatchSet | None,
    record: Record | None,
    state: State,
    each: Mapping[str, State],
) -> str:
    if state is State.APPLIED:
        return ""
    if record is not None and record.verl != found.release:
        return f"the patch of verl {record.verl}, which was here before, left files behind: `verl-cov patch revert`"
    if patch_set is None:
        return f"the releases that have one: {', '.join(sets.releases()) or 'none'}"
    if state is State.OTHER:
        if record is not None and installation.compare(found, record.files)[0] is State.APPLIED:
            return "another verl-cov patched it, with another patch: `verl-cov patch revert`, then apply"
        names = ", ".join(name for name, one in each.items() if one is State.OTHER)
        return f"neither verl {patch_set.verl}'s nor patched: {names} (edits, or a fork); install that release as it is"
    if found.checkout is not None:
        if state is State.HALF_APPLIED:
            return f"see what has changed: git -C {shlex.quote(str(found.checkout))} status"
        return f"a checkout is git's to change: {found.git(patch_set.patch)}"
    if state is State.HALF_APPLIED:
        return "`verl-cov patch revert` first"
    try:
        _contents(found, patch_set)  # `check` promises that `apply` can do it
    except PatchError as error:
        return str(error)
    return ""


def _already(now: Status) -> list[str]:
    if not now.applied:
        raise PatchError(now.line())
    return [f"verl {now.installation.release}, {now.installation.package}: already applied"]


def _set(now: Status) -> PatchSet:
    assert now.patch_set is not None
    return now.patch_set


def _apply(found: Installation, patch_set: PatchSet) -> None:
    before, after = _contents(found, patch_set)
    new = {name: content for name, content in after.items() if content is not None}
    originals = {name: content for name, content in before.items() if content is not None}
    backup.write(found.package, found.release, patch_set.files, originals)
    try:
        for name, content in new.items():
            path = found.file(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.replace(path, content, like=path if name in originals else found.package / "__init__.py")
        backup.finish(found.package, found.release, patch_set.files)
    except BaseException as error:
        _roll_back(found, patch_set, new, error)
        raise
    for name in new:
        files.forget_bytecode(found.file(name))


def _contents(found: Installation, patch_set: PatchSet) -> tuple[dict[str, bytes | None], dict[str, bytes | None]]:
    """Each file as it is and as it will be. Raises PatchError if that is not what the manifest says."""
    before = {name: read(found.file(name)) for name in patch_set.files}
    after = {name: diff.apply(patch_set.diffs[name], before[name]) for name in patch_set.files}
    for name, hashes in patch_set.files.items():
        if sha256(after[name]) != hashes.after:
            raise PatchError(
                f"{patch_set.patch} is damaged: {name} would not become what {sets.MANIFEST} says; nothing done"
            )
    return before, after


def _roll_back(found: Installation, patch_set: PatchSet, new: Mapping[str, bytes], error: BaseException) -> None:
    """Put the originals back by renaming them: that needs no room on a disk that is full."""
    try:
        for name, hashes in patch_set.files.items():
            path = found.file(name)
            if hashes.before is None:
                files.remove(path, found.package)
            elif read(path) == new[name]:
                os.replace(backup.original(found.package, name), path)
        backup.remove(found.package)
    except OSError as worse:
        raise PatchError(
            f"{_reason(error)}, and putting the originals back failed too ({_reason(worse)}): "
            "half applied; `verl-cov patch revert` when the disk works again"
        ) from error
    if isinstance(error, OSError):
        raise PatchError(f"{_reason(error)}: everything is as it was before") from error


@dataclass(frozen=True)
class _Reversal:
    """What is to be done to have the originals back.

    patch_set: what it goes by where there is no backup. originals: their bytes, None where the backup is renamed.
    created: what is not to be there, nor its folder; a killed `apply` may have made the folder alone.
    """

    found: Installation
    patch_set: PatchSet | None
    files: Mapping[str, Hashes]
    each: Mapping[str, State]
    originals: Mapping[str, bytes | None]
    created: tuple[str, ...]
    leftovers: bool

    @classmethod
    def of(cls, found: Installation) -> _Reversal:
        """Raises PatchError if a file was edited since, or its original is lost."""
        record = backup.read(found.package)
        patch_set = None if record is not None else sets.find(found.release)
        hashes = record.files if record is not None else patch_set.files if patch_set is not None else {}
        _, each = installation.compare(found, hashes)
        edited = [name for name, one in each.items() if one is State.OTHER]
        if edited and (record is None or record.verl == found.release):
            raise PatchError(
                f"{found.package}: neither verl {found.release}'s nor as patched: {', '.join(edited)}: undo the edits, "
                "or install verl again; nothing done"
            )
        applied = [name for name, one in each.items() if one is State.APPLIED]
        return cls(
            found,
            patch_set,
            hashes,
            each,
            {name: _original(found, record, name, hashes[name]) for name in applied if hashes[name].before is not None},
            tuple(name for name, one in each.items() if hashes[name].before is None and one is not State.OTHER),
            (found.package / backup.FOLDER).exists(),
        )

    @property
    def needed(self) -> bool:
        return self.leftovers or any(one is State.APPLIED for one in self.each.values())

    def run(self) -> None:
        for name, content in self.originals.items():
            path = self.found.file(name)
            if content is None:
                os.replace(backup.original(self.found.package, name), path)
                files.sync(path.parent)
            else:
                files.replace(path, content, like=path)
            files.forget_bytecode(path)
        for name in self.files:
            files.temporary(self.found.file(name)).unlink(missing_ok=True)
        for name in self.created:
            files.remove(self.found.file(name), self.found.package)
        backup.remove(self.found.package)


def _original(found: Installation, record: Record | None, name: str, hashes: Hashes) -> bytes | None:
    """None if the backup has it; else the patched file with the patch taken back. Raises PatchError."""
    with suppress(OSError):
        if record is not None and sha256(read(backup.original(found.package, name))) == hashes.before:
            return None
    patch_set = sets.find(found.release)
    if patch_set is not None and patch_set.files.get(name) == hashes:
        original = diff.apply(patch_set.diffs[name].reversed(), read(found.file(name)))
        if sha256(original) == hashes.before:
            return original
    raise PatchError(
        f"the original of {found.file(name)} is lost: install verl {found.release} again "
        "(pip install --force-reinstall --no-deps)"
    )


def _check_writable(found: Installation, names: Iterable[str]) -> None:
    files.check_writable({found.package, *(found.file(name).parent for name in names)})


def _reason(error: BaseException) -> str:
    if not isinstance(error, OSError):
        return type(error).__name__
    name = error.filename if error.filename2 is None else error.filename2
    return f"{error.strerror or error}" + (f" ({name})" if name else "")


def _changes(patch_set: PatchSet | None, change: str, add: str) -> str:
    assert patch_set is not None
    new = [name for name, hashes in patch_set.files.items() if hashes.before is None]
    old = [name for name in patch_set.files if name not in new]
    return " and ".join(f"{verb} {', '.join(names)}" for verb, names in ((change, old), (add, new)) if names)
