"""TensorBoard event files, as verl's `tensorboard` logger and others write them.

Each launch writes its own file into the run's folder, so a resumed run has several files; for a step that was trained
twice the later file's values count. Values are float32, as TensorBoard stores scalars.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from verl_cov.law.readers.run import NoPoints, Records, Tell

PATTERN = "*tfevents*"

_FRAME = 16  # bytes around an event: its length and two checksums


def recognises(head: bytes) -> bool:
    """Whether a file that begins with `head` is an event file, whose first record names the format's version."""
    return b"brain.Event:" in head[:64]


def event_files(folder: Path) -> list[Path]:
    """The event files directly in `folder`, oldest first, by the time in their names."""

    def started(path: Path) -> tuple[int, str]:
        match = re.search(r"tfevents\.(\d+)", path.name)
        return int(match[1]) if match else 0, path.name

    return sorted((path for path in folder.glob(PATTERN) if path.is_file()), key=started)


def records(path: Path, tell: Tell) -> Records:
    """The scalars of one file; those written for one step in a row make one record.

    Raises NoPoints if tensorboard is not installed.
    """
    try:
        # The raw loader: the usual one turns every scalar into a tensor first, and does not report its progress.
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError as error:
        raise NoPoints(f"{path} is a TensorBoard file: to read it, pip install tensorboard") from error
    step, data = -1, dict[str, object]()
    size, done = path.stat().st_size, 0
    for raw in RawEventFileLoader(str(path)).Load():
        done += len(raw) + _FRAME
        tell(done)
        event = Event.FromString(raw)
        scalars = {value.tag: _scalar(value) for value in event.summary.value}
        scalars = {tag: number for tag, number in scalars.items() if number is not None}
        if not scalars:
            continue
        if event.step != step:
            if data:
                yield step, data
            step, data = event.step, {}
        data.update(scalars)
    if data:
        yield step, data
    if done < size:
        yield None  # at a damaged or cut-off event the loader stops silently


def _scalar(value: Any) -> float | None:
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind == "tensor" and value.tensor.dtype in (1, 2, 3, 9) and not value.tensor.tensor_shape.dim:
        from tensorboard.util import tensor_util

        return float(tensor_util.make_ndarray(value.tensor))  # TensorFlow 2 writes a scalar as a tensor without axes
    return None
