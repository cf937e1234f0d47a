"""``python -m benchmarks.target [--seeds 1000]``: how well each rule holds an entropy, on a simulated policy.

The policy is the one that logged runs show: updates change ln H in proportion to ln(knob / HOLDS), where HOLDS grows
with a power of the entropy, between two limits, of which that upwards is small. ``--fit RUN.jsonl`` (several times)
finds these numbers for logged runs. The controller is the one that runs use. Prints Markdown tables. One core, no verl.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.optimize import least_squares

from verl_cov.core.metric_table import PREFIX
from verl_cov.core.target.controller import TargetState, resumed, update
from verl_cov.core.target.settings import BAND, Knob, TargetSettings
from verl_cov.law.readers import read_metrics
from verl_cov.study.statistics import SETTLED, first_within

ROLLOUTS = 120
JUMP = 60  # rollout at which the data change, in the case that they do
HALF = 0.55  # nats, about half of the demo's first entropy
LATE = 40  # last rollouts, in which a limit cycle is looked for


@dataclass(frozen=True)
class Plant:
    """How the entropy of a policy answers to a knob.

    slope: change of ln H, a rollout, by ln knob. holds: the knob at which ln H stays where H is `HALF` nats; power: by
    which it grows with H. fall, lift: limits of the change. wander: standard deviation of what else changes ln H.
    noise: standard deviation of the measurement, relative. dead: rollouts until a knob acts. jump: what is added to the
    change from `JUMP` on.
    """

    start: float = 1.18
    slope: float = 0.031
    holds: float = 15.0
    power: float = 3.5
    fall: float = 0.38
    lift: float = 0.003
    wander: float = 0.02
    noise: float = 0.058
    dead: int = 0
    jump: float = 0.0

    def change(self, log_entropy: float, log_knob: float, extra: float = 0.0) -> float:
        """By how much ln H changes in a rollout, but for what wanders; extra: what the data add."""
        holds = math.log(self.holds) + self.power * (log_entropy - math.log(HALF))
        return min(max(self.slope * (log_knob - holds) + extra, -self.fall), self.lift)


DEMO = Plant()
CASES = {
    "as the demo": DEMO,
    "knob 10 times as strong": replace(DEMO, holds=1.5),
    "knob 10 times as weak": replace(DEMO, holds=150.0),
    "gain of the loop 10 times as high": replace(DEMO, slope=0.31),
    "gain of the loop a tenth": replace(DEMO, slope=0.0031, wander=0.005),
    "the knob lifts as quickly as it lowers": replace(DEMO, lift=0.38),
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
    for rollout in range(ROLLOUTS):
        entropies[rollout] = math.exp(log_entropy)
        extra = plant.jump if rollout >= JUMP else 0.0
        value = knob.start
        if settings is not None:
            measured = entropies[rollout] * (1 + plant.noise * noise[rollout])
            step = update(settings, knob, state, max(measured, 1e-3), plant.noise * entropies[rollout])
            state, value = step.state, step.knob
        if forward:
            # What else than the knob changes the entropy, as far as the theorem sees it.
            seen = extra + plant.noise * error[rollout]
            value = min(max(value * math.exp(-seen / plant.slope), knob.low), knob.high)
        past.append(value)
        log_entropy += plant.change(log_entropy, math.log(past.pop(0)), extra) + plant.wander * wander[rollout]
    return entropies


def arrival(entropies: np.ndarray, target: float, start: int = 0) -> int:
    """Rollouts from `start` before the first five whose mean is within the band."""
    return first_within(entropies[start:] / target - 1)


def cycles(entropies: np.ndarray, target: float) -> bool:
    """True if it goes from beyond one end of the band to beyond the other at least five times in the last rollouts."""
    late = np.log(entropies[-LATE:] / target)
    sides = np.sign(late)[np.abs(late) > math.log1p(BAND)]
    return bool(np.count_nonzero(np.diff(sides)) >= 5)


def robustness(seeds: int, target: float = 0.5) -> list[str]:
    """The rows of the table: each case and rule."""
    rows = [
        "| the policy | rule | there after | 9 of 10 runs by | error after 15 rollouts | limit cycle |",
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


def fit(paths: list[Path]) -> str:
    """What logged runs with a target say of slope, holds, power and lift.

    By least squares of whole runs, each simulated from its first entropy with the knobs that it had, so that the noise
    of a measurement does not bias them.
    """
    runs = []
    for path in paths:
        run = read_metrics([path])
        entropy, knob = (run.column(PREFIX + key) for key in ("entropy", "knob"))
        there = np.isfinite(entropy) & np.isfinite(knob)
        runs.append((np.log(entropy[there]), np.log(knob[there])))

    def apart(numbers: np.ndarray) -> np.ndarray:
        slope, log_holds, power, lift = numbers
        plant, rest = replace(DEMO, slope=slope, holds=math.exp(log_holds), power=power, lift=lift), []
        for log_entropy, log_knob in runs:
            at = log_entropy[0]
            for measured, moved in zip(log_entropy, log_knob, strict=True):
                rest.append(at - measured)
                at += plant.change(at, moved)
        return np.array(rest)

    start = np.array([DEMO.slope, math.log(DEMO.holds), DEMO.power, DEMO.lift])
    found = least_squares(apart, start, bounds=([0, -10, 0, 0], [1, 10, 20, 1]), diff_step=1e-3)
    slope, log_holds, power, lift = found.x
    return (
        f"{len(runs)} runs, {found.fun.size} rollouts: slope {slope:.3f}, holds at {math.exp(log_holds):.3g}, power "
        f"{power:.2f}, lift {lift:.3f}; the rest of ln H {found.fun.std():.3f}"
    )


def main(
    seeds: Annotated[int, typer.Option(help="simulated runs a cell")] = 1000,
    runs: Annotated[
        list[Path] | None, typer.Option("--fit", help="a run's file of metrics: print numbers alone")
    ] = None,
) -> None:
    """Print the tables: target 0.5 nats from 1.18, the knob from 10 between 0.1 and 1000."""
    if runs:
        print(fit(runs))
        return
    started = time.perf_counter()
    print("\n".join(robustness(seeds)))
    print()
    print("\n".join(feed_forward(seeds // 4)))
    print(f"\n{seeds} runs a cell, {seeds // 4} in the second table; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    typer.run(main)
