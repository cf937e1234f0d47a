"""The file of the tokens with the highest covariance (``cov_dump_every``): JSON lines, one a token, appended to.

``verl-cov tokens FILE`` shows it. Knows nothing about verl.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from os import SEEK_END, PathLike
from pathlib import Path
from typing import Any

FILE = "tokens.jsonl"


@dataclass(frozen=True)
class Token:
    """One token of a rollout.

    Args:
        step: rollout step, whose first mini-batch this is; rank: 1 for the highest covariance of the mini-batch.
        covariance: nats times advantage (Eq. 10). log_prob: nats, as the covariance took it. advantage: of the token.
        kind: one of :data:`verl_cov.core.update_kinds.UPDATE_KINDS`. selected: whether the control acted on it.
        token: decoded; token_id: in the vocabulary. before, after: the text around it (prompt and response).
        position: in the response, from 0; response_tokens: its length. prompt: verl's name of the prompt.
    """

    step: int
    rank: int
    covariance: float
    log_prob: float
    advantage: float
    kind: str
    selected: bool
    token: str
    token_id: int
    before: str
    after: str
    position: int
    response_tokens: int
    prompt: str


@dataclass(frozen=True)
class Dump:
    """What a file holds. damaged: lines that are no token (cut off, edited), left out."""

    tokens: tuple[Token, ...]
    damaged: int


def append(path: str | PathLike[str], tokens: Iterable[Token]) -> None:
    """Add tokens to the end of ``path`` (made with its folder if missing)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(token), ensure_ascii=False) + "\n" for token in tokens]
    with path.open("ab+") as file:
        # A run that was killed may have left half a line: the next must not be glued to it.
        if file.seek(0, SEEK_END) and file.seek(-1, SEEK_END) is not None and file.read(1) != b"\n":
            file.write(b"\n")
        # Half of a character that a byte-level tokenizer split is not UTF-8.
        file.write("".join(lines).encode(errors="replace"))


def read(path: str | PathLike[str]) -> Dump:
    """Read a dump. A run that was resumed wrote some steps again: the later tokens of a step replace the earlier ones.

    Raises FileNotFoundError.
    """
    found: dict[tuple[int, int], Token] = {}
    damaged = 0
    with Path(path).open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                token = _token(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError):
                damaged += 1
            else:
                found[token.step, token.rank] = token
    return Dump(tuple(found[key] for key in sorted(found)), damaged)


def _token(record: Any) -> Token:
    """Raises ValueError, TypeError or KeyError if ``record`` is not the fields of a token with their types."""
    token = Token(**{field.name: record[field.name] for field in fields(Token)})
    for field in fields(Token):
        value, wanted = getattr(token, field.name), _TYPES[str(field.type)]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise TypeError(f"{field.name}={value!r}")
    if not all(map(math.isfinite, (token.covariance, token.log_prob, token.advantage))):
        raise ValueError("not finite")
    return token


_TYPES: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}
