"""``python -m benchmarks.run [--only SECTION]``: measures, keeps tables in docs/benchmarks.json, writes the page."""

from __future__ import annotations

import datetime
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import typer
from rich.console import Console

from benchmarks import cpu_step, engine, loss, selection, training
from verl_cov.selftest.batches import save_untrained_model

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
TABLES = PAGE.with_suffix(".json")
console = Console()

HEAD = """# Benchmarks

Written by `make bench`, one table alone by `python -m benchmarks.run --only SECTION`; below each stands when, and how
busy the machine was. Contestants take turns; ratios are medians over the rounds of the time in one round by the other's
in the same round. **No GPU has been measured.**
"""


class Section(NamedTuple):
    """A table of the page. measure: of an untrained model's folder."""

    title: str
    text: str
    measure: Callable[[Path], str]


SECTIONS = {
    "loss": Section(
        "The losses",
        """Forward and backward, clip range [0, 2]. Ours are handed the mini-batch's selection; what that costs is
below. A control by weight is no loss of its own: it costs what it does once a mini-batch, below.""",
        lambda model: loss.measure(),
    ),
    "selection": Section(
        "The selection",
        """One rank, KL-Cov and Clip-Cov (band 1 to 5, one token in ten). "One read" sums log-probs, advantages and
mask, the fastest that torch can look at every token once; "the covariance alone" is Eq. 10 as Listing 1 of the paper
writes it; `topk` is that and `torch.topk`, which is right on one rank only.""",
        lambda model: selection.measure(),
    ),
    "traffic": Section(
        "Traffic",
        """Bytes counted where they enter the collectives, of which a selection makes five to thirteen. Not in it: 24
bytes a sequence of the mini-batch, gathered when a hash has to decide.""",
        lambda model: selection.traffic(),
    ),
    "share": Section(
        "Share of an optimizer step",
        f"""verl's FSDP2 engine on one CPU process, {engine.SEQUENCES} sequences of {engine.PROMPT} + {engine.RESPONSE}
tokens in micro-batches of 8. The models are tiny: with a model worth training the share is smaller by orders of
magnitude. `current` includes its forward. What `full` computes once a rollout counts whole here, as each rollout is
one step.""",
        lambda model: engine.share(),
    ),
    "metrics": Section(
        "The metrics",
        """The demo's training (0.2 M parameters, 8 updates a rollout of 1,000 tokens) on one CPU process: about the
smallest update there is, so the largest share. vLLM stands still meanwhile. Per rollout: entropy, the theorems and
Figure 8.""",
        lambda model: training.metrics(),
    ),
    "step": Section(
        "The demo's step on a CPU",
        """The vanilla run of `make demo` with [fast rollouts and a warm start](cpu.md#fast-rollouts) and in verl's own
way (`VERL_COV_FAST_ROLLOUTS=0 VERL_COV_WARM_START=0`), run after run in turns; medians over the steps of a run and over
the runs, `ratio` of the paired ones. The start is from the launch to the first step. Seconds of CPU depend little on
what else the machine does.""",
        lambda model: cpu_step.measure(),
    ),
    "scope": Section(
        "How far off is a selection within micro-batches?",
        """Distance of the whole gradient from the exact one, |g - exact| / |exact|, through verl's FSDP2 engine: 16
sequences, ratio 0.05, median of five mini-batches. The exact one comes from an oracle that shares no code with the
package ([tests/hooks/test_invariance.py](../tests/hooks/test_invariance.py)).""",
        engine.micro_batch_scope,
    ),
    "forms": Section(
        "How far off are the public forms of the controls by weight?",
        """The same distance for three [controls by weight](controls.md): "public form" takes the weights within each
micro-batch, as their public code does (`cov_scope=micro_batch`), by old log-probs. `stare` with weights 1.5 and 0.5.
The exact one comes from [tests/hooks/test_weights.py](../tests/hooks/test_weights.py).""",
        engine.public_forms,
    ),
}


def main(
    only: Annotated[str, typer.Option(help=f"one section alone: {', '.join(SECTIONS)}")] = "",
) -> None:
    """Measure, print each table as it is done, and write docs/benchmarks.md; sections not measured stay as they are."""
    if only and only not in SECTIONS:
        raise typer.BadParameter(f"there is no section {only}: there are {', '.join(SECTIONS)}", param_hint="--only")
    tables = json.loads(TABLES.read_text())
    with tempfile.TemporaryDirectory() as folder:
        model = save_untrained_model(Path(folder) / "model")
        for name in [only] if only else SECTIONS:
            console.print(f"measuring: {name} ...", style="dim")
            load = [os.getloadavg()[1]]
            table = SECTIONS[name].measure(model)
            load.append(os.getloadavg()[1])
            tables[name] = {"table": table, "measured": f"{datetime.date.today()}, {_machine()}, {_busy(load)}"}
            print(table + "\n", flush=True)
            TABLES.write_text(json.dumps(tables, indent=1) + "\n")
            PAGE.write_text(page(tables))


def page(tables: dict[str, dict[str, str]]) -> str:
    """The Markdown page of the tables that were measured."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        if name in tables:
            parts += [f"## {section.title}\n", section.text + "\n", tables[name]["table"] + "\n"]
            parts += [f"`{name}`: {tables[name]['measured']}.\n"]
    return "\n".join(parts)


def _busy(load: list[float]) -> str:
    return f"load before and after {load[0]:.1f} and {load[1]:.1f}"


def _machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    typer.run(main)
