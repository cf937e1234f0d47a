"""The tokens with the highest covariance, decoded and in context: what a control acts on (``cov_dump_every``).

A file of JSON lines, one a token, appended to. ``verl-cov tokens FILE`` shows it. Knows nothing about verl.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from os import SEEK_END, PathLike
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

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


def view(dump: Dump, step: int | None = None, top: int = 20) -> RenderableType:
    """The ``top`` tokens of ``step`` (the last one if None) as a table, and which tokens are most often among them.

    Raises ValueError: the dump is empty or has no such step.
    """
    steps = sorted({token.step for token in dump.tokens})
    if not steps:
        raise ValueError("the file holds no token")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"step {step} was not dumped; the file has {_listed(steps)}")
    tokens = [token for token in dump.tokens if token.step == step]
    shown = f"{min(top, len(tokens))} of {len(tokens)} dumped"
    table = Table(
        title=f"Step {step}: highest covariances of its first mini-batch ({shown})",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    for column in ("#", "cov", "log-prob", "A"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("acted on", no_wrap=True)
    table.add_column("context", ratio=1)
    for token in tokens[:top]:
        table.add_row(
            str(token.rank),
            f"{token.covariance:.3g}",
            f"{token.log_prob:.2f}",
            f"{token.advantage:+.2f}",
            token.kind,
            "yes" if token.selected else "",
            context(token),
        )
    return Group(table, Text(""), _most_often(tokens))


def context(token: Token) -> Text:
    """The token in its text, on one line, the token marked."""
    text = Text(_visible(token.before)[-48:], style="dim", overflow="fold")
    text.append(_visible(token.token) or "∅", style="bold red underline")
    text.append(_visible(token.after)[:16], style="dim")
    return text


def _most_often(tokens: Sequence[Token]) -> Text:
    counts = Counter(token.token for token in tokens)
    listed = ", ".join(f"{_visible(word)!r} x{count}" for word, count in counts.most_common(8))
    negative = sum(token.advantage < 0 for token in tokens)
    chosen = sum(token.selected for token in tokens)
    return Text(
        f"Of {len(tokens)} tokens {chosen} acted on, {negative} with a negative advantage. Most often: {listed}"
    )


def _visible(text: str) -> str:
    """Text that takes up its own place: what would move the cursor, ring or turn the line round is escaped."""
    return "".join(_escaped(letter) if unicodedata.category(letter)[0] == "C" else letter for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", errors="replace").decode()


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) if len(steps) <= 10 else f"{len(steps)} steps from {steps[0]} to {steps[-1]}"
