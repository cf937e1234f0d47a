"""How all figures look: colours, fonts, axes, legends, and how they become files."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TypedDict

import numpy as np
from matplotlib import RcParams, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from verl_cov.core.metric_table import PREFIX
from verl_cov.core.target.settings import BAND
from verl_cov.law.display import shortened
from verl_cov.law.readers import Run

# Okabe and Ito's palette and one more, safe for colour-blind readers; the markers tell the runs apart in grey.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
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
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "h", "d", "8")
_DEMO_RUNS = ("vanilla", "clip_cov", "kl_cov", "target")
_GREY = "#5a5a5a"


class Look(TypedDict):
    color: str
    marker: str


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Colour and marker of each run, all different (up to 104 runs), in whatever order and picture.

    A run keeps its look when others come or go, as the name decides: the demo's runs have theirs, any other name
    has a place in the palette. Only if that is taken does the run get another one.
    """
    distinct = sorted(set(names), key=lambda name: (name not in _DEMO_RUNS, zlib.crc32(name.encode())))
    places: dict[int, str] = {}
    for name in distinct:
        wanted = _DEMO_RUNS.index(name) if name in _DEMO_RUNS else zlib.crc32(name.encode()) % len(PALETTE)
        cycle = len(places) // len(PALETTE) * len(PALETTE)
        free = (cycle + (wanted + step) % len(PALETTE) for step in range(len(PALETTE)))
        places[next(place for place in free if place not in places)] = name
    # Both lengths have no common divisor, so that no two of the first 104 places share colour and marker.
    return {
        name: {"color": PALETTE[place % len(PALETTE)], "marker": _MARKERS[place % len(_MARKERS)]}
        for place, name in places.items()
    }


def legend_below(figure: Figure | SubFigure, handles: Sequence[Artist], texts: Sequence[str], title: str = "") -> None:
    """A legend below all panels, where it hides no data, in as many columns as fit."""
    lengths = [0.085 * max(map(len, text.split("\n"))) + 0.6 for text in texts]  # inches: letters, and the mark
    width = figure.bbox.width / figure.dpi
    columns = len(handles) if sum(lengths) < width else max(1, int(width / max(lengths)))
    figure.legend(handles, texts, loc="outside lower center", ncols=columns, frameon=False, title=title)


def legend_under(axes: Axes, columns: int = 2) -> None:
    """A legend below the one panel, of everything in it that has a label."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, frameon=False, fontsize=8.5)


def marks(names: Iterable[str], known: Mapping[str, Look]) -> list[Line2D]:
    """What stands for each run in a legend."""
    return [Line2D([], [], linewidth=1.5, markersize=6, markeredgecolor="white", **known[name]) for name in names]


def labels(names: Sequence[str], width: int = 44) -> list[str]:
    """The names for a legend or a title: short, and as they are, since without the escape a $ starts mathematics."""
    return [name.replace("$", r"\$") for name in shortened(names, width)]


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


def draw_target(axes: Axes, run: Run, look: Look) -> None:
    """The entropy that a run with a target should have, dashed, and the band in which it counts as held."""
    target = run.column(f"{PREFIX}target")
    steps, target = run.steps[np.isfinite(target)], target[np.isfinite(target)]
    if steps.size:
        axes.fill_between(
            steps, (1 - BAND) * target, (1 + BAND) * target, color=look["color"], alpha=0.15, linewidth=0, zorder=0.5
        )
        axes.plot(steps, target, "--", color=look["color"], linewidth=1.2, zorder=0.6)


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


def limits(values: ArrayLike, others: ArrayLike, room: float = 0.0) -> tuple[float, float]:
    """Ends of an axis for `values`, and for those of `others` that lie near: an interval may reach far outside.

    room: how far is near, if that is more than three quarters of the range of the values.
    """
    known = np.asarray(values, dtype=np.float64)
    low, high = float(known.min()), float(known.max())
    room = max(room, 0.75 * ((high - low) or abs(high) or 1.0))
    near = [float(end) for end in np.ravel(others) if low - room <= end <= high + room]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.06 * ((high - low) or abs(high) or 1.0)
    return low - margin, high + margin


def is_log(low: float, high: float) -> bool:
    """Whether entropies from `low` to `high` need a logarithmic axis; in a narrow range linear ticks are better."""
    return low > 0 and high / low > 5


def law_grid(low: float, high: float) -> NDArray[np.float64]:
    """Entropies from `low` to `high` at which a law is drawn smoothly on `entropy_axis`."""
    return np.geomspace(low, high, 400) if is_log(low, high) else np.linspace(low, high, 400)


def entropy_axis(axes: Axes, low: float, high: float) -> None:
    """Entropy from high on the left to low on the right, as in the paper: training goes to the right."""
    if is_log(low, high):
        axes.set_xscale("log")
        axes.set_xlim(high * 1.1, low / 1.1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for steps in ((1, 2, 5), (1, 3), (1,)):
            ticks = [
                step * 10.0**e for e in range(-9, 4) for step in steps if low / 1.1 <= step * 10.0**e <= high * 1.1
            ]
            if len(ticks) <= 7:
                break
        axes.set_xticks(ticks)
        axes.minorticks_off()
    else:
        margin = 0.05 * (high - low) or max(0.05 * high, 0.05)
        axes.set_xlim(high + margin, low - margin)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))


def save(figure: Figure, path: str | PathLike[str], dpi: int = 130) -> Path:
    """Write the figure to a file of one of the formats :data:`verl_cov.law.files.PICTURES`."""
    path = Path(path)
    path.write_bytes(picture(figure, path.suffix, dpi))
    return path


def picture(figure: Figure, suffix: str = ".png", dpi: int = 130) -> bytes:
    """The figure as the bytes of a file of the format `suffix`, one of :data:`verl_cov.law.files.PICTURES`. The same
    figure gives the same bytes."""
    FigureCanvasAgg(figure)  # without pyplot: no global state, and the user's interactive backend stays as it is
    form = suffix.lower().removeprefix(".")
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(form)
    fonts = {"pdf.fonttype": 42, "svg.hashsalt": "verl-cov"}  # 42: TrueType, as journals want
    with io.BytesIO() as file, rc_context(RcParams({**TEXT, **fonts})), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the font may lack a character of a run's name
        figure.savefig(file, dpi=dpi, facecolor="white", format=form, metadata=undated)
        return file.getvalue()
