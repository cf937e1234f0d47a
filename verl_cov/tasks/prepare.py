"""From a data set's source to the parquet file that verl trains or validates on, and the stamp beside it.

DIR/NAME.parquet has the rows of `rows.py`, DIR/NAME.json says what they were made of. Rows are streamed: what stays in
memory is a batch of rows and 24 bytes a distinct question.

- Duplicates are dropped: questions equal after Unicode's canonical composition and with white space made one space.
  Case and signs stay, they mean something in mathematics. The first one counts, also where later ones have another
  answer; those are reported.
- An evaluation set that has exactly the published number of rows is kept as published, its duplicates included: the
  paper's averages are over those rows.
- Rows without a usable answer or tests, and rows with text that is not Unicode, are dropped, counted by reason.
- Copies (avg@32) follow each other as whole sets, so that the first N rows are N problems.
- A file appears whole or not at all, and only one process at a time makes it. The stamp is removed before the file is
  replaced and written after, so that a stamp never stands beside a file of other content.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from verl_cov import __version__
from verl_cov.tasks.formats import Elsewhere, Format, Item, Unusable
from verl_cov.tasks.rows import SCHEMA, with_instruction
from verl_cov.tasks.sets import DataSet
from verl_cov.tasks.sources import Files, HubRows, Row, Source, is_hub_id

FORMAT = 1  # raise it when the same source would give another file: prepared files of older formats are made again
SAMPLE = "sample"
UNKNOWN = "none of the known formats"
TOO_MANY_DROPPED = 0.05  # share of the rows; above it there is a warning

# A row group is what verl's reader decodes at once; one of code tests can be megabytes a row.
_GROUP_ROWS, _GROUP_CHARACTERS = 4096, 32_000_000

Progress = Callable[[int, "int | None"], None]


@dataclass
class Tally:
    """What happened to the rows. left_out: of other sets; dropped: unusable; both by reason, with one example each."""

    read: int = 0
    kept: int = 0
    written: int = 0
    duplicates: int = 0
    conflicts: int = 0
    conflict: str | None = None
    left_out: dict[str, list[Any]] = field(default_factory=dict)
    dropped: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def candidates(self) -> int:
        """Rows that are of this set, usable or not."""
        return self.read - sum(count for count, _ in self.left_out.values())

    @property
    def unusable(self) -> int:
        """Rows dropped for a reason, duplicates apart."""
        return sum(count for count, _ in self.dropped.values())

    @staticmethod
    def count(reasons: dict[str, list[Any]], reason: str, example: str) -> None:
        """One more of `reason`; the first one is the example."""
        reasons.setdefault(_printable(reason), [0, example])[0] += 1  # it may quote the row

    def as_json(self) -> dict[str, Any]:
        """For the stamp."""
        reasons = {
            name: {reason: {"count": count, "example": example} for reason, (count, example) in found.items()}
            for name, found in (("left_out", self.left_out), ("dropped", self.dropped))
        }
        duplicates = {"count": self.duplicates, "conflicts": self.conflicts, "conflict": self.conflict}
        return {"read": self.read, "kept": self.kept, "written": self.written, "duplicates": duplicates, **reasons}


@dataclass(frozen=True)
class Prepared:
    """A prepared file. stamp: the content of the file beside it. fresh: made now, and not found."""

    path: Path
    stamp: dict[str, Any]
    fresh: bool

    @property
    def warnings(self) -> list[str]:
        """What a user should know of the source."""
        return list(self.stamp["warnings"].values())


def source_of(dataset: DataSet, given: str | None) -> Source:
    """What `--from` means: a path, a dataset on the Hub, the sample, or (None) the set's own place on the Hub.

    Raises ValueError or FileNotFoundError, one line.
    """
    if given == SAMPLE:
        return Files(Path(str(resources.files("verl_cov.tasks"))) / "samples" / f"{dataset.name}.jsonl")
    if given is None:
        if not dataset.hubs:
            raise ValueError(f"{dataset.name} is not on the Hugging Face Hub: get {dataset.hint} and give it by --from")
        return HubRows(dataset.hubs[0])
    if is_hub_id(given):
        known = [hub for hub in dataset.hubs if hub.id == given]
        if not known and not dataset.hubs:
            raise ValueError(f"{dataset.name} is not on the Hugging Face Hub: get {dataset.hint} and give it by --from")
        # A copy of the set is taken to have its splits.
        return HubRows(known[0] if known else type(dataset.hubs[0])(given, split=dataset.hubs[0].split))
    return Files(Path(given).expanduser(), dataset.hubs, strict=dataset.strict)


def prepare(
    dataset: DataSet,
    given: str | None,
    folder: Path,
    *,
    strict: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Make DIR/NAME.parquet and DIR/NAME.json, unless they are there, made of the same source.

    given: see :func:`source_of`. strict: a number of rows that is not the known one is an error. force: make the file
    again. progress: called with (rows read, rows in all or None). Raises ValueError or OSError, one line; then
    the files are as they were.
    """
    source = source_of(dataset, given)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{dataset.name}.parquet"
    with lock(path):
        stamp = read_stamp(path)
        if stamp is not None and not force and _same(stamp, source, given):
            found = Prepared(path, stamp, fresh=False)
        else:
            with replacing(path) as (partial, finish):
                tally = _write(dataset, source, partial, progress)
                found = Prepared(path, _stamp(dataset, source, given, tally), fresh=True)
                if not (strict and "rows" in found.stamp["warnings"]):
                    finish(found.stamp)
    if strict and "rows" in found.stamp["warnings"]:
        raise ValueError(f"{dataset.name}: {found.stamp['warnings']['rows']} (--strict)")
    return found


# --- rows -------------------------------------------------------------------------------------------------------------


def _write(dataset: DataSet, source: Source, target: Path, progress: Progress | None) -> Tally:
    tally = Tally()
    kept: list[Item] = []  # copies need all of a set, which is small; a training set is written as it is read
    with _Writer(target) as writer:
        for item in _items(dataset, source, tally, progress):
            if dataset.split == "test":
                kept.append(item)
            else:
                writer.add(row_of(dataset, item, tally.kept))
                tally.kept += 1
        if dataset.split == "test":
            tally.kept = len(kept)
        for _ in range(dataset.copies):
            for index, item in enumerate(kept):
                writer.add(row_of(dataset, item, index))
    tally.written = tally.kept * dataset.copies
    if not tally.kept:
        raise ValueError(_nothing(dataset, source, tally))
    return tally


def _items(dataset: DataSet, source: Source, tally: Tally, progress: Progress | None) -> Iterator[Item]:
    """The distinct items; those of an evaluation set in its published size with their duplicates."""
    answers: dict[bytes, bytes] = {}  # of each question
    total = source.total() if progress else None
    repeated: list[tuple[int, Item]] = []
    fresh: list[tuple[int, Item]] = []
    evaluation = dataset.split == "test"
    for row, count in source.rows(dataset.columns):
        tally.read = count
        if progress and count % 1000 == 0:
            progress(count, total)
        try:
            item = _read(dataset, row)
        except Elsewhere as reason:
            tally.count(tally.left_out, str(reason), _excerpt(row, count))
            continue
        except Unusable as reason:
            tally.count(tally.dropped, str(reason), _excerpt(row, count))
            if count == 1000 and tally.dropped.get(UNKNOWN, [0])[0] == count:
                return  # another data set's file: no need to read all of it to say so
            continue
        key, answer = question_digest(item.question), _digest(item.ground_truth)[:8]
        earlier = answers.get(key)
        if earlier is None:
            answers[key] = answer
        else:
            tally.duplicates += 1
            if earlier != answer:
                tally.conflicts += 1
                tally.conflict = tally.conflict or _excerpt(row, count)
        if evaluation:
            (fresh if earlier is None else repeated).append((count, item))
        elif earlier is None:
            yield item
    if progress:
        progress(tally.read, tally.read)
    if evaluation:
        if tally.candidates in dataset.rows[:1] and len(fresh) + len(repeated) == tally.candidates:
            fresh = sorted([*fresh, *repeated], key=lambda one: one[0])
        yield from (item for _, item in fresh)


def _read(dataset: DataSet, row: Row) -> Item:
    item = _format(dataset, row).read(row)
    try:
        "".join(filter(None, astuple(item))).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and no file can hold
        raise Unusable("text that is not Unicode") from None
    if dataset.held_out is not None:
        share, ours = dataset.held_out
        if held_out(item.group or item.question, share) != ours:
            raise Elsewhere("training's side of the split" if ours else "held out for validation")
    return item


def _format(dataset: DataSet, row: Mapping[str, Any]) -> Format:
    for one in dataset.formats:
        if all(name in row for name in one.fields):
            return one
    raise Unusable(UNKNOWN)


def held_out(group: str, share: float) -> bool:
    """Whether validation owns this group of problems. A hash decides, so that the side of a problem depends on nothing
    but itself: not on the file's order, its other rows or a seed."""
    return int.from_bytes(_digest(f"held out:{group}")[:8], "big") < share * 2**64


def row_of(dataset: DataSet, item: Item, index: int) -> dict[str, Any]:
    """A row as `rows.py` describes it."""
    return {
        "data_source": dataset.name,
        "prompt": [{"role": "user", "content": with_instruction(item.question, dataset.ability, item.task)}],
        "ability": dataset.ability,
        "reward_model": {"style": "rule", "ground_truth": item.ground_truth},
        "extra_info": {
            "split": dataset.split,
            "index": index,
            "id": item.id or str(index),
            "verifier": dataset.ability,
            "temperature": dataset.temperature,
        },
    }


def question_digest(question: str) -> bytes:
    """16 bytes that are equal for questions that differ in white space or in how their characters are composed."""
    return _digest(" ".join(unicodedata.normalize("NFC", question).split()))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _excerpt(row: Mapping[str, Any], count: int) -> str:
    question = next(
        (row[name] for name in ("question", "problem", "Problem", "prompt") if row.get(name)), "no question"
    )
    if isinstance(question, list) and isinstance(question[-1], Mapping):
        question = question[-1].get("content")
    return _printable(f"row {count - 1}: {' '.join(str(question)[:200].split())[:100]}")


def _printable(text: str) -> str:
    """Halves of surrogate pairs as `\\ud800`: neither the stamp nor a terminal can hold them."""
    return text.encode(errors="backslashreplace").decode()


def _nothing(dataset: DataSet, source: Source, tally: Tally) -> str:
    """Why not one row was usable: most often another format."""
    if not tally.read:
        return f"{dataset.name}: {source.name} has no rows"
    reasons = {**tally.left_out, **tally.dropped}
    said = "; ".join(f"{reason} ({count})" for reason, (count, _) in reasons.items())
    unknown = set(tally.dropped) == {UNKNOWN} and not tally.left_out
    if not unknown:
        return f"{dataset.name}: none of the {tally.read} rows of {source.name} can be used: {said}"
    found = sorted(next(iter(source.rows(())))[0])
    nearest = max(dataset.formats, key=lambda one: len(set(one.fields) & set(found)))
    missing = [name for name in nearest.fields if name not in found]
    others = ", or ".join(" and ".join(one.fields) for one in dataset.formats if one is not nearest)
    return (
        f"{dataset.name}: {source.name} has the fields {', '.join(found)}; of the nearest format, "
        f"{' and '.join(nearest.fields)}, it lacks {' and '.join(missing)}"
        + (f" (also read: {others})" if others else "")
    )


class _Writer:
    """Rows to a parquet file, in row groups of bounded size."""

    def __init__(self, path: Path):
        self.file = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self.rows: list[dict[str, Any]] = []
        self.characters = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self.flush()
        finally:
            self.file.close()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.characters += len(row["reward_model"]["ground_truth"])
        if len(self.rows) >= _GROUP_ROWS or self.characters >= _GROUP_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.file.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA))
            self.rows, self.characters = [], 0


# --- files and stamps -------------------------------------------------------------------------------------------------


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Only one process at a time makes `path`; others wait. The kernel frees the lock of a process that dies."""
    one = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        one.acquire(timeout=0)
    except Timeout:
        print(f"verl-cov: another process is writing {path}; waiting for it", file=sys.stderr, flush=True)
        one.acquire()
    try:
        yield
    finally:
        one.release()


@contextmanager
def replacing(path: Path) -> Iterator[tuple[Path, Callable[[Mapping[str, Any] | None], None]]]:
    """(where to write, a function that puts it in place with its stamp). Hold :func:`lock`.

    What was left by a process that was killed is overwritten; without the call, `path` stays as it was.
    """
    partial = path.with_name(f".{path.name}.partial")  # one name is enough under the lock
    partial_stamp = path.with_name(f".{stamp_of(path).name}.partial")

    def finish(stamp: Mapping[str, Any] | None) -> None:
        if stamp is not None:  # written before anything is replaced: it may fail, on a full disk for one
            text = json.dumps(stamp, indent=2, ensure_ascii=False) + "\n"
            # A file's name may be no Unicode; what "backslashreplace" makes of it is JSON's escape as well.
            partial_stamp.write_bytes(text.encode(errors="backslashreplace"))
        stamp_of(path).unlink(missing_ok=True)
        os.replace(partial, path)
        if stamp is not None:
            os.replace(partial_stamp, stamp_of(path))

    try:
        yield partial, finish
    finally:
        partial.unlink(missing_ok=True)
        partial_stamp.unlink(missing_ok=True)


def stamp_of(path: Path) -> Path:
    """The stamp's path: beside the file."""
    return path.with_suffix(".json")


def read_stamp(path: Path) -> dict[str, Any] | None:
    """The stamp of a file that it still fits; None where there is none, or where the file was changed."""
    try:
        stamp = json.loads(stamp_of(path).read_text(encoding="utf-8"))
        rows = pq.read_metadata(path).num_rows
        return stamp if stamp["format"] == FORMAT and stamp["rows"]["written"] == rows else None
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's are OSError and ValueError
        return None


def _same(stamp: Mapping[str, Any], source: Source, given: str | None) -> bool:
    """The same source: of files the content counts; the Hub is not asked whether it has something newer."""
    made_of = stamp["source"]
    if isinstance(source, HubRows):
        return made_of.get("name") == source.name and made_of.get("kind") == "hub"
    return made_of.get("digest") == source.digest and (made_of.get("kind") == SAMPLE) == (given == SAMPLE)


def _stamp(dataset: DataSet, source: Source, given: str | None, tally: Tally) -> dict[str, Any]:
    kind = SAMPLE if given == SAMPLE else "hub" if isinstance(source, HubRows) else "files"
    name = SAMPLE if given == SAMPLE else source.name
    return {
        "name": dataset.name,
        "format": FORMAT,
        "verl_cov": __version__,
        "source": {"kind": kind, "name": name, "digest": source.digest},
        "rows": tally.as_json(),
        "copies": dataset.copies,
        "temperature": dataset.temperature,
        # The sample is made to have what is warned of.
        "warnings": {} if given == SAMPLE else _warnings(dataset, tally),
    }


def _warnings(dataset: DataSet, tally: Tally) -> dict[str, str]:
    found = {}
    if dataset.rows and tally.candidates not in dataset.rows:
        known = " or ".join(f"{number:,}" for number in dataset.rows)
        hint = f": {dataset.hint}" if dataset.hint else ""
        found["rows"] = f"{tally.candidates:,} rows, where the known source has {known}{hint}"
    share = tally.unusable / tally.candidates
    if share > TOO_MANY_DROPPED:
        reason, (count, example) = max(tally.dropped.items(), key=lambda one: one[1][0])
        found["dropped"] = f"{share:.0%} of the rows dropped; most often: {reason} ({count:,}), such as {example}"
    if tally.conflicts:
        found["conflicts"] = (
            f"{tally.conflicts:,} duplicates have another answer than the first of their question, which is kept; "
            f"such as {tally.conflict}"
        )
    return found
