"""Writes the files of a toy task: `train.parquet` and `validation.parquet` as verl reads them, and a stamp."""

# No `from __future__ import annotations`: see countdown.py, which imports this.

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPLITS = ("train", "validation")


def write_parquet(
    directory: str | os.PathLike[str], name: str, stamp: dict[str, Any], rows: Callable[[str], list[dict[str, Any]]]
) -> tuple[Path, Path]:
    """Write both files; returns their paths. A second call with the same stamp does nothing.

    name: of the task and of its stamp's file. stamp: what the files are made of, as JSON. rows: of a split.

    A reader never sees half a file (each is renamed into place), nor a stamp beside files of other settings (it is
    removed first and written last).
    """
    import pyarrow
    import pyarrow.parquet

    directory = Path(directory)
    stamp_path = directory / f"{name}.json"
    paths = {split: directory / f"{split}.parquet" for split in SPLITS}
    content = json.dumps(stamp, indent=2, sort_keys=True) + "\n"
    if stamp_path.is_file() and stamp_path.read_text() == content and all(path.is_file() for path in paths.values()):
        return paths["train"], paths["validation"]

    tables = {split: pyarrow.Table.from_pylist(rows(split)) for split in paths}
    directory.mkdir(parents=True, exist_ok=True)
    stamp_path.unlink(missing_ok=True)
    # The scratch folder is in the directory: within one file system a rename is atomic.
    with tempfile.TemporaryDirectory(dir=directory, prefix=f".{name}-") as scratch:
        for split, path in paths.items():
            pyarrow.parquet.write_table(tables[split], Path(scratch) / split)
            os.replace(Path(scratch) / split, path)
        (Path(scratch) / "stamp").write_text(content)
        os.replace(Path(scratch) / "stamp", stamp_path)
    return paths["train"], paths["validation"]


def row(data_source: str, text: str, split: str, index: int, **extra: object) -> dict[str, Any]:
    """A row in verl's format: the prompt is `text`, which is also the ground truth that the reward function gets."""
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": text}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": text},
        "extra_info": {"split": split, "index": index, **extra},
    }
