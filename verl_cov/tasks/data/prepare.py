"""From a data set's source to the parquet file that verl trains or validates on, and the stamp beside it.

DIR/NAME.parquet has the rows of `rows`, DIR/NAME.json says what they were made of. Rows are streamed: memory holds a
batch of rows, and 24 bytes for each distinct question.

- Duplicates are dropped: questions equal after Unicode's canonical composition and with each run of white space as one
  space. Case and signs stay, they carry meaning in mathematics. The first one counts, also where later ones have
  another answer; those are reported.
- An evaluation set that has exactly the published number of rows is kept as published, with its duplicates: the paper's
  averages are over those rows.
- Rows without a usable answer or tests, and rows with text that is not Unicode, are dropped, and counted by reason.
- Copies (avg@32) follow each other as whole sets, so that the first N rows are N problems.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from verl_cov import __version__
from verl_cov.tasks.data.formats.items import Elsewhere, Format, Item, Row, Unusable
from verl_cov.tasks.data.rows import with_instruction
from verl_cov.tasks.data.sets import DataSet
from verl_cov.tasks.data.sources import Files, Hub, HubRows, Source, is_hub_id
from verl_cov.tasks.data.stamped_file import FORMAT, RowWriter, Stamp, lock, read_stamp, replacing
from verl_cov.tasks.data.tally import UNKNOWN, Tally, excerpt, nothing_usable, warnings

SAMPLE = "sample"

Progress = Callable[[int, "int | None"], None]


@dataclass(frozen=True)
class Prepared:
    """A prepared file. stamp: the content of the file beside it. fresh: it was made now, not found."""

    path: Path
    stamp: Stamp
    fresh: bool

    @property
    def warnings(self) -> list[str]:
        """What a user should know about the source."""
        return list(self.stamp["warnings"].values())


def source_of(dataset: DataSet, given: str | None) -> Source:
    """The source that `--from` names: a path, a dataset on the Hub, or the sample; None: the place on the Hub.

    Raises ValueError or FileNotFoundError, one line.
    """
    if given == SAMPLE:
        return Files(Path(str(resources.files("verl_cov.tasks.data"))) / "samples" / f"{dataset.name}.jsonl")
    if given is not None and not is_hub_id(given):
        return Files(Path(given).expanduser(), dataset.hubs, strict=dataset.strict)
    if not dataset.hubs:
        raise ValueError(f"{dataset.name} is not on the Hugging Face Hub: get {dataset.hint} and give it by --from")
    first = dataset.hubs[0]
    if given is None:
        return HubRows(first)
    # A copy of the set under an id that we do not know is assumed to have the same splits.
    return HubRows(next((hub for hub in dataset.hubs if hub.id == given), Hub(given, split=first.split)))


def prepare(
    dataset: DataSet,
    given: str | None,
    folder: Path,
    *,
    strict: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Make DIR/NAME.parquet and DIR/NAME.json, unless they are there already, made of the same source.

    given: as in `source_of`. strict: a number of rows that is not the known one is an error. force: make the file
    again. progress: called with (rows read, rows in all or None). Raises ValueError or OSError, one line; the files are
    then as they were.
    """
    source = source_of(dataset, given)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{dataset.name}.parquet"
    with lock(path):
        stamp = read_stamp(path)
        if stamp is not None and not force and _same(stamp, source, given):
            prepared = Prepared(path, stamp, fresh=False)
        else:
            with replacing(path) as (partial, finish):
                tally = _write(dataset, source, partial, progress)
                prepared = Prepared(path, _stamp(dataset, source, given, tally), fresh=True)
                if not (strict and "rows" in prepared.stamp["warnings"]):
                    finish(prepared.stamp)
    if strict and "rows" in prepared.stamp["warnings"]:
        raise ValueError(f"{dataset.name}: {prepared.stamp['warnings']['rows']} (--strict)")
    return prepared


def _write(dataset: DataSet, source: Source, target: Path, progress: Progress | None) -> Tally:
    tally = Tally()
    kept: list[Item] = []  # only evaluation sets, which are small: copies need a whole set
    with RowWriter(target) as writer:
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
        fields = sorted(next(iter(source.rows(())))[0]) if UNKNOWN in tally.dropped else []
        raise ValueError(nothing_usable(dataset, source.name, tally, fields))
    return tally


def _items(dataset: DataSet, source: Source, tally: Tally, progress: Progress | None) -> Iterator[Item]:
    """The distinct items; of an evaluation set in its published size, all of them."""
    answers: dict[bytes, bytes] = {}  # the first answer to each question, both as digests
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
            tally.count(tally.left_out, str(reason), excerpt(row, count))
            continue
        except Unusable as reason:
            tally.count(tally.dropped, str(reason), excerpt(row, count))
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
                tally.conflict = tally.conflict or excerpt(row, count)
        if evaluation:
            (fresh if earlier is None else repeated).append((count, item))
        elif earlier is None:
            yield item
    if progress:
        progress(tally.read, tally.read)
    if evaluation:
        if tally.candidates in dataset.rows[:1] and len(fresh) + len(repeated) == tally.candidates:
            fresh = sorted([*fresh, *repeated], key=lambda counted: counted[0])
        yield from (item for _, item in fresh)


def _read(dataset: DataSet, row: Row) -> Item:
    item = _format(dataset, row).read(row)
    try:
        "".join(filter(None, astuple(item))).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and no file can hold
        raise Unusable("text that is not Unicode") from None
    if dataset.held_out is not None:
        share, owns_share = dataset.held_out
        if held_out(item.group or item.question, share) != owns_share:
            raise Elsewhere("training's side of the split" if owns_share else "held out for validation")
    return item


def _format(dataset: DataSet, row: Mapping[str, Any]) -> Format:
    for known in dataset.formats:
        if all(name in row for name in known.fields):
            return known
    raise Unusable(UNKNOWN)


def held_out(group: str, share: float) -> bool:
    """Whether validation owns this group of problems.

    A hash decides, so that the side of a problem depends on nothing else: not on the order of the file, its other rows
    or a seed.
    """
    return int.from_bytes(_digest(f"held out:{group}")[:8], "big") < share * 2**64


def row_of(dataset: DataSet, item: Item, index: int) -> dict[str, Any]:
    """The row of an item, as `rows` describes it."""
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
    """16 bytes, equal for questions that differ only in white space or in how their characters are composed."""
    return _digest(" ".join(unicodedata.normalize("NFC", question).split()))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


# --- the stamp --------------------------------------------------------------------------------------------------------


def _same(stamp: Stamp, source: Source, given: str | None) -> bool:
    """Whether a file was made of this source: files by their content; the Hub is not asked for something newer."""
    made_of = stamp["source"]
    if isinstance(source, HubRows):
        return made_of.get("name") == source.name and made_of.get("kind") == "hub"
    return made_of.get("digest") == source.digest and (made_of.get("kind") == SAMPLE) == (given == SAMPLE)


def _stamp(dataset: DataSet, source: Source, given: str | None, tally: Tally) -> Stamp:
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
        # The sample has everything that is warned of, on purpose.
        "warnings": {} if given == SAMPLE else warnings(dataset, tally),
    }
