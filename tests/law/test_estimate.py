import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.law_coverage import false_alarms, one_run, several_runs
from verl_cov.law import estimate, fit
from verl_cov.law.examples import qwen25_math


def run(n=20, seed=0, a=0.2, b=0.6, noise=0.01, first=1.0, last=0.02):
    rng = np.random.default_rng(seed)
    entropy = last + (first - last) * np.exp(-np.arange(n) / (n / 4))
    return entropy, b - a * np.exp(entropy) + rng.normal(0, noise, n)


def ends(law):
    """[3, 3]: value, low, high of a, b and the ceiling."""
    return np.array([[i.value, i.low, i.high] for i in (law.a, law.b, law.ceiling)])


@pytest.mark.parametrize("robust", [False, True])
@given(st.randoms(use_true_random=False), st.floats(0.01, 1000), st.floats(-5, 5))
@settings(max_examples=8, deadline=None)
def test_order_does_not_matter_with_steps_and_units_carry_through(robust, random, factor, shift):
    entropy, score = run()
    score[3] += 0.2
    steps = np.arange(20) * 4
    order = list(range(20))
    random.shuffle(order)
    law = estimate(entropy, score, steps, robust=robust)
    shuffled = estimate(entropy[order], score[order], steps[order], robust=robust)
    assert ends(law).tolist() == ends(shuffled).tolist()
    scaled = estimate(entropy, factor * score, steps, robust=robust)
    np.testing.assert_allclose(ends(scaled), factor * ends(law), rtol=1e-6, atol=1e-7 * factor)
    shifted = ends(estimate(entropy, score + shift, steps, robust=robust)) - ends(law)
    np.testing.assert_allclose(shifted, [[0] * 3, [shift] * 3, [shift] * 3], atol=1e-6)


def test_value_and_interval_are_of_one_estimator_and_least_squares_stands_beside_it():
    points = run()
    law = estimate(*points)
    assert law.least_squares == fit(*points)
    assert (law.a.value, law.b.value) == (law.law.a, law.law.b)
    assert law.ceiling.value == pytest.approx(law.b.value - law.a.value)
    residual = points[1] - law.law.predict(points[0])
    assert law.law.rmse == pytest.approx(np.sqrt(np.mean(residual**2)))
    assert law.law.r2 == pytest.approx(1 - residual.var() / points[1].var(), abs=1e-3)
    assert not law.parted
    assert (law.runs, law.n, law.unit, law.warnings) == (1, 20, "fraction", ())
    assert law.a.low < law.law.a < law.a.high
    assert -0.95 < law.autocorrelation < 0.95


def test_a_higher_level_is_wider_at_both_ends():
    low, high = (ends(estimate(*run(), level=level)) for level in (0.5, 0.99))
    assert (high[:, 1] < low[:, 1]).all()
    assert (high[:, 2] > low[:, 2]).all()


def test_only_the_proportions_of_the_steps_matter():
    points, steps = run(), np.r_[0:10, 12:32:2]
    law = ends(estimate(*points, steps))
    np.testing.assert_allclose(ends(estimate(*points, 40 * steps + 7)), law)
    assert not np.allclose(ends(estimate(*points)), law, rtol=1e-3)
    np.testing.assert_allclose(ends(estimate(*points, np.arange(20) * 4)), ends(estimate(*points)))


def test_clustered_errors_of_like_runs_are_those_of_their_mean():
    """With the same entropies in every run the pooled fit is the mean of the fits, and its error that of a mean."""
    runs = [run(seed=seed) for seed in range(5)]
    law = estimate(*np.concatenate(runs, axis=1), runs=np.repeat(list("abcde"), 20).tolist())
    each = np.array([fit(*points).a for points in runs])
    assert law.runs == 5
    assert law.a.value == pytest.approx(each.mean())
    assert law.a.se == pytest.approx(each.std(ddof=1) / math.sqrt(5) * math.sqrt(99 / 98))
    assert (law.a.high - law.a.low) / 2 == pytest.approx(2.776445 * law.a.se)  # t, 4 degrees of freedom


def test_huber_is_statsmodels_huber_and_an_outlier_moves_it_little():
    entropy, score = run()
    score[18] -= 0.5
    law = estimate(entropy, score, robust=True)
    right = sm.RLM(score, np.stack((-np.exp(entropy), np.ones(20)), 1), M=sm.robust.norms.HuberT())
    right = right.fit(maxiter=200, tol=1e-10)
    np.testing.assert_allclose([law.least_squares.a, law.least_squares.b], right.params, rtol=1e-6)
    assert law.least_squares.rmse == pytest.approx(np.sqrt(np.mean(right.resid**2)))
    assert law.a.value == pytest.approx(0.2, abs=0.02)
    assert law.a.low < 0.2 < law.a.high
    assert abs(estimate(entropy, score).a.value - 0.2) > 0.04
    assert law.robust
    assert law.law.rmse > 0.1  # against the points, the outlier among them


def test_the_law_at_an_entropy_and_the_gain_that_is_left():
    law = estimate(*run())
    here, gain = law.at(0.0), law.gain(0.5)
    np.testing.assert_allclose([here.value, here.low, here.high], ends(law)[2], rtol=1e-6)
    np.testing.assert_allclose([gain.value, gain.low, gain.high], ends(law)[0] * (math.exp(0.5) - 1), rtol=1e-6)
    assert law.gain(0.5, to=0.2).value == pytest.approx(law.at(0.2).value - law.at(0.5).value)
    assert law.gain(0.3, to=0.3).value == 0


def wandering(n=40, seed=0, step=0.06):
    """(entropy, score) of which neither is bought with the other: two random walks, as in some logs of agents."""
    rng = np.random.default_rng(seed)
    entropy = np.exp(-1.5 + 0.2 * np.cumsum(rng.normal(0, 1, n)))
    return entropy, np.clip(0.9 - 0.8 * (entropy - 0.15) + np.cumsum(rng.normal(0, step, n)), -1, 2)


@pytest.mark.parametrize("robust", [False, True])
@given(st.integers(3, 40), st.integers(0, 10**6), st.sampled_from([0.0, 0.01, 0.1]))
@settings(max_examples=60, deadline=None)
def test_the_value_lies_in_its_interval_whatever_the_noise(robust, n, seed, step):
    law = estimate(*wandering(n, seed, step), robust=robust)
    values = ends(law)
    assert np.all(values[:, 1] - 1e-9 <= values[:, 0]), values
    assert np.all(values[:, 0] <= values[:, 2] + 1e-9), values
    assert law.at(0.3).low - 1e-9 <= law.law.predict(0.3) <= law.at(0.3).high + 1e-9


def test_least_squares_is_said_to_differ_when_it_does():
    laws = [estimate(*wandering(seed=seed)) for seed in range(20)]
    for law in laws:
        apart = [abs(law.least_squares.a - law.a.value) / law.a.se, abs(law.least_squares.b - law.b.value) / law.b.se]
        assert law.parted == (max(apart) > 0.5)
    assert {law.parted for law in laws} == {True, False}


def warned(points, word, **options):
    return any(word in sentence for sentence in estimate(*points, **options).warnings)


def curved(n=20):
    entropy, _ = run(n)
    return entropy, 0.5 - 0.1 * (np.exp(entropy) - 1.8) ** 2 + np.random.default_rng(0).normal(0, 0.005, n)


def falling_late(n=30):
    """(entropy, score) of a run that follows the law and then collapses while entropy falls on."""
    entropy, score = run(n)
    return entropy, score - np.maximum(np.arange(n) - 2 * n / 3, 0) * 0.02


def with_noise(size, n=20):
    entropy, score = run(n)
    return entropy, score + np.random.default_rng(5).normal(0, size, n)


WARNINGS = {
    "few points": ("Only 7 points", run(7), run(8), {}, {}),
    "a": ("not positive", run(a=-0.2), run(), {}, {}),
    "a's interval": ("holds 0", run(a=0.004), run(), {}, {}),
    "low R2": ("R² = 0.", with_noise(0.2), with_noise(0.02), {}, {}),
    "R2 below 0": ("a constant would", falling_late(60), run(), {}, {}),
    "ceiling below scores": ("below scores already reached", falling_late(), run(), {}, {}),
    "late fall": ("last third of the run", falling_late(), run(30), {}, {}),
    "memory": ("random walk", wandering(60, step=0.1), with_noise(0.02), {}, {}),
    "extrapolation": ("extrapolation", run(last=0.8), run(last=0.3), {}, {}),
    "vocabulary": ("cannot be in nats", run(), run(), {"vocabulary": 2}, {"vocabulary": 3}),
    "bits": ("hardly in nats", run(first=12.5), run(first=11.5), {}, {}),
    "negative": ("negative", run(last=-0.1), run(), {}, {}),
    "bend": ("bend away", curved(), run(), {}, {}),
    "percent": ("taken for percent", run(a=20, b=60), run(), {}, {}),
    "two runs": ("one degree of freedom", run(), run(), {"runs": [0, 1] * 10}, {"runs": [0, 1, 2, 3] * 5}),
    "control": ("Clip-Cov or KL-Cov", run(), run(), {"controlled": True}, {}),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_warnings_both_ways(case):
    word, yes, no, options, none = WARNINGS[case]
    assert warned(yes, word, **options)
    assert not warned(no, word, **none)


def test_the_extrapolation_is_stated_as_a_ratio():
    law = estimate([0.5, 0.45, 0.4], [0.1, 0.2, 0.31])
    ratio = (math.exp(0.4) - 1) / (math.exp(0.5) - math.exp(0.4))
    assert any(f"{ratio:.1f} times" in sentence for sentence in law.warnings)


@pytest.mark.parametrize(
    ("scores", "unit"),
    [([0, 0.5, 1], "fraction"), ([0, 50, 100], "percent"), ([-0.1, 0.5, 1], "other"), ([0, 50, 101], "other")],
)
def test_the_unit_of_the_score(scores, unit):
    assert estimate([0.3, 0.2, 0.1], scores).unit == unit


def test_the_papers_curves_give_back_what_was_read_off_them():
    models = qwen25_math()
    assert [model.model for model in models] == [f"Qwen2.5-{size}" for size in ("0.5B", "1.5B", "3B", "7B", "32B")]
    for model in models:
        law = estimate(*model.curve())
        np.testing.assert_allclose((law.a.value, law.b.value), (model.a, model.b))
        assert law.warnings == ()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0.1, 0.1, 0.2], [1, 2, 3]), {}, "at least 3 points of distinct entropy"),
        (([0.1, math.nan, 0.2], [1, 2, 3]), {}, r"entropy\[1\] is nan"),
        (([0.1, 0.2], [1, 2, 3]), {}, "same length"),
        (([0.1, 0.2, 0.3], [1, 2, 3], [0, 1]), {}, "one value for each of the 3 points"),
        (([0.1, 0.2, 0.3], [1, 2, 3], [0, 1, math.inf]), {}, "steps must be finite"),
        (([0.1, 0.2, 0.3], [1, 2, 3], [0, 4, 4]), {}, "step 4 occurs twice"),
        (([0.1, 0.2, 0.3], [1, 2, 3]), {"runs": [1, 2]}, "one value for each of the 3 points"),
        (([0.1, 0.2, 0.3], [1, 2, 3]), {"level": 95}, "level must be between 0 and 1"),
    ],
)
def test_refuses_what_cannot_be_estimated(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        estimate(*arguments, **options)


def test_all_warnings_together_are_seldom_false_alarms():
    """A small version of the table in benchmarks/law_coverage.py: below 10 %, there measured on 1,000 runs a row."""
    alarms = false_alarms(60, (10, 40), (0.0, 0.6))
    assert np.mean([share["any"] for share in alarms.values()]) < 0.08


def test_coverage_in_simulated_runs():
    """A small version of benchmarks/law_coverage.py: 95 % is 0.95 +- 0.02 at 120 runs (one standard error)."""
    single, pooled = one_run(120, (20,), (0.6,))[20, 0.6], several_runs(120, (4,), spread=0.05)[4]
    for coverage in (single, pooled["clustered"]):
        assert np.all((coverage > 0.89) & (coverage < 0.995))
    assert pooled["ar1"][2] < 0.92  # without clusters the differences between the runs are not counted
