"""``python -m benchmarks.target [--seeds 1000]``: how well each rule holds an entropy, on a simulated policy.

The policy's entropy falls by a share at each rollout, and the knob lifts it by a power of itself, up to a limit. The
controller is the one that runs use. Prints Markdown tables. One core, no network, no verl.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import typer

from verl_cov.core.target.controller import TargetState, resumed, update
from verl_cov.core.target.settings import BAND, Knob, TargetSettings

ROLLOUTS = 120
JUMP = 60  # rollout at which the data change, in the case that they do
LATE = 40  # last rollouts, in which a limit cycle is looked for


@dataclass(frozen=True)
class Plant:
    """How the entropy of a policy answers.

    fall: of ln H, a rollout, without control. power: the knob lifts ln H by fall (knob / holds)^power, a rollout, up to
    `lift`. wander: standard deviation of what else moves ln H. noise: standard deviation of the measurement, relative.
    dead: rollouts until a knob acts. jump: factor by which fall changes at `JUMP`.
    """

    start: float = 1.1
    fall: float = 0.077
    holds: float = 22.0
    power: float = 1.0
    lift: float = 0.3
    wander: float = 0.03
    noise: float = 0.05
    dead: int = 0
    jump: float = 1.0


# The demo's: vanilla falls from 1.14 to 0.18 nats in 24 rollouts, and KL-Cov at coefficient 10 to 0.42
# (docs/metrics.md).
DEMO = Plant()
CASES = {
    "as the demo": DEMO,
    "knob 10 times as strong": replace(DEMO, holds=2.2),
    "knob 10 times as weak": replace(DEMO, holds=220.0),
    "loop 10 times as strong": replace(DEMO, power=10.0, lift=0.77),
    "loop 10 times as weak": replace(DEMO, fall=0.0077, wander=0.003),
    "noise doubled": replace(DEMO, noise=0.1),
    "dead time of two rollouts": replace(DEMO, dead=2),
    "jump: falls three times as fast": replace(DEMO, jump=3.0),
    "jump: falls a third as fast": replace(DEMO, jump=1 / 3),
    "dead time, and knob 10 times as strong": replace(DEMO, dead=2, holds=2.2),
}
RULES = {
    "pi": TargetSettings(target_entropy=0.5),
    "double_half": TargetSettings(target_entropy=0.5, rule="double_half"),
    "delta": TargetSettings(target_entropy=0.5, rule="delta"),
}


def simulate(plant: Plant, settings: TargetSettings | None, seed: int, forward: bool = False) -> np.ndarray:
    """[ROLLOUTS] the policy's entropy in nats, without the noise of the measurement. settings: None for a fixed knob.

    forward: also move the knob with the fall that Theorem 1 predicts, here as well as it did in the demo (correlation
    0.8 with what happens).
    """
    rng = np.random.default_rng(seed)
    wander, noise, error = rng.normal(size=(3, ROLLOUTS))
    knob = Knob("knob", 10.0, 0.1, 1000.0, 20.0)
    state = resumed(settings, knob, TargetState())[0] if settings else TargetState()
    log_entropy, past, entropies, first = math.log(plant.start), [knob.start] * plant.dead, np.empty(ROLLOUTS), 0.0
    for rollout in range(ROLLOUTS):
        entropies[rollout] = math.exp(log_entropy)
        fall = plant.fall * (plant.jump if rollout >= JUMP else 1.0)
        value = knob.start
        if settings is not None:
            measured = entropies[rollout] * (1 + plant.noise * noise[rollout])
            step = update(settings, knob, state, max(measured, 1e-3), plant.noise * entropies[rollout])
            state, value = step.state, step.knob
        if forward:
            predicted = max(fall * (1 + 0.6 * error[rollout]), fall / 10)
            first = first or predicted
            value = min(max(value * predicted / first, knob.low), knob.high)
        past.append(value)
        lift = min(fall * (past.pop(0) / plant.holds) ** plant.power, plant.lift)
        log_entropy += lift - fall + plant.wander * wander[rollout]
    return entropies


def settling(entropies: np.ndarray, target: float, start: int = 0) -> int:
    """Rollouts from `start` until the mean of five rollouts is within the band and has left it for no more than one
    rollout in ten since."""
    means = np.convolve(entropies[start:], np.ones(5) / 5, mode="valid")
    out = np.abs(means - target) > BAND * target
    allowed = np.cumsum(out[::-1])[::-1] <= 0.1 * np.arange(out.size, 0, -1)
    held = allowed & ~out
    return int(np.argmax(held)) if held.any() else out.size


def cycles(entropies: np.ndarray, target: float) -> bool:
    """True if it goes from beyond one end of the band to beyond the other at least five times in the last rollouts."""
    late = np.log(entropies[-LATE:] / target)
    sides = np.sign(late)[np.abs(late) > math.log1p(BAND)]
    return bool(np.count_nonzero(np.diff(sides)) >= 5)


def robustness(seeds: int, target: float = 0.5) -> list[str]:
    """The rows of the table: for each case and rule the settling, the error afterwards, the share that cycles."""
    rows = [
        "| the policy | rule | settles after | 90 % by | error afterwards | limit cycle |",
        "|---|---|---|---|---|---|",
    ]
    for case, plant in CASES.items():
        start = JUMP if plant.jump != 1 else 0
        for rule, settings in RULES.items():
            runs = [simulate(plant, settings, seed) for seed in range(seeds)]
            settled = np.array([settling(run, target, start) for run in runs])
            errors = [np.abs(run[start + int(at) :] / target - 1).mean() for run, at in zip(runs, settled, strict=True)]
            cycling = 100 * np.mean([cycles(run, target) for run in runs])
            rows.append(
                f"| {case} | `{rule}` | {np.median(settled):.0f} | {np.quantile(settled, 0.9):.0f} | "
                f"{100 * np.median(errors):.1f} % | {cycling:.1f} % |"
            )
    return rows


def feed_forward(seeds: int, target: float = 0.5) -> list[str]:
    """The rows of the table: settling with and without the predicted fall."""
    rows = ["| the policy | `pi` settles after | with the prediction |", "|---|---|---|"]
    for case, plant in CASES.items():
        start = JUMP if plant.jump != 1 else 0
        medians = [
            np.median([settling(simulate(plant, RULES["pi"], seed, forward), target, start) for seed in range(seeds)])
            for forward in (False, True)
        ]
        rows.append(f"| {case} | {medians[0]:.0f} | {medians[1]:.0f} |")
    return rows


def main(seeds: Annotated[int, typer.Option(help="simulated runs a cell")] = 1000) -> None:
    """Print the tables: target 0.5 nats from 1.1, the knob from 10 between 0.1 and 1000."""
    started = time.perf_counter()
    print("\n".join(robustness(seeds)))
    print()
    print("\n".join(feed_forward(seeds // 4)))
    print(f"\n{seeds} runs a cell, {seeds // 4} in the second table; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    typer.run(main)
