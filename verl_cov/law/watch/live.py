"""The loop: look for news, draw, wait."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from verl_cov.law.watch.board import board
from verl_cov.law.watch.sources import Source, find


def watch(runs: Sequence[Path], interval: float, once: bool, png: Path | None) -> None:
    """Show the runs until Ctrl-C, or once where ``once`` says so or nobody is at the terminal.

    Raises FileNotFoundError: an argument holds no run; ValueError: ``png`` cannot be written there.
    """
    sources = find(runs)
    if png is not None and (png.suffix.lower() != ".png" or not png.parent.is_dir()):
        raise ValueError(f"--png {png}: give a file that ends with .png, in a folder that exists")
    console = Console(highlight=False)
    _poll(sources, png)
    if not once and console.is_terminal:
        _follow(console, runs, sources, interval, png)
    console.print(_board(sources, console.width))
    if png is not None:
        console.print(f"written: {png}", markup=False)


def _follow(console: Console, runs: Sequence[Path], sources: list[Source], interval: float, png: Path | None) -> None:
    # On the terminal's second screen, cut at its height: a taller board could not be drawn over. What is left when it
    # ends is printed by the caller.
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as view:
        try:
            shown = None
            while True:
                if _poll(sources, png) or shown != console.size:
                    view.update(_board(sources, console.width), refresh=True)
                    shown = console.size
                time.sleep(interval)
                sources[:] = _with_new(runs, sources)
        except KeyboardInterrupt:
            pass


def _with_new(runs: Sequence[Path], sources: Sequence[Source]) -> list[Source]:
    """The runs that are there now, with what has been read of those that were there before."""
    try:
        found = find(runs)
    except OSError:
        return list(sources)
    known = {tuple(source.paths): source for source in sources}
    for source in found:
        known.setdefault(tuple(source.paths), source).name = source.name
    return [known[tuple(source.paths)] for source in found]


def _poll(sources: Sequence[Source], png: Path | None) -> bool:
    """Look for news, and draw them. Returns whether there were any."""
    news = [source.poll() for source in sources]
    if png is None or not any(news):
        return any(news)
    from verl_cov.law.watch.figure import plot  # matplotlib: a second that only a picture is worth

    plot({source.name: source.run for source in sources if source.run is not None}, png)
    return True


def _board(sources: Sequence[Source], width: int):
    return board({source.name: source.run for source in sources}, width)
