"""``python -m benchmarks.law_coverage [--runs 1000]``: how often the law's 95 % intervals contain the truth.

Simulated runs: entropy falls as exp(-step / tau), the score follows the law, and AR(1) noise of 0.01 is added. Prints
Markdown tables. One core, no network, no verl.
"""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import typer
from scipy.signal import lfilter

from verl_cov.law import ahead, estimate, scale
from verl_cov.law.ar1 import regress
from verl_cov.law.series import line_of, series

A, B, NOISE = 0.211, 0.597, 0.01  # Qwen2.5-7B on math, digitised from the paper's Fig. 3; noise of 2,000 answers
TRUTH = np.array([A, B, B - A])


def simulate(
    rng: np.random.Generator, n: int, rho: float, tau: float = 0.25, start: float = 0.6, spread: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(entropy, score), each [n], of one run. tau: share of the run in which entropy falls to 1/e of `start`.
    spread: standard deviation of a between runs, relative to a."""
    entropy = 0.02 + start * np.exp(-np.arange(n) / (n - 1) / tau)
    fresh = rng.normal(0, NOISE, n)
    fresh[1:] *= np.sqrt(1 - rho**2)  # the first draw is stationary already
    return entropy, B - A * (1 + spread * rng.normal()) * np.exp(entropy) + lfilter([1], [1, -rho], fresh)


def covered(entropy: np.ndarray, score: np.ndarray, runs: list[int] | None = None) -> np.ndarray:
    """[3] whether the 95 % intervals of a, b and the ceiling contain the truth."""
    law = estimate(entropy, score, runs=runs)
    return np.array([i.low <= truth <= i.high for i, truth in zip((law.a, law.b, law.ceiling), TRUTH, strict=True)])


def covered_by_ar1(entropy: np.ndarray, score: np.ndarray, runs: list[int]) -> np.ndarray:
    """[3] as `covered`, if pooled runs are treated like one run: as if they had no differences."""
    points = series(entropy, score, None, runs)
    line = line_of(points.x)
    low, high = regress(line.design(points.x), points.score, points.gap).quantiles(line.coefficients(), 0.95)
    return (low <= TRUTH) & (high >= TRUTH)


def one_run(number: int, lengths: tuple[int, ...], rhos: tuple[float, ...], **options: float) -> dict:
    """{(n, rho): [3] coverage} over `number` simulated runs."""
    rng = np.random.default_rng(0)
    table = {}
    for n in lengths:
        for rho in rhos:
            runs = [simulate(rng, n, rho, **options) for _ in range(number)]
            table[n, rho] = np.mean([covered(*run) for run in runs], axis=0)
    return table


def other_noise(number: int, lengths: tuple[int, ...]) -> dict:
    """{(kind, n): [3] coverage} where the noise is not AR(1)."""
    rng = np.random.default_rng(3)

    def mixed(n: int) -> np.ndarray:  # a policy that drifts, measured on few problems
        drift = simulate(rng, n, 0.8)[1] - simulate(rng, n, 0.0)[1]  # holds white noise too, as strong as the drift
        return drift / np.sqrt(2)

    def remembering(n: int) -> np.ndarray:
        entropy, score = simulate(rng, n, 0.9)
        return score - B + A * np.exp(entropy)

    def counted(n: int) -> np.ndarray:  # the law's share of right answers drifts, and 500 answers are drawn
        entropy, score = simulate(rng, n, 0.9)
        return rng.binomial(500, np.clip(score, 0, 1)) / 500 - B + A * np.exp(entropy)

    kinds = {
        "AR(1) 0.9": remembering,
        "AR(1) 0.9 and 500 answers drawn": counted,
        "white and AR(1) 0.8, half each": mixed,
        "shrinking threefold": lambda n: rng.normal(0, NOISE, n) * np.geomspace(3, 1, n),
        "Student's t, 3 df": lambda n: rng.standard_t(3, n) * NOISE,
        "random walk": lambda n: np.cumsum(rng.normal(0, NOISE, n)),
    }
    entropy = {n: simulate(rng, n, 0.0)[0] for n in lengths}
    return {
        (kind, n): np.mean([covered(entropy[n], B - A * np.exp(entropy[n]) + noise(n)) for _ in range(number)], axis=0)
        for kind, noise in kinds.items()
        for n in lengths
    }


def estimators(number: int, lengths: tuple[int, ...], rhos: tuple[float, ...]) -> dict:
    """{(n, rho): [2, 3]: root mean squared error of a, b and the ceiling, by the estimate and by least squares}."""
    rng = np.random.default_rng(6)
    table = {}
    for n in lengths:
        for rho in rhos:
            laws = [estimate(*simulate(rng, n, rho)) for _ in range(number)]
            values = np.array([[(one.a, one.b, one.ceiling) for one in (law.law, law.least_squares)] for law in laws])
            table[n, rho] = np.sqrt(np.mean((values - TRUTH) ** 2, axis=0))
    return table


def several_runs(number: int, counts: tuple[int, ...], spread: float, n: int = 20, rho: float = 0.3) -> dict:
    """{runs: {errors: [3] coverage}} where each simulated set pools `runs` runs of n points."""
    rng = np.random.default_rng(1)
    table = {}
    for count in counts:
        names = [run for run in range(count) for _ in range(n)]
        sets = [[simulate(rng, n, rho, spread=spread) for _ in range(count)] for _ in range(number)]
        pooled = [(np.concatenate([h for h, _ in s]), np.concatenate([r for _, r in s])) for s in sets]
        table[count] = {
            "clustered": np.mean([covered(*points, names) for points in pooled], axis=0),
            "ar1": np.mean([covered_by_ar1(*points, names) for points in pooled], axis=0),
        }
    return table


SIZES = np.array([0.36, 1.31, 2.77, 6.53, 31.0, 70.0, 140.0])  # the paper's, billions, and two more


def one_size_more(number: int, sizes: int, seeds: int, scatter: float, seed_scatter: float = 0.01) -> dict:
    """Over sets of `seeds` runs of each of the first `sizes` sizes: "prediction", [3] whether the intervals hold a, b
    and the ceiling of a run of the next size; "slope", [2] the true slopes; "bent": the share of lines called bent.

    scatter: standard deviation of a and b between models of a size about the line; seed_scatter: between seeds.
    """
    rng = np.random.default_rng(4)
    size = np.repeat(SIZES[: sizes + 1], seeds)
    line = np.array([[0.10, 0.046], [0.33, 0.116]])  # the paper's Qwen2.5, digitised
    held, slopes, bent = [], [], []
    for _ in range(number):
        models = np.repeat(rng.normal(0, scatter, (2, sizes + 1)), seeds, axis=1)
        laws = line @ [np.ones(size.size), np.log(size)] + models + rng.normal(0, seed_scatter, models.shape)
        known, new = laws[:, :-seeds], laws[:, -1]
        scaling = scale(size[:-seeds], *known)
        law = scaling.predict(SIZES[sizes])
        truths = (new[0], new[1], new[1] - new[0])
        held.append([i.low <= truth <= i.high for i, truth in zip((law.a, law.b, law.ceiling), truths, strict=True)])
        trends = scaling.a.slope, scaling.b.slope
        slopes.append([i.low <= truth <= i.high for i, truth in zip(trends, line[:, 1], strict=True)])
        bent.append(any("bends at" in warning or "straight" in warning for warning in scaling.warnings))
    return {"prediction": np.mean(held, axis=0), "slope": np.mean(slopes, axis=0), "bent": np.mean(bent)}


def stands(number: int, n: int, share: float, rho: float, wander: float = 0.05) -> dict:
    """Coverage of the score, the entropy and the gain at the last step, forecast from the first `share` of n points,
    and the median error beside that of "no change". wander: relative AR(1) noise of the entropy (correlation 0.6)."""
    rng = np.random.default_rng(5)
    held, errors, nothing = [], [], []
    k = int(np.ceil(share * n))
    for _ in range(number):
        entropy, score = simulate(rng, n, rho)
        noise = lfilter([1], [1, -0.6], rng.normal(0, 0.8 * wander, n))
        noisy = entropy * np.exp(noise)
        score = score + A * (np.exp(entropy) - np.exp(noisy))  # the score follows the entropy that there is
        there = ahead(np.arange(k), noisy[:k], score[:k], to=n - 1)
        gain = A * (np.exp(entropy[k - 1]) - np.exp(entropy[-1]))
        pairs = (there.score, score[-1]), (there.entropy, noisy[-1]), (there.gain, gain)
        held.append([interval.low <= real <= interval.high for interval, real in pairs])
        errors.append([abs(there.score.value - score[-1]), abs(score[k - 1] - score[-1])])
        nothing.append(any("says nothing" in warning for warning in there.warnings))
    error, stays = np.median(errors, axis=0)
    return {"held": np.mean(held, axis=0), "error": error, "no change": stays, "nothing": np.mean(nothing)}


ALARMS = {  # a word of each warning about the fit
    "a holds 0": "holds 0",
    "R2": "R²",
    "ceiling reached": "already reached",
    "memory": "random walk",
    "bend": "bend away",
    "late fall": "last third",
}


def false_alarms(number: int, lengths: tuple[int, ...], rhos: tuple[float, ...]) -> dict:
    """{(n, rho): {warning: share of runs on the law that get it, "any": share that get one or more}}."""
    rng = np.random.default_rng(2)
    table = {}
    for n in lengths:
        for rho in rhos:
            said = [estimate(*simulate(rng, n, rho)).warnings for _ in range(number)]
            shares = {name: np.mean([word in " ".join(each) for each in said]) for name, word in ALARMS.items()}
            table[n, rho] = shares | {"any": np.mean([bool(each) for each in said])}
    return table


def cell(shares: np.ndarray) -> str:
    """`93.1 / 94.0 / 95.2`: a, b, ceiling."""
    return " / ".join(f"{100 * share:.1f}" for share in shares)


def main(runs: Annotated[int, typer.Option(help="simulated runs a cell")] = 1000) -> None:
    """Print the tables: coverage in percent of the 95 % intervals of a / b / the ceiling."""
    started = time.perf_counter()
    lengths, rhos = (10, 20, 40, 80), (0.0, 0.3, 0.6)
    print("| points | rho | a / b / ceiling |\n|---|---|---|")
    for (n, rho), shares in one_run(runs, lengths, rhos).items():
        print(f"| {n} | {rho} | {cell(shares)} |")
    print("\n| points | rho | error of a | by least squares | error of the ceiling | by least squares |")
    print("|---|---|---|---|---|---|")
    for (n, rho), (ours, plain) in estimators(runs // 2, (10, 40), (0.0, 0.6, 0.9)).items():
        print(f"| {n} | {rho} | {ours[0]:.4f} | {plain[0]:.4f} | {ours[2]:.4f} | {plain[2]:.4f} |")
    print("\n| noise | points | a / b / ceiling |\n|---|---|---|")
    for (kind, n), shares in other_noise(runs // 2, (10, 20, 40)).items():
        print(f"| {kind} | {n} | {cell(shares)} |")
    print("\n| runs pooled | a differs by | clustered by run | AR(1) |\n|---|---|---|---|")
    for spread in (0.0, 0.05):
        for count, row in several_runs(runs // 2, (2, 3, 5, 10), spread).items():
            print(f"| {count} | {100 * spread:.0f} % | {cell(row['clustered'])} | {cell(row['ar1'])} |")
    print("\n| sizes | seeds | sizes scatter by | predicted a / b / ceiling | slopes of a / b | called bent |")
    print("|---|---|---|---|---|---|")
    for sizes in (3, 4, 5, 6):
        for seeds in (1, 3, 5):
            for scatter in (0.0, 0.02, 0.05):
                row = one_size_more(runs // 2, sizes, seeds, scatter)
                shares = f"{cell(row['prediction'])} | {cell(row['slope'])} | {100 * row['bent']:.1f} %"
                print(f"| {sizes} | {seeds} | {scatter} | {shares} |")
    print(
        "\n| points | known | score / entropy / gain at the end | error | no change | says nothing |",
        "\n|---|---|---|---|---|---|",
        sep="",
    )
    for n in (20, 60):
        for share in (0.3, 0.5, 0.75):
            row = stands(runs // 4, n, share, 0.3)
            numbers = f"{row['error']:.4f} | {row['no change']:.4f} | {100 * row['nothing']:.0f} %"
            print(f"| {n} | {100 * share:.0f} % | {cell(row['held'])} | {numbers} |")
    print(f"\n| points | rho | {' | '.join(ALARMS)} | any warning |\n|{'---|' * (len(ALARMS) + 3)}")
    for (n, rho), shares in false_alarms(runs, (10, 20, 40, 80), (0.0, 0.6)).items():
        print(f"| {n} | {rho} | {' | '.join(f'{100 * share:.1f} %' for share in shares.values())} |")
    shares = "half in the second to fifth table, a quarter in the sixth"
    print(f"\n{runs} runs a cell ({shares}), {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    typer.run(main)
