"""``verl-cov tokens``: shows the tokens with the highest covariance in their text, which is what a control acts on."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_cov import terminal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from verl_cov.core.token_file import Dump, Token


EXAMPLES = terminal.examples(
    "verl-cov tokens runs/demo/kl_cov",
    "verl-cov tokens runs/demo --step 20 --top 5",
)


def tokens(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of runs, or of those, that were trained with cov_dump_every; or dumps themselves."
        ),
    ],
    step: Annotated[int | None, typer.Option(help="Rollout step; the last one if not given.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many tokens.")] = 20,
) -> None:
    """Show the tokens with the highest covariance, in context: what Clip-Cov and KL-Cov act on."""
    from rich.console import Console

    from verl_cov.core import token_file

    console = Console(highlight=False)
    with terminal.one_line():
        paths = list(dict.fromkeys(path for run in runs for path in find(run)))
    for path in paths:
        if len(paths) > 1:
            console.print(str(path), style="bold", markup=False, soft_wrap=True)
        try:
            dump = token_file.read(path)
            console.print(view(dump, step, top))
        except (OSError, ValueError) as error:
            terminal.fail(f"{path}: {error}")
        if dump.damaged:
            console.print(f"Damaged lines left out: {dump.damaged}")


def find(run: Path) -> list[Path]:
    """The dumps of a run or of a folder of runs, or the dump itself. Raises ValueError if there is none."""
    from verl_cov.core.token_file import FILE

    if not run.is_dir():
        if not run.exists():
            raise ValueError(f"{run}: no such file or folder; a training with cov_dump_every=10, say, writes one")
        return [run]
    # From the folder of runs down: EXPERIMENT/RUN/checkpoints/cov.
    paths = sorted(path for level in range(5) for path in run.glob("*/" * level + FILE))
    if not paths:
        raise ValueError(f"{run}: no {FILE} in it: train with policy_loss.cov_dump_every=10, say, to have it written")
    return paths


def view(dump: Dump, step: int | None = None, top: int = 20) -> RenderableType:
    """The ``top`` tokens of ``step`` (the last one if None) as a table, and which tokens are most often among them.

    Raises ValueError: the dump is empty or has no such step.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    steps = sorted({token.step for token in dump.tokens})
    if not steps:
        raise ValueError("the file holds no token: give a run's folder, or the tokens.jsonl that cov_dump_every writes")
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
    """The token in its text, on one line, between «»: colours are lost in a file, a pipe and some terminals."""
    from rich.text import Text

    text = Text(_visible(token.before)[-48:], style="dim", overflow="fold")
    text.append(f"«{_visible(token.token) or '∅'}»", style="bold red underline")
    text.append(_visible(token.after)[:16], style="dim")
    return text


def _most_often(tokens: Sequence[Token]) -> Text:
    from rich.text import Text

    counts = Counter(token.token for token in tokens)
    listed = ", ".join(f"{_visible(word)!r} x{count}" for word, count in counts.most_common(8))
    negative = sum(token.advantage < 0 for token in tokens)
    chosen = sum(token.selected for token in tokens)
    return Text(
        f"Of {terminal.counted(len(tokens), 'token')} {chosen} acted on, {negative} with a negative advantage. "
        f"Most often: {listed}"
    )


def _visible(text: str) -> str:
    """Text that takes up its own place: what would move the cursor, ring or turn the line round is escaped."""
    return "".join(_escaped(letter) if unicodedata.category(letter)[0] == "C" else letter for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", errors="replace").decode()


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) if len(steps) <= 10 else f"{len(steps)} steps from {steps[0]} to {steps[-1]}"
