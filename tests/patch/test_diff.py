"""Diffs are applied as git and patch apply them where they agree exactly, and refused everywhere else."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from verl_cov.patch import PatchError, diff, make

# Few different lines, so that a hunk would fit in several places; all that splits lines elsewhere.
LINE = st.sampled_from(
    [b"a", b"b", b"", b"-", b"+", b" x", b"\r", b"a\r", b"\x0c", b"\xe2\x80\xa8", b"\xff", b"@@ -1 +1 @@"]
)
CONTENT = st.builds(
    lambda some, last: b"".join(line + b"\n" for line in some) + last, st.lists(LINE, max_size=30), st.just(b"") | LINE
)


@st.composite
def edited(draw) -> tuple[bytes, bytes]:
    """A text and the same with some edits, far apart or near."""
    before = draw(CONTENT)
    some = diff.lines(before)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(some)))
        end = draw(st.integers(start, min(len(some), start + 3)))
        some[start:end] = [line + b"\n" for line in draw(st.lists(LINE, max_size=3))]
    after = b"".join(some)
    if draw(st.booleans()):
        after = after.removesuffix(b"\n")
    assume(after != before)
    return before, after


def made(before: bytes, after: bytes) -> tuple[bytes, diff.FileDiff]:
    patch = make._git_diff({"verl/x.py": before}, {"verl/x.py": after})
    return patch, diff.parse(patch)["verl/x.py"]


@given(edited())
@settings(max_examples=150)
def test_a_diff_gives_the_edit_and_its_reverse_the_original(pair):
    before, after = pair
    _, one = made(before, after)
    assert diff.apply(one, before) == after
    assert diff.apply(one.reversed(), after) == before


@given(edited())
@settings(max_examples=60)
def test_git_apply_and_patch_read_the_same_from_it(pair):
    before, after = pair
    patch, _ = made(before, after)
    for command in (["git", "apply", "--whitespace=nowarn"], ["patch", "-p1", "--fuzz=0", "--binary", "-s", "-i"]):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "verl" / "x.py"
            path.parent.mkdir()
            path.write_bytes(before)
            (Path(folder) / "p").write_bytes(patch)
            subprocess.run([*command, "p"], cwd=folder, check=True, env={"PATH": "/usr/bin:/bin:/usr/local/bin"})
            assert (path.read_bytes() if path.exists() else b"") == after


@given(edited(), st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])
def test_one_line_more_or_less_above_or_inside_a_hunk_is_refused(pair, data):
    before, after = pair
    _, one = made(before, after)
    last = one.hunks[-1]
    end = last.old_start - 1 + len(last.old) if last.old else last.old_start
    some = diff.lines(before)
    at = data.draw(st.integers(0, end))
    assume(at < end)
    shifted = [*some[:at], b"one more\n", *some[at:]] if data.draw(st.booleans()) else [*some[:at], *some[at + 1 :]]
    found = b"".join(shifted)
    # Of equal lines it may be that what the hunks see is the same: then the result is right, and not refused.
    seen = [shifted[h.old_start - 1 : h.old_start - 1 + len(h.old)] == list(h.old) for h in one.hunks if h.old]
    assume(not all(seen))
    with pytest.raises(PatchError, match=r"verl/x\.py"):
        diff.apply(one, found)


def test_a_shift_that_git_forgives_is_refused():
    before = b"".join(b"line %d\n" % n for n in range(30))
    patch, one = made(before, before.replace(b"line 20\n", b"changed\n"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verl" / "x.py"
        path.parent.mkdir()
        path.write_bytes(b"more\n" + before)
        assert subprocess.run(["git", "apply", "-"], cwd=folder, input=patch).returncode == 0
    with pytest.raises(PatchError, match="line 18 is not what the diff expects"):
        diff.apply(one, b"more\n" + before)


HEADER = b"diff --git a/verl/x.py b/verl/x.py\n"
NAMES = HEADER + b"--- a/verl/x.py\n+++ b/verl/x.py\n"


def file_diff(*hunks: diff.Hunk, creates: bool = False, removes: bool = False) -> diff.FileDiff:
    return diff.FileDiff("verl/x.py", hunks, creates, removes)


def test_a_file_that_is_there_is_not_created_and_one_that_is_not_is_not_changed():
    new = file_diff(diff.Hunk(0, (), 1, (b"a\n",)), creates=True)
    assert diff.apply(new, None) == b"a\n"
    assert diff.apply(new.reversed(), b"a\n") is None
    with pytest.raises(PatchError, match="it exists"):
        diff.apply(new, b"")
    with pytest.raises(PatchError, match="is not there"):
        diff.apply(new.reversed(), None)
    with pytest.raises(PatchError, match="lines that the diff did not create"):
        diff.apply(new.reversed(), b"a\nb\n")


@pytest.mark.parametrize(
    ("hunks", "said"),
    [
        ([diff.Hunk(2, (b"b\n",), 1, ()), diff.Hunk(1, (b"a\n",), 1, ())], "overlap"),
        ([diff.Hunk(9, (), 10, (b"x\n",))], "ends before line 9"),
        ([diff.Hunk(3, (b"c\n", b"d\n"), 3, (b"x\n",))], "line 4 is not"),
        ([diff.Hunk(2, (b"b\n",), 3, (b"x\n",))], "do not add up"),
        ([diff.Hunk(2, (b"b\n",), 2, (b"x",))], "without a newline"),
        ([diff.Hunk(3, (b"c",), 3, (b"x\n",))], "line 3 is not"),
    ],
)
def test_hunks_that_do_not_fit_are_refused(hunks, said):
    with pytest.raises(PatchError, match=said):
        diff.apply(file_diff(*hunks), b"a\nb\nc\n")


def test_words_of_a_reviewer_may_stand_above():
    patch = b"Why: because\n\n" + NAMES + b"@@ -1 +1 @@ def f():\n-a\n+b\n"
    assert diff.parse(patch) == {"verl/x.py": file_diff(diff.Hunk(1, (b"a\n",), 1, (b"b\n",)))}


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (b"", "no `diff --git`"),
        (b"--- a/verl/x.py\n+++ b/verl/x.py\n@@ -1 +1 @@\n-a\n+b\n", "no `diff --git`"),
        (b"diff --git a/verl/x.py b/verl/y.py\n", "line 1: expected `diff --git a/PATH b/PATH`"),
        (b"diff --git x/verl/x.py y/verl/x.py\n", "line 1: expected"),
        (HEADER + b"deleted file mode 100644\n", "line 2: .*deleted file"),
        (HEADER + b"old mode 100644\nnew mode 100755\n", "line 2: .*old mode"),
        (HEADER + b"Binary files a/verl/x.py and b/verl/x.py differ\n", "line 2: .*Binary"),
        (HEADER + b"--- a/verl/y.py\n+++ b/verl/x.py\n@@ -1 +1 @@\n-a\n+b\n", "names"),
        (HEADER + b"--- a/verl/x.py\n+++ b/verl/y.py\n@@ -1 +1 @@\n-a\n+b\n", "names"),
        (HEADER + b"new file mode 100644\n--- a/verl/x.py\n+++ b/verl/x.py\n@@ -0,0 +1 @@\n+b\n", "names"),
        (HEADER + b"new file mode 120000\n--- /dev/null\n+++ b/verl/x.py\n@@ -0,0 +1 @@\n+b\n", "line 2"),
        (NAMES, "expected a change"),
        (NAMES + b"@@ 1 @@\n-a\n", "damaged @@"),
        (NAMES + b"@@ -1,2 +1,2 @@\n-a\n+b\n", "shorter"),
        (NAMES + b"@@ -1 +1 @@\n-a\n", "shorter"),
        (NAMES + b"@@ -1,2 +1,1 @@\n-a\n+b\n c\n", "longer"),
        (NAMES + b"@@ -1 +1 @@\n-a\n+b\n+c\n", "line 7: expected a hunk or the next file"),
        (NAMES + b"@@ -1,3 +1,3 @@\n a\n\n-b\n+c\n", "line 6: .*begins with"),
        (NAMES + b"@@ -1 +1 @@\n-a\n+b\n" + NAMES + b"@@ -1 +1 @@\n-a\n+b\n", "twice"),
        (b"diff --git a/\xff b/\xff\nnew file mode 100644\n", "UTF-8"),
    ],
)
def test_what_is_no_diff_of_git_is_refused(patch, said):
    with pytest.raises(PatchError, match=said):
        diff.parse(patch)
