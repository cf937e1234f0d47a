"""A unified diff, applied strictly or not at all: on bytes, every line where the diff says, no fuzz, no offset.

Of PyPI's libraries, unidiff (1.0.1) reads diffs and does not apply them; whatthepatch (1.0.7) applies them to text that
it has split with `str.splitlines`, which loses the line endings and the missing one at the end of a file, and splits at
form feeds. Hence this module. Of git's format it knows what a patch set needs: files that change, files that are new.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from verl_cov.patch import PatchError

_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_NO_NEWLINE = b"\\ No newline at end of file"


@dataclass(frozen=True)
class Hunk:
    """Lines with their endings. The starts count from 1; of no lines, they name the line before."""

    old_start: int
    old: tuple[bytes, ...]
    new_start: int
    new: tuple[bytes, ...]


@dataclass(frozen=True)
class FileDiff:
    """Of one file. creates, removes: there is no file before, or after."""

    path: str
    hunks: tuple[Hunk, ...]
    creates: bool = False
    removes: bool = False

    def reversed(self) -> FileDiff:
        hunks = tuple(Hunk(hunk.new_start, hunk.new, hunk.old_start, hunk.old) for hunk in self.hunks)
        return replace(self, hunks=hunks, creates=self.removes, removes=self.creates)


def lines(content: bytes) -> list[bytes]:
    r"""Split at \n alone: \r and form feeds are part of a line."""
    found = [line + b"\n" for line in content.split(b"\n")]
    last = found.pop()[:-1]
    return [*found, last] if last else found


def apply(diff: FileDiff, content: bytes | None) -> bytes | None:
    """The file after the diff; None: no file. Raises PatchError if a line differs from what the diff expects."""
    if (content is None) != diff.creates:
        raise PatchError(f"{diff.path}: " + ("the diff creates it, and it exists" if diff.creates else "is not there"))
    before = lines(content or b"")
    after: list[bytes] = []
    at = 0
    for hunk in diff.hunks:
        start = hunk.old_start - (1 if hunk.old else 0)
        if start < at:
            raise PatchError(f"{diff.path}: the diff's hunks overlap at line {hunk.old_start}")
        for number, expected in enumerate(hunk.old, start):
            if number >= len(before) or before[number] != expected:
                raise PatchError(f"{diff.path}: line {number + 1} is not what the diff expects")
        if start > len(before):
            raise PatchError(f"{diff.path}: ends before line {start}, which the diff expects")
        after += before[at:start]
        if len(after) != hunk.new_start - (1 if hunk.new else 0):
            raise PatchError(f"{diff.path}: the diff's line numbers do not add up at line {hunk.old_start}")
        after += hunk.new
        at = start + len(hunk.old)
    after += before[at:]
    if not all(line.endswith(b"\n") for line in after[:-1]):
        raise PatchError(f"{diff.path}: the diff has a line without a newline that is not the last")
    if diff.removes:
        if after:
            raise PatchError(f"{diff.path}: has lines that the diff did not create")
        return None
    return b"".join(after)


def parse(patch: bytes) -> dict[str, FileDiff]:
    """Path -> diff, in order. Raises PatchError with the line that it does not understand."""
    reader = _Reader(lines(patch))
    while not reader.at_end and not reader.next.startswith(b"diff --git "):
        reader.take()  # what `git format-patch` and reviewers write above a diff
    found: dict[str, FileDiff] = {}
    while not reader.at_end:
        diff = _file(reader)
        if diff.path in found:
            raise PatchError(f"{diff.path} is in it twice")
        found[diff.path] = diff
    if not found:
        raise PatchError("there is no `diff --git` line in it")
    return found


class _Reader:
    def __init__(self, text: list[bytes]) -> None:
        self.text = text
        self.number = 0

    @property
    def at_end(self) -> bool:
        return self.number >= len(self.text)

    @property
    def next(self) -> bytes:
        return b"" if self.at_end else self.text[self.number]

    def take(self) -> bytes:
        line = self.next
        self.number += 1
        return line

    def error(self, what: str) -> PatchError:
        return PatchError(f"line {self.number}: {what}")


def _file(reader: _Reader) -> FileDiff:
    line = reader.take().rstrip(b"\n")
    names = line[len(b"diff --git ") :]
    half = len(names) // 2
    source, target = names[:half], names[half + 1 :]
    if names != b"a/%b b/%b" % (source[2:], source[2:]):
        raise reader.error(f"expected `diff --git a/PATH b/PATH`, found {_shown(line)}")
    path = source[2:]
    creates = False
    while reader.next.startswith((b"new file mode 100", b"index ")):
        creates |= reader.take().startswith(b"new")
    hunks: list[Hunk] = []
    if reader.next.startswith(b"--- "):
        old, new = (reader.take().rstrip(b"\n").partition(b"\t")[0] for _ in range(2))
        if old != b"--- " + (b"/dev/null" if creates else source) or new != b"+++ " + target:
            raise reader.error(f"the names are not those of the `diff --git` line ({_shown(path)})")
        while reader.next.startswith(b"@@ "):
            hunks.append(_hunk(reader))
    if not hunks and not creates:
        line = reader.take()
        raise reader.error(f"expected a change of {_shown(path)}'s lines, found {_shown(line)}")
    if not reader.at_end and not reader.next.startswith(b"diff --git "):
        line = reader.take()
        raise reader.error(f"expected a hunk or the next file, found {_shown(line)}")
    try:
        return FileDiff(path.decode(), tuple(hunks), creates)
    except UnicodeDecodeError:
        raise reader.error("a path that is not UTF-8") from None


def _hunk(reader: _Reader) -> Hunk:
    header = _HUNK.match(reader.take())
    if header is None:
        raise reader.error("a damaged @@ line")
    old_start, old_count, new_start, new_count = (1 if group is None else int(group) for group in header.groups())
    old: list[bytes] = []
    new: list[bytes] = []
    while len(old) < old_count or len(new) < new_count:
        kind, line = _line(reader)
        if kind in b" -":
            old.append(line)
        if kind in b" +":
            new.append(line)
    if (len(old), len(new)) != (old_count, new_count):
        raise reader.error("the hunk is longer than its @@ line says")
    return Hunk(old_start, tuple(old), new_start, tuple(new))


def _line(reader: _Reader) -> tuple[bytes, bytes]:
    line = reader.take()
    kind, rest = line[:1], line[1:]
    if not rest or kind not in (b" ", b"-", b"+"):
        raise reader.error(
            "the hunk is shorter than its @@ line says"
            if reader.number > len(reader.text)
            else f"a line of a hunk begins with a space, - or +, found {_shown(line)}"
        )
    if reader.next.startswith(_NO_NEWLINE):
        reader.take()
        rest = rest.removesuffix(b"\n")
    return kind, rest


def _shown(line: bytes) -> str:
    return repr(line.decode(errors="replace").rstrip("\n")[:60])
