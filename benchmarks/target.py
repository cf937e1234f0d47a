"""``python -m benchmarks.target [--seeds 1000]``: how well each rule holds an entropy, on a simulated policy.

The policy is the one that a run of the demo showed: a rollout's updates change ln H in proportion to ln(knob / HOLDS),
between two limits. ``--fit RUN.jsonl`` prints these numbers for a logged run, ``--runs FOLDER`` the table of
``recipes/sweep.sh target``. The controller is the one that runs use. Prints Markdown tables. One core, no verl.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from verl_cov.core.metric_table import PREFIX
from verl_cov.core.target.controller import TargetState, resumed, update
from verl_cov.core.target.settings import BAND, Knob, TargetSettings
from verl_cov.law.readers import AVERAGE_KEY, Run, read_metrics

ROLLOUTS = 120
JUMP = 60  # rollout at which the data change, in the case that they do
SETTLED = 15  # rollouts after which the error counts
MIDDLE = 0.6  # nats; the experiment's middle target
LATE = 40  # last rollouts, in which a limit cycle is looked for


@dataclass(frozen=True)
class Plant:
    """How the entropy of a policy answers to a knob.

    slope: change of ln H, a rollout, by ln knob. holds: the knob at which ln H stays. fall, lift: limits of the change.
    wander: standard deviation of what else changes ln H. noise: standard deviation of the measurement, relative. dead:
    rollouts until a knob acts. jump: what is added to the change from `JUMP` on.
    """

    start: float = 1.1
    slope: float = 0.05
    holds: float = 50.0
    fall: float = 0.38
    lift: float = 0.15
    wander: float = 0.05
    noise: float = 0.058
    dead: int = 0
    jump: float = 0.0


DEMO = Plant()
CASES = {
    "as the demo": DEMO,
    "knob 10 times as strong": replace(DEMO, holds=5.0),
    "knob 10 times as weak": replace(DEMO, holds=500.0),
    "gain of the loop 10 times as high": replace(DEMO, slope=0.5),
    "gain of the loop a tenth": replace(DEMO, slope=0.005, wander=0.005),
    "noise doubled": replace(DEMO, noise=0.116),
    "dead time of two rollouts": replace(DEMO, dead=2),
    "jump of the data: falls faster": replace(DEMO, jump=-0.06),
    "jump of the data: falls slower": replace(DEMO, jump=0.06),
}
RULES = {
    "pi": TargetSettings(target_entropy=0.5),
    "double_half": TargetSettings(target_entropy=0.5, rule="double_half"),
    "delta": TargetSettings(target_entropy=0.5, rule="delta"),
}


def simulate(plant: Plant, settings: TargetSettings | None, seed: int, forward: bool = False) -> np.ndarray:
    """[ROLLOUTS] the policy's entropy in nats, without the noise of the measurement. settings: None for a fixed knob.

    forward: also move the knob with the change that Theorem 1 predicts, here with the noise of one measurement and a
    step size and slope that are known, which is more than a run has.
    """
    rng = np.random.default_rng(seed)
    wander, noise, error = rng.normal(size=(3, ROLLOUTS))
    knob = Knob("knob", 10.0, 0.1, 1000.0, 20.0)
    state = resumed(settings, knob, TargetState())[0] if settings else TargetState()
    log_entropy, past, entropies = math.log(plant.start), [knob.start] * plant.dead, np.empty(ROLLOUTS)
    first = plant.slope * math.log(knob.start / plant.holds)
    for rollout in range(ROLLOUTS):
        entropies[rollout] = math.exp(log_entropy)
        extra = plant.jump if rollout >= JUMP else 0.0
        value = knob.start
        if settings is not None:
            measured = entropies[rollout] * (1 + plant.noise * noise[rollout])
            step = update(settings, knob, state, max(measured, 1e-3), plant.noise * entropies[rollout])
            state, value = step.state, step.knob
        if forward:
            # What the updates would do with the first knob, as far as the theorem sees it.
            predicted = plant.slope * math.log(knob.start / plant.holds) + extra + plant.noise * error[rollout]
            value = min(max(value * math.exp((first - predicted) / plant.slope), knob.low), knob.high)
        past.append(value)
        change = plant.slope * math.log(past.pop(0) / plant.holds) + extra
        log_entropy += min(max(change, -plant.fall), plant.lift) + plant.wander * wander[rollout]
    return entropies


def arrival(entropies: np.ndarray, target: float, start: int = 0) -> int:
    """Rollouts from `start` until the mean of five rollouts is within the band for the first time."""
    means = np.convolve(entropies[start:], np.ones(5) / 5, mode="valid")
    inside = np.abs(means - target) <= BAND * target
    return int(np.argmax(inside)) if inside.any() else inside.size


def cycles(entropies: np.ndarray, target: float) -> bool:
    """True if it goes from beyond one end of the band to beyond the other at least five times in the last rollouts."""
    late = np.log(entropies[-LATE:] / target)
    sides = np.sign(late)[np.abs(late) > math.log1p(BAND)]
    return bool(np.count_nonzero(np.diff(sides)) >= 5)


def robustness(seeds: int, target: float = 0.5) -> list[str]:
    """The rows of the table: each case and rule."""
    rows = [
        "| the policy | rule | there after | 9 of 10 runs by | error from rollout 15 on | limit cycle |",
        "|---|---|---|---|---|---|",
    ]
    for case, plant in CASES.items():
        start = JUMP if plant.jump else 0
        for rule, settings in RULES.items():
            runs = [simulate(plant, settings, seed) for seed in range(seeds)]
            there = [arrival(run, target, start) for run in runs]
            errors = [np.abs(run[start + SETTLED :] / target - 1).mean() for run in runs]
            cycling = np.mean([cycles(run, target) for run in runs])
            rows.append(
                f"| {case} | `{rule}` | {np.median(there):.0f} | {np.quantile(there, 0.9):.0f} | "
                f"{100 * np.median(errors):.1f} % | {100 * cycling:.1f} % |"
            )
    return rows


def feed_forward(seeds: int, target: float = 0.5) -> list[str]:
    """The rows of the table: `pi` with and without the predicted change."""
    rows = [
        "| the policy | `pi` is there after | its error | with the prediction | its error |",
        "|---|---|---|---|---|",
    ]
    for case, plant in CASES.items():
        start, cells = JUMP if plant.jump else 0, []
        for forward in (False, True):
            runs = [simulate(plant, RULES["pi"], seed, forward) for seed in range(seeds)]
            there = np.median([arrival(run, target, start) for run in runs])
            error = np.median([np.abs(run[start + SETTLED :] / target - 1).mean() for run in runs])
            cells.append(f"{there:.0f} | {100 * error:.1f} %")
        rows.append(f"| {case} | {' | '.join(cells)} |")
    return rows


def fit(path: Path) -> str:
    """What a logged run with a target says of slope and holds, by least squares, and the noise of its measurement."""
    records = [json.loads(line)["data"] for line in path.read_text().splitlines()]
    keys = [PREFIX + key for key in ("entropy", "knob", "entropy_error")]
    entropy, knob, error = np.array([[each[key] for key in keys] for each in records if keys[1] in each]).T
    change, log_knob = np.diff(np.log(entropy)), np.log(knob[:-1])
    slope, level = np.polyfit(log_knob, change, 1)
    rest = change - slope * log_knob - level
    return (
        f"{change.size} rollouts: slope {slope:.3f}, holds at {math.exp(-level / slope):.3g}, the rest of a change "
        f"{rest.std(ddof=2):.3f}, of which the measurement {np.sqrt(2) * np.mean(error / entropy):.3f}; largest fall "
        f"{-change.min():.2f}"
    )


def of_runs(folder: Path) -> list[str]:
    """The rows of the table of `SEEDS=... recipes/sweep.sh target`: means over the seeds, with standard errors."""
    rows = [
        "| run | seeds | error from rollout 15 on | signed | there after | swings | last score |",
        "|---|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(each.name.rpartition("-seed")[0] for each in sorted(folder.glob("target-*-seed*"))))
    for name in names:
        runs = [read_metrics(each) for each in sorted(folder.glob(f"{name}-seed*"))]
        numbers = np.array([_of_run(run) for run in runs])
        mean, error = numbers.mean(axis=0), numbers.std(axis=0, ddof=1) / np.sqrt(len(runs))
        cells = [
            f"{scale * m:.{digits}f} ± {scale * e:.{digits}f}{unit}"
            for m, e, scale, digits, unit in zip(
                mean, error, (100, 100, 1, 1, 1), (1, 1, 1, 1, 3), (" %", " %", "", "", ""), strict=True
            )
        ]
        rows.append(f"| {name.removeprefix('target-')} | {len(runs)} | {' | '.join(cells)} |")
    return rows


def _of_run(run: Run) -> list[float]:
    """Error, signed error, arrival, swings beyond twice the measurement's noise, last score. A run without a target is
    measured by the middle one."""
    columns = {key: run.column(PREFIX + key) for key in ("entropy", "entropy_error", "target")}
    trained = np.isfinite(columns["entropy"])
    entropy, noise, target = (column[trained] for column in columns.values())
    target = np.where(np.isfinite(target), target, MIDDLE)
    apart = entropy / target - 1
    late = apart[SETTLED:]
    far = np.sign(late)[np.abs(late) > np.maximum(BAND, 2 * (noise / target)[SETTLED:])]
    return [
        float(np.abs(late).mean()),
        float(late.mean()),
        float(arrival(entropy / target, 1.0)),
        float(np.count_nonzero(np.diff(far))),
        float(run.values(AVERAGE_KEY)[-1]),
    ]


def main(
    seeds: Annotated[int, typer.Option(help="simulated runs a cell")] = 1000,
    run: Annotated[Path | None, typer.Option("--fit", help="a run's file of metrics: print its numbers alone")] = None,
    runs: Annotated[Path | None, typer.Option(help="folder of the experiment: print its table alone")] = None,
) -> None:
    """Print the tables: target 0.5 nats from 1.1, the knob from 10 between 0.1 and 1000."""
    if run is not None:
        print(fit(run))
        return
    if runs is not None:
        print("\n".join(of_runs(runs)))
        return
    started = time.perf_counter()
    print("\n".join(robustness(seeds)))
    print()
    print("\n".join(feed_forward(seeds // 4)))
    print(f"\n{seeds} runs a cell, {seeds // 4} in the second table; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    typer.run(main)
