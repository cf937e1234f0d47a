"""The loop of `verl-cov watch`: read new records, draw, wait for them or for a key."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live

from verl_cov.law import files
from verl_cov.law.inputs import Inputs
from verl_cov.law.runs import say_left_out
from verl_cov.law.watch.board import board, screen
from verl_cov.law.watch.sources import Source, find, poll

_UP, _DOWN, _QUIT = (b"k", b"\x1b[A", b"\x1bOA"), (b"j", b"\x1b[B", b"\x1bOB"), (b"q", b"Q", b"\x03")


def watch(
    inputs: Inputs,
    interval: float,
    once: bool,
    picture: Path | None,
    total: int | None = None,
) -> None:
    """Show the runs until `q` or Ctrl-C, or only once if ``once`` is set or the output is no terminal.

    interval: seconds between updates. picture: a file to draw as well. total: training steps of each run, if their logs
    do not say.

    Raises FileNotFoundError: an argument holds no run; ValueError: ``picture`` cannot be written.
    """

    def current() -> list[Source]:
        return find(inputs, total)[0]

    sources, left_out = find(inputs, total)
    say_left_out(left_out)
    if picture is not None:
        files.check_output(picture, files.PICTURES, inputs.paths())
    console = Console(highlight=False)
    _poll(sources, picture)
    if not once and console.is_terminal:
        sources = _follow(console, current, sources, interval, picture)
    console.print(board(sources, console.width, time.time()))
    if picture is not None:
        console.print(f"written: {picture}", markup=False)


def _follow(
    console: Console,
    current: Callable[[], list[Source]],
    sources: list[Source],
    interval: float,
    picture: Path | None,
) -> list[Source]:
    """Show the runs on the terminal's alternate screen until `q` or Ctrl-C; return the last ones."""
    chosen = 0
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as view, _keys() as keyboard:
        try:
            while True:
                _poll(sources, picture)
                deadline = time.monotonic() + interval
                while True:
                    shown = screen(sources, console.width, console.height, chosen, time.time())
                    view.update(shown, refresh=True)
                    key = _key(keyboard, deadline - time.monotonic())
                    if key in _QUIT:
                        return sources
                    if key is None:
                        break
                    chosen += (key in _DOWN) - (key in _UP)
                    chosen = max(0, min(chosen, len(sources) - 1))
                sources = _with_new(current, sources)
                chosen = min(chosen, len(sources) - 1)
        except KeyboardInterrupt:
            return sources


@contextmanager
def _keys() -> Iterator[int | None]:
    """The keyboard's file, without waiting for Enter and without showing what is typed; None if there is none."""
    if not sys.stdin.isatty():
        yield None
        return
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    try:
        tty.setcbreak(file)
        yield file
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


def _key(keyboard: int | None, seconds: float) -> bytes | None:
    """The next key within that time, or None."""
    if keyboard is None:
        time.sleep(max(0.0, seconds))
        return None
    ready, _, _ = select.select([keyboard], [], [], max(0.0, seconds))
    return os.read(keyboard, 16) or None if ready else None


def _with_new(current: Callable[[], list[Source]], sources: Sequence[Source]) -> list[Source]:
    """The runs that exist now; those known before keep what was read of them."""
    try:
        found = current()
    except OSError:
        return list(sources)
    known = {tuple(source.paths): source for source in sources}
    for source in found:
        known.setdefault(tuple(source.paths), source).name = source.name
    return [known[tuple(source.paths)] for source in found]


def _poll(sources: Sequence[Source], picture: Path | None) -> bool:
    """Read new records and redraw the picture. Returns whether there were any."""
    news = poll(sources)
    if picture is None or not news:
        return news
    from verl_cov.law.watch.figure import plot  # here, as only a picture is worth loading matplotlib

    plot({source.name: source.run for source in sources if source.run is not None}, picture)
    return True
