"""The loop of `verl-cov watch`: read new records, draw, wait."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from verl_cov.law import files
from verl_cov.law.watch.board import board
from verl_cov.law.watch.sources import Source, find


def watch(
    runs: Sequence[Path], labels: Sequence[tuple[str, Path]], interval: float, once: bool, picture: Path | None
) -> None:
    """Show the runs until Ctrl-C, or only once if ``once`` is set or the output is no terminal.

    interval: seconds between updates. png: a picture to draw as well.

    Raises FileNotFoundError: an argument holds no run; ValueError: ``png`` cannot be written.
    """
    sources = find(runs, labels)
    if picture is not None:
        files.check_output(picture, files.PICTURES, runs)
    console = Console(highlight=False)
    _poll(sources, picture)
    if not once and console.is_terminal:
        _follow(console, runs, sources, interval, picture)
    console.print(_board(sources, console.width))
    if picture is not None:
        console.print(f"written: {picture}", markup=False)


def _follow(
    console: Console, runs: Sequence[Path], sources: list[Source], interval: float, picture: Path | None
) -> None:
    # On the terminal's alternate screen, cropped to its height, as a taller board could not be overwritten. The caller
    # prints the last board at the end.
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as view:
        try:
            shown = None
            while True:
                if _poll(sources, picture) or shown != console.size:
                    view.update(_board(sources, console.width), refresh=True)
                    shown = console.size
                time.sleep(interval)
                sources[:] = _with_new(runs, sources)
        except KeyboardInterrupt:
            pass


def _with_new(runs: Sequence[Path], sources: Sequence[Source]) -> list[Source]:
    """The runs that exist now; those known before keep what was read of them."""
    try:
        current = find(runs)
    except OSError:
        return list(sources)
    known = {tuple(source.paths): source for source in sources}
    for source in current:
        known.setdefault(tuple(source.paths), source).name = source.name
    return [known[tuple(source.paths)] for source in current]


def _poll(sources: Sequence[Source], picture: Path | None) -> bool:
    """Read new records and redraw the picture. Returns whether there were any."""
    news = [source.poll() for source in sources]
    if picture is None or not any(news):
        return any(news)
    from verl_cov.law.watch.figure import plot  # here, as only a picture is worth loading matplotlib

    plot({source.name: source.run for source in sources if source.run is not None}, picture)
    return True


def _board(sources: Sequence[Source], width: int):
    return board({source.name: source.run for source in sources}, width)
