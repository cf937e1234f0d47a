"""Reads and writes the file of the tokens with the highest covariance (``cov_dump_every``): JSON lines, one per token.

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
        step: rollout step; the token is in its first mini-batch.
        rank: 1 for the highest covariance of the mini-batch.
        covariance: in nats times advantage (Eq. 10).
        log_prob: in nats, the one that the covariance was computed from.
        advantage: of the token.
        kind: one of :data:`verl_cov.core.update_kinds.UPDATE_KINDS`.
        selected: True if the control acted on the token.
        token: decoded; token_id: in the vocabulary.
        before, after: the text around it (prompt and response).
        position: in the response, from 0; response_tokens: length of the response.
        prompt: verl's ``uid`` of the prompt.
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
    """The tokens of a file, and the number of damaged lines (cut off or edited), which are left out."""

    tokens: tuple[Token, ...]
    damaged: int


def append(path: str | PathLike[str], tokens: Iterable[Token]) -> None:
    """Appends tokens to the file ``path``, which is created with its folder if missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(token), ensure_ascii=False) + "\n" for token in tokens]
    with path.open("ab+") as file:
        # A killed run may have left half a line: the next line must not be glued to it.
        if file.seek(0, SEEK_END) and file.seek(-1, SEEK_END) is not None and file.read(1) != b"\n":
            file.write(b"\n")
        # Half of a character that a byte-level tokenizer split is not UTF-8.
        file.write("".join(lines).encode(errors="replace"))


def read(path: str | PathLike[str]) -> Dump:
    """Reads a dump. Raises FileNotFoundError.

    A resumed run writes some steps again, with more tokens or fewer: from rank 1 on they replace the earlier ones.
    """
    latest: dict[int, dict[int, Token]] = {}
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
                step = latest.setdefault(token.step, {})
                if token.rank == 1:
                    step.clear()
                step[token.rank] = token
    return Dump(tuple(latest[step][rank] for step in sorted(latest) for rank in sorted(latest[step])), damaged)


def _token(record: dict[str, Any]) -> Token:
    """Checks the fields of a line and their types. Raises ValueError, TypeError or KeyError if they are no token's."""
    token = Token(**{field.name: record[field.name] for field in fields(Token)})
    for field in fields(Token):
        value, expected = getattr(token, field.name), _TYPES[str(field.type)]
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise TypeError(f"{field.name}={value!r}")
    if not all(map(math.isfinite, (token.covariance, token.log_prob, token.advantage))):
        raise ValueError("not finite")
    return token


_TYPES: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "str": str, "bool": bool}
