"""W&B's local runs: wandb/run-*/run-*.wandb and wandb/offline-run-*/run-*.wandb.

The file is a log in LevelDB's format with a header of its own: blocks of 32 KiB, in them chunks with a checksum, and
one or several chunks make a record, a protobuf message of wandb's. wandb 0.31 reads it in Go, which Python cannot call;
so the chunks are read here, and the messages by wandb's own classes.

https://github.com/google/leveldb/blob/main/doc/log_format.md (the checksum here is plain CRC-32)
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from verl_cov.law.readers.run import NoPoints, Records, Tell, step_key, whole_step

PATTERN = "run-*.wandb"

_MAGIC = b":W&B"
_HEADER = 7
_BLOCK = 32 << 10
_CHUNK = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` is a W&B run."""
    return head.startswith(_MAGIC)


def records(path: Path, tell: Tell, wanted: str | None = None) -> Records:
    """The history of one run. wanted: the key of the step. Raises NoPoints if wandb is not installed."""
    message = _message(path)
    for raw in _messages(path, tell):
        if raw is None:
            yield None
            continue
        try:
            record = message.FromString(raw)
        except Exception:  # protobuf's DecodeError: protobuf is wandb's dependency, not ours
            yield None
            continue
        if record.WhichOneof("record_type") == "history":
            data = {_key(item): _json(item.value_json) for item in record.history.item}
            key = step_key(data, wanted)
            if key is None and wanted is not None:
                continue
            step = whole_step(data[key]) if key else record.history.step.num
            yield None if step is None else (step, {key: value for key, value in data.items() if key[:1] != "_"})


def run_name(path: Path) -> str | None:
    """The run's name in W&B, or None if it cannot be read."""
    try:
        message = _message(path)
        for _, raw in zip(range(8), _messages(path, lambda done: None), strict=False):
            record = message.FromString(raw) if raw else None
            if record is not None and record.WhichOneof("record_type") == "run":
                return record.run.display_name or None
    except Exception:  # a missing name is no error; if the file is damaged, reading the run reports it
        pass
    return None


def _message(path: Path) -> Any:
    try:
        messages: Any = import_module("wandb.proto.wandb_internal_pb2")
    except ImportError as error:
        raise NoPoints(f"{path} is a W&B run: to read it, pip install wandb, or export the run as CSV") from error
    return messages.Record


def _messages(path: Path, tell: Tell) -> Iterator[bytes | None]:
    """The records of the file. A damaged record is None, and reading goes on with the next block."""
    with path.open("rb") as file:
        position = _HEADER
        parts: list[bytes] = []
        while block := file.read(_BLOCK):
            while len(block) - position >= _CHUNK.size:
                checksum, length, kind = _CHUNK.unpack_from(block, position)
                data = block[position + _CHUNK.size : position + _CHUNK.size + length]
                if kind == 0 and length == 0:
                    break  # zeros: padding of the block, or space allocated in advance
                if len(data) < length or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
                    parts = []
                    yield None
                    break
                position += _CHUNK.size + length
                parts = [data] if kind in (_FULL, _FIRST) else [*parts, data] if parts else []
                if kind in (_FULL, _LAST) and parts:
                    yield b"".join(parts)
                    parts = []
            position = 0
            tell(file.tell())


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
