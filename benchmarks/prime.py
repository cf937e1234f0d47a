"""Draws docs/prime.png: PRIME, RLOO and GRPO on the toy task, from the folders of runs.

    python -m benchmarks.prime RUNS [-o docs/prime.png]

RUNS holds what docs/prime.md says how to train; a run that is not there is left out.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from verl_cov.law import read_metrics
from verl_cov.law.plots import PALETTE, TEXT, law_points
from verl_cov.law.readers import Run

NAMES = {
    "tiny-grpo-none-toy": "GRPO",
    "tiny-rloo-none-toy": "RLOO",
    "tiny-prime-none-toy": "PRIME",
    "tiny-prime-clip_cov-toy": "PRIME, Clip-Cov",
    "tiny-prime-kl_cov-toy": "PRIME, KL-Cov",
}
MARKERS = "os^Dv"
SCORE = "val-cov/acc/sample_weighted"


def draw(runs: dict[str, Run]) -> Figure:
    """Score and entropy against rollout steps, score against entropy, the PRM's loss."""
    with rc_context(TEXT):
        figure = Figure(figsize=(12, 8), layout="constrained")
        FigureCanvasAgg(figure)
        (scores, entropies), (law, losses) = figure.subplots(2, 2)
        for at, (folder, name) in enumerate(NAMES.items()):
            if folder not in runs:
                continue
            run, style = runs[folder], {"color": PALETTE[at], "label": name}
            for axes, key in ((scores, SCORE), (entropies, "actor/entropy")):
                axes.plot(run.steps, run.column(key), MARKERS[at], ms=4, ls="none", **style)
            law.plot(*law_points(run), MARKERS[at], ms=5, ls="none", **style)
            if "prime/prm_loss" in set(run.keys()):
                losses.plot(run.steps, run.column("prime/prm_loss"), "-", marker=MARKERS[at], ms=3, **style)
        losses.axhline(math.log(2), color="#5a5a5a", lw=1, ls=":")
        losses.text(0, math.log(2), " ln 2", va="bottom", color="#5a5a5a")
        for axes, x, y in (
            (scores, "rollout step", "validation accuracy"),
            (entropies, "rollout step", "entropy, nats per token"),
            (law, "entropy, nats per token", "validation accuracy"),
            (losses, "rollout step", "the PRM's loss, before it learns"),
        ):
            axes.set(xlabel=x, ylabel=y)
            axes.grid(alpha=0.25)
            axes.legend(frameon=False)
        return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prime", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/prime.png"))
    options = parser.parse_args()
    logs = {name: sorted((options.runs / name).glob("*.jsonl")) for name in NAMES}
    logs = {name: [log for log in found if log.stem.isdigit()] for name, found in logs.items()}
    draw({name: read_metrics(found) for name, found in logs.items() if found}).savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
