"""Checks and writes the files of `-o`: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PICTURES = (".png", ".pdf", ".svg")


def check_output(output: Path, endings: Sequence[str] = (), inputs: Sequence[Path] = ()) -> None:
    """Raise ValueError unless `output` can be written and is none of the inputs. endings: the ones to choose from, if
    they matter."""
    if endings and output.suffix.lower() not in endings:
        raise ValueError(f"-o {output}: give a file that ends with {', '.join(endings)}")
    if not output.parent.is_dir() or output.is_dir():
        raise ValueError(f"-o {output}: give a file in a folder that exists")
    if not os.access(output.parent, os.W_OK):
        raise ValueError(f"-o {output}: its folder is read-only for you: give another")
    if output.resolve() in {path.resolve() for path in inputs}:
        raise ValueError(f"-o {output} is one of the logs: give another name")


def write(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all. Raises OSError."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, path)
    except OSError as error:  # of the file that the user knows
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            scratch.unlink()
