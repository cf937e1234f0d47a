"""Reads the rows of a data set as its makers publish it, from files, folders or the Hugging Face Hub, a few at a time.

A folder may be what `hf download --local-dir` or the Hub's cache leaves behind, or any folder of data files: parquet,
Arrow (`datasets.save_to_disk`), JSON Lines, JSON, CSV, each also gzipped. Of parquet files only the columns needed are
read: AceCode's has 5 GB of completions beside 0.2 GB of questions and tests.

JSON is read by the standard library: Arrow's reader wants one type for each field, and answers are numbers in some rows
and strings in others.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import json
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_cov.tasks.data.rows import batches

Row = dict[str, Any]

# In order of preference: a folder may hold the same data twice.
_KINDS = (".parquet", ".arrow", ".jsonl", ".json", ".csv")
# Files that the Hub and `datasets` put beside the data.
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
_SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "valid", "val", "dev")}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_BATCH = 256  # rows decoded at a time; Eurus-2's tests can be megabytes a row


@dataclass(frozen=True)
class Hub:
    """A place on the Hugging Face Hub: dataset id, config ("" for the default), split."""

    id: str
    config: str = ""
    split: str = "train"


class Source:
    """A set's rows from one place.

    name: as the user gave it. digest: changes when the rows do; None if finding out would need the network.
    """

    name: str
    digest: str | None

    def rows(self, columns: Collection[str]) -> Iterator[tuple[Row, int]]:
        """Yields (row, rows read so far). A row has at least those of `columns` that its file has."""
        raise NotImplementedError

    def total(self) -> int | None:
        """The number of rows, if it is known without reading them."""
        return None


def is_hub_id(text: str) -> bool:
    """Whether `text` can only be a dataset on the Hub: OWNER/NAME, no such file here, no data file's ending."""
    return bool(_HUB_ID.fullmatch(text)) and not Path(text).exists() and _kind(Path(text)) is None


# --- files ------------------------------------------------------------------------------------------------------------


class Files(Source):
    """A file, or the data files of a folder that belong to one split and config.

    hubs: the places on the Hub that the folder may be a download of; their configs and splits pick its files.
    strict: the folder's other splits belong to other sets, so a file that names another split is refused.
    Raises FileNotFoundError or ValueError, one line.
    """

    def __init__(self, path: Path, hubs: Sequence[Hub] = (), *, strict: bool = False):
        if not path.exists():
            raise FileNotFoundError(f"--from {path}: there is no such file or folder")
        self.name = str(path)
        self.paths = _pick(path, hubs, strict)
        self._digest: str | None = None

    @property
    def digest(self) -> str:  # type: ignore[override]
        """SHA-256 of the files' contents: a file that was moved or downloaded again is still the same source."""
        if self._digest is None:
            whole = hashlib.sha256()
            for path in self.paths:
                content = hashlib.sha256()
                with path.open("rb") as file:
                    while chunk := file.read(1 << 20):
                        content.update(chunk)
                whole.update(content.digest())
            self._digest = whole.hexdigest()
        return self._digest

    def total(self) -> int | None:
        if any(_kind(path) != ".parquet" for path in self.paths):
            return None
        try:
            return sum(pq.read_metadata(path).num_rows for path in self.paths)
        except (pa.ArrowInvalid, OSError):
            return None  # reading the rows will report what is wrong

    def rows(self, columns: Collection[str]) -> Iterator[tuple[Row, int]]:
        count = 0
        for path in self.paths:
            try:
                for row in _read(path, columns):
                    count += 1
                    yield row, count
            except (pa.ArrowException, OSError, EOFError, ValueError, csv.Error) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ValueError(f"{path}: cannot be read after row {count} ({reason}): download it again") from error


def _kind(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    kind = next((kind for kind in _KINDS if name.endswith(kind)), None)
    return None if path.name in _NOT_DATA else kind


def _pick(path: Path, hubs: Sequence[Hub], strict: bool) -> list[Path]:
    if path.is_file():
        if _kind(path) is None:
            raise ValueError(f"--from {path}: not a file that can be read; it must be one of {', '.join(_KINDS)} (.gz)")
        found = [path]
    else:
        path = _snapshot(path)
        found = [file for file in sorted(path.rglob("*")) if file.is_file() and _kind(file)]
        found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        if not found:
            raise ValueError(f"--from {path}: no data files in this folder ({', '.join(_KINDS)})")
        for config in (hub.config for hub in hubs if hub.config):
            in_config = [file for file in found if config in file.relative_to(path).parts[:-1]]
            if in_config:
                found = in_config
                break
    found = _in_splits(found, path, {hub.split for hub in hubs}, strict)
    best = next(kind for kind in _KINDS if any(_kind(file) == kind for file in found))
    return [file for file in found if _kind(file) == best]


def _snapshot(path: Path) -> Path:
    """The folder of the revision to read: the Hub's cache keeps each revision in a folder of its own."""
    snapshots = path / "snapshots"
    if not snapshots.is_dir():
        return path
    main = path / "refs" / "main"
    there = sorted(folder for folder in snapshots.iterdir() if folder.is_dir())
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    if len(there) == 1:
        return there[0]
    raise ValueError(f"--from {path}: it has {len(there)} snapshots; name one of the folders in {snapshots}")


def _in_splits(files: list[Path], root: Path, splits: set[str], strict: bool) -> list[Path]:
    split_of = {file: _split(file, root) for file in files}
    in_splits = [file for file in files if split_of[file] in splits]
    if in_splits:
        return in_splits
    others = sorted({split for split in split_of.values() if split})
    if strict and others:
        raise ValueError(
            f"--from {root}: this is the split {', '.join(others)} of the source; the set is made of its split "
            f"{' or '.join(sorted(splits))}"
        )
    return files


def _split(file: Path, root: Path) -> str | None:
    """The split that the name of a file, or of a folder above it, begins with: train for data/train-00000.parquet."""
    parts = file.relative_to(root).parts if file != root else (file.name,)
    for part in reversed(parts):
        word = re.split(r"[^a-z]", part.lower())[0]
        for split, names in _SPLITS.items():
            if word in names:
                return split
    return None


def _read(path: Path, columns: Collection[str]) -> Iterator[Row]:
    kind = _kind(path)
    if kind == ".parquet":
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name in columns] or None
            for batch in batches(file, _BATCH, names):
                yield from batch.to_pylist()
        return
    if kind == ".arrow":
        with pa.memory_map(str(path)) as memory, _arrow(memory) as stream:
            for batch in stream:
                for start in range(0, batch.num_rows, _BATCH):
                    yield from batch.slice(start, _BATCH).to_pylist()
        return
    with _text(path) as lines:
        if kind == ".csv":
            csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
            yield from csv.DictReader(lines)
        else:
            yield from _json(lines)


def _arrow(memory: Any) -> Any:
    """`datasets` writes streams; Arrow's own tools write files."""
    magic = memory.read(6)
    memory.seek(0)
    if magic != b"ARROW1":
        return pa.ipc.open_stream(memory)
    table = pa.ipc.open_file(memory).read_all()
    return table.to_reader()


def _text(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _json(lines: IO[str]) -> Iterator[Row]:
    """Rows of JSON Lines or of one JSON value, whatever the file is called: both are found under the name .json."""
    first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first) if first else None
    except ValueError:
        row = None  # one value over several lines
    if isinstance(row, dict):
        rest = (line for line in lines if line.strip())
        second = next(rest, None)
        if second is not None:
            yield row
            for line in itertools.chain((second,), rest):
                yield _object(json.loads(line))
            return
    if row is None:
        row = json.loads(first + lines.read()) if first else []
    if isinstance(row, dict):
        # {"data": [...]} and {"train": [...]} are common; {"field": {"0": ..., "1": ...}} is what pandas writes.
        inside = [value for value in row.values() if isinstance(value, list)]
        if len(inside) == 1 and inside[0] and all(isinstance(entry, dict) for entry in inside[0]):
            row = inside[0]
        elif row and all(isinstance(value, dict) for value in row.values()):
            keys = list(next(iter(row.values())))
            row = [{name: column.get(key) for name, column in row.items()} for key in keys]
        else:
            row = [row]
    for entry in row:
        yield _object(entry)


def _object(value: object) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"not a row: {str(value)[:40]!r}")
    return value


# --- the Hub ----------------------------------------------------------------------------------------------------------


class HubRows(Source):
    """A dataset on the Hugging Face Hub, streamed. Raises OSError, one line with the fix, if it cannot be read."""

    def __init__(self, hub: Hub):
        self.hub = hub
        self.name = hub.id
        self.digest = None

    def rows(self, columns: Collection[str]) -> Iterator[tuple[Row, int]]:
        hub = self.hub
        from datasets import load_dataset
        from huggingface_hub import HfApi

        try:
            self.digest = HfApi().dataset_info(hub.id).sha
            stream = load_dataset(hub.id, hub.config or None, split=hub.split, streaming=True, revision=self.digest)
            if stream.column_names:
                stream = stream.select_columns([name for name in stream.column_names if name in columns])
            for count, row in enumerate(stream, start=1):
                yield row, count
        except Exception as error:  # the Hub's libraries raise dozens of kinds, from three HTTP libraries
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OSError(
                f"{hub.id} cannot be read from the Hugging Face Hub ({reason[:160]}). If it is gated, accept its terms "
                f"on https://huggingface.co/datasets/{hub.id} and run `hf auth login`; without a network, run `hf "
                f"download --repo-type dataset {hub.id} --local-dir DIR` elsewhere and give --from DIR"
            ) from error
