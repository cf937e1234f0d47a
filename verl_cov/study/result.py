"""A finished run, as it was read from its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from verl_cov.law.readers import Run


@dataclass(frozen=True)
class Result:
    """A finished run. levels: of each factor. seconds: that its launches took. parameters: of its model without the
    embeddings, None if not known. run: its metrics, to be read as any log."""

    name: str
    levels: Mapping[str, str]
    seconds: float
    parameters: int | None
    run: Run
