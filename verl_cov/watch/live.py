"""The loop: look for news, draw, wait."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from verl_cov.watch.board import board
from verl_cov.watch.sources import Source, find


def watch(runs: Sequence[Path], interval: float, once: bool, png: Path | None) -> None:
    """Show the runs until Ctrl-C, or once where ``once`` says so or nobody is at the terminal.

    Raises FileNotFoundError: an argument holds no run; ValueError: ``png`` cannot be written there.
    """
    sources = find(runs)
    if png is not None and (png.suffix.lower() != ".png" or not png.parent.is_dir()):
        raise ValueError(f"--png {png}: give a file that ends with .png, in a folder that exists")
    console = Console(highlight=False)
    _poll(sources, png)
    if once or not console.is_terminal:
        console.print(_board(sources, console.width))
        if png is not None:
            console.print(f"written: {png}", markup=False)
        return
    with Live(console=console, screen=False, auto_refresh=False, vertical_overflow="visible") as view:
        try:
            while True:
                view.update(_board(sources, console.width), refresh=True)
                time.sleep(interval)
                _poll(sources, png)
        except KeyboardInterrupt:
            pass


def _poll(sources: Sequence[Source], png: Path | None) -> None:
    news = [source.poll() for source in sources]
    if png is None or not any(news):
        return
    from verl_cov.watch.figure import plot  # matplotlib: a second that only a picture is worth

    plot({source.name: source.run for source in sources if source.run is not None}, png)


def _board(sources: Sequence[Source], width: int):
    return board({source.name: source.run for source in sources}, width)
