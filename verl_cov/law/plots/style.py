"""How all figures look: colours, fonts, axes, and how they become PNG files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TypedDict

from matplotlib import RcParams, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito's palette, safe for colour-blind readers; the markers tell the runs apart in grey.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TEXT = RcParams(
    {
        "font.family": "sans-serif",
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.labelsize": 11,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "legend.fontsize": 9.5,
    }
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DEMO_RUNS = ("vanilla", "clip_cov", "kl_cov")
_GREY = "#5a5a5a"


class Look(TypedDict):
    color: str
    marker: str


class LegendLook(TypedDict):
    fontsize: float
    framealpha: float
    edgecolor: str


LEGEND: LegendLook = {"fontsize": 8.5, "framealpha": 0.85, "edgecolor": "none"}  # see-through: points may lie below it


def look(runs: Iterable[str], name: str) -> Look:
    """Colour and marker of one of the runs. The demo's three runs keep theirs, whether or not the others are there."""
    order = [*_DEMO_RUNS, *(other for other in runs if other not in _DEMO_RUNS)]
    index = order.index(name)
    return {"color": PALETTE[index % len(PALETTE)], "marker": _MARKERS[index % len(_MARKERS)]}


def dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Title, labels and the quiet grid that all panels share."""
    axes.set_title(title, loc="left", fontweight="bold", pad=8)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(color=_GREY)
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def say_empty(axes: Axes, text: str) -> None:
    """Write into a panel why it has no data."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_GREY, fontsize=10.5)
    axes.set_xticks([])
    axes.set_yticks([])


def by_step(axes: Axes) -> None:
    """Whole training steps on the x axis."""
    low, high = axes.dataLim.intervalx
    if low == high:  # for one step matplotlib would draw an axis from 0.95 to 1.05
        axes.set_xlim(low - 1, high + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def from_zero(axes: Axes) -> None:
    """Start the y axis at zero, as a cut axis exaggerates. With values below zero the axis stays matplotlib's."""
    low, high = axes.dataLim.intervaly
    if low >= 0:
        axes.set_ylim(0, 1.06 * high if high > 0 else 1)


def is_log(low: float, high: float) -> bool:
    """Whether entropies from `low` to `high` need a logarithmic axis; in a narrow range linear ticks are better."""
    return low > 0 and high / low > 5


def entropy_axis(axes: Axes, low: float, high: float) -> None:
    """Entropy from high on the left to low on the right, as in the paper: training goes to the right."""
    if is_log(low, high):
        axes.set_xscale("log")
        axes.set_xlim(high * 1.1, low / 1.1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ticks = [m * 10.0**e for e in range(-6, 3) for m in (1, 2, 5) if low / 1.1 <= m * 10.0**e <= high * 1.1]
        axes.set_xticks(ticks)
        axes.minorticks_off()
    else:
        margin = 0.05 * (high - low) or max(0.05 * high, 0.05)
        axes.set_xlim(high + margin, low - margin)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))


def literal(name: str) -> str:
    """A run's name as matplotlib shows it unchanged: without the escape a $ would start mathematics."""
    return name.replace("$", r"\$")


def save(figure: Figure, path: str | PathLike[str], dpi: int) -> Path:
    """Write the figure as a PNG file."""
    FigureCanvasAgg(figure)  # without pyplot: no global state, and the user's interactive backend stays as it is
    figure.savefig(path, dpi=dpi, facecolor="white")
    return Path(path)


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    FigureCanvasAgg(figure)
    with io.BytesIO() as file, rc_context(TEXT), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the font may lack a character of a run's name
        figure.savefig(file, dpi=130, facecolor="white", format="png")
        return file.getvalue()
