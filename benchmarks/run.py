"""``python -m benchmarks.run [--largest 1e8]``: measures and writes docs/benchmarks.md."""

from __future__ import annotations

import datetime
import os
import platform
import tempfile
from pathlib import Path
from typing import Annotated

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import typer
from rich.console import Console

from benchmarks import cpu_step, engine, loss, selection, training
from verl_cov.selftest.batches import save_untrained_model

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
console = Console()


def main(
    largest: Annotated[float, typer.Option(help="tokens of the largest selection; 1e8 takes 5 GB")] = 1e8,
    only: Annotated[str, typer.Option(help="one section alone, printed and not written")] = "",
) -> None:
    """Measure, print each table as it is done, and write them to docs/benchmarks.md."""
    with tempfile.TemporaryDirectory() as folder:
        model = save_untrained_model(Path(folder) / "model")
        sections = {
            "loss": lambda: loss.measure(),
            "selection": lambda: selection.measure(int(largest)),
            "traffic": selection.traffic,
            "share": lambda: engine.share(model),
            "metrics": training.metrics,
            "step": cpu_step.measure,
            "scope": lambda: engine.micro_batch_scope(model),
            "forms": lambda: engine.public_forms(model),
        }
        tables = {}
        for name, measure in sections.items():
            if only and name != only:
                continue
            console.print(f"measuring: {name} ...", style="dim")
            tables[name] = measure()
            print(tables[name] + "\n", flush=True)
    if not only:
        PAGE.write_text(page(tables))
        console.print(f"written: {PAGE.relative_to(Path.cwd())}" if PAGE.is_relative_to(Path.cwd()) else str(PAGE))


def page(tables: dict[str, str]) -> str:
    """The Markdown page."""
    return f"""# Benchmarks

Written by `make bench` on {datetime.date.today()}: {_machine()}. Contestants take turns;
ratios are medians over the rounds of the time in one round by the other's in the same round. No GPU has been measured.

## The losses

Forward and backward, clip range [0, 2]. Ours are handed the mini-batch's selection; what that costs is below.

{tables["loss"]}

## The selection

One rank, KL-Cov and Clip-Cov (band 1 to 5, one token in ten). "One read" sums log-probs, advantages and mask, the
fastest that torch can look at every token once; "the covariance alone" is Eq. 10 as Listing 1 of the paper writes it;
`topk` is that and `torch.topk`, which is right on one rank only.

{tables["selection"]}

## Traffic

Bytes counted where they enter the collectives, of which a selection makes five to thirteen. Not in it: 24 bytes a
sequence of the mini-batch, gathered when a hash has to decide.

{tables["traffic"]}

## Share of an optimizer step

verl's FSDP2 engine on one CPU process, {engine.SEQUENCES} sequences of {engine.PROMPT} + {engine.RESPONSE} tokens in
micro-batches of 8. The models are tiny: with a model worth training the share is smaller by orders of magnitude.
`current` includes its forward. What `full` computes once a rollout counts whole here, as each rollout is one step.

{tables["share"]}

## The metrics

The demo's training (0.2 M parameters, 8 updates a rollout of 1,000 tokens) on one CPU process: about the smallest
update there is, so the largest share. vLLM stands still meanwhile. Per rollout: entropy, the theorems and Figure 8.

{tables["metrics"]}

## The demo's step on a CPU

The vanilla run of `make demo` with [fast rollouts and a warm start](cpu.md#fast-rollouts) and in verl's own way
(`VERL_COV_FAST_ROLLOUTS=0 VERL_COV_WARM_START=0`), run after run in turns; medians over the steps of a run and over the
runs, `ratio` of the paired ones. The start is from the launch to the first step. Seconds of CPU depend little on what
else the machine does.

{tables["step"]}

## How far off is a selection within micro-batches?

Distance of the whole gradient from the exact one, |g - exact| / |exact|, through verl's FSDP2 engine: 16 sequences,
ratio 0.05, median of five mini-batches. The exact one comes from an oracle that shares no code with the package
([tests/hooks/test_invariance.py](../tests/hooks/test_invariance.py)).

{tables["scope"]}

The same of three controls by weight ([controls.md](controls.md)): "public form" takes the weights within each
micro-batch, as their public code does (`cov_scope=micro_batch`), by old log-probs. `stare` with weights 1.5 and 0.5.

{tables["forms"]}
"""


def _machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    typer.run(main)
