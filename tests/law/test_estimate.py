import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks.law_coverage import one_run, several_runs
from verl_cov.law import estimate, fit
from verl_cov.law.estimate import bandwidth
from verl_cov.law.examples import qwen25_math

METHODS = ("ar1", "hac", "bootstrap", "ols")
SMALL = {"draws": 200}


def run(n=20, seed=0, a=0.2, b=0.6, noise=0.01, first=1.0, last=0.02):
    rng = np.random.default_rng(seed)
    entropy = last + (first - last) * np.exp(-np.arange(n) / (n / 4))
    return entropy, b - a * np.exp(entropy) + rng.normal(0, noise, n)


def ends(found):
    return np.array([[i.value, i.low, i.high] for i in (found.a, found.b, found.ceiling)])


@pytest.mark.parametrize("method", METHODS)
@given(st.floats(-2, 2), st.floats(-2, 2), st.integers(4, 30))
@settings(max_examples=15, deadline=None)
def test_recovers_noise_free_coefficients(method, a, b, n):
    found = estimate(*run(n, a=a, b=b, noise=0), method=method, **SMALL)
    np.testing.assert_allclose(ends(found), np.repeat([[a], [b], [b - a]], 3, axis=1), atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("robust", [False, True])
@given(st.randoms(use_true_random=False), st.floats(0.01, 1000), st.floats(-5, 5))
@settings(max_examples=8, deadline=None)
def test_order_does_not_matter_with_steps_and_units_carry_through(method, robust, random, factor, shift):
    entropy, score = run()
    score[3] += 0.2
    steps = np.arange(20) * 4
    order = list(range(20))
    random.shuffle(order)
    options = {"method": method, "robust": robust, **SMALL}
    found = estimate(entropy, score, steps, **options)
    shuffled = estimate(entropy[order], score[order], steps[order], **options)
    assert ends(found).tolist() == ends(shuffled).tolist()
    scaled = estimate(entropy, factor * score, steps, **options)
    np.testing.assert_allclose(ends(scaled), factor * ends(found), rtol=1e-6, atol=1e-7 * factor)
    shifted = ends(estimate(entropy, score + shift, steps, **options)) - ends(found)
    np.testing.assert_allclose(shifted, [[0] * 3, [shift] * 3, [shift] * 3], atol=1e-6)


def test_the_numbers_are_those_of_the_plain_fit():
    points = run()
    found = estimate(*points)
    assert found.law == fit(*points)
    assert (found.a.value, found.b.value, found.ceiling.value) == (found.law.a, found.law.b, found.law.ceiling)
    assert (found.method, found.runs, found.n, found.unit, found.warnings) == ("ar1", 1, 20, "fraction", ())
    assert found.a.low < found.law.a < found.a.high
    assert -0.95 < found.autocorrelation < 0.95


def test_a_higher_level_is_wider_at_both_ends():
    for method in METHODS:
        low, high = (ends(estimate(*run(), method=method, level=level)) for level in (0.5, 0.99))
        assert (high[:, 1] < low[:, 1]).all()
        assert (high[:, 2] > low[:, 2]).all()


def test_ols_and_newey_west_against_statsmodels_in_its_own_coordinates():
    entropy, score = run()
    design = np.stack((-np.exp(entropy), np.ones(20)), 1)
    plain = sm.OLS(score, design).fit()
    found = estimate(entropy, score, method="ols")
    np.testing.assert_allclose([[found.a.low, found.a.high], [found.b.low, found.b.high]], plain.conf_int())
    # Newey-West written out: Bartlett weights that reach zero at the bandwidth, and n / (n - 2).
    width, moments = bandwidth(20), design * plain.resid[:, None]
    assert width == 6
    meat = moments.T @ moments
    for lag in range(1, width):
        across = moments[lag:].T @ moments[:-lag]
        meat += (1 - lag / width) * (across + across.T)
    bread = np.linalg.inv(design.T @ design)
    se = np.sqrt(np.diag(20 / 18 * bread @ meat @ bread))
    found = estimate(entropy, score, method="hac")
    np.testing.assert_allclose([found.a.se, found.b.se], se)
    assert found.a.high - found.a.value == pytest.approx(stats.t.ppf(0.975, 1.5 * 20 / 6) * found.a.se)


def test_the_bootstrap_draws_circular_blocks_of_residuals_scaled_for_leverage():
    """Its covariance has a closed form: residuals in one block keep their circular autocovariance, others have none."""
    entropy, score = run()
    design = np.stack((-np.exp(entropy), np.ones(20)), 1)
    solve, influence = np.linalg.pinv(design), sm.OLS(score, design).fit().get_influence()
    residual = influence.resid / np.sqrt(1 - influence.hat_matrix_diag)
    residual -= residual.mean()
    covariance = [residual @ np.roll(residual, lag) / 20 for lag in range(20)]
    block = np.arange(20) // bandwidth(20)
    dense = [[covariance[abs(i - j)] if block[i] == block[j] else 0 for j in range(20)] for i in range(20)]
    found = estimate(entropy, score, method="bootstrap", draws=40_000)
    np.testing.assert_allclose([found.a.se, found.b.se], np.sqrt(np.diag(solve @ dense @ solve.T)), rtol=0.02)


def test_only_the_proportions_of_the_steps_matter():
    points, steps = run(), np.r_[0:10, 12:32:2]
    found = ends(estimate(*points, steps))
    np.testing.assert_allclose(ends(estimate(*points, 40 * steps + 7)), found)
    assert not np.allclose(ends(estimate(*points)), found, rtol=1e-3)
    np.testing.assert_allclose(ends(estimate(*points, np.arange(20) * 4)), ends(estimate(*points)))


def test_clustered_errors_of_like_runs_are_those_of_their_mean():
    """With the same entropies in every run the pooled fit is the mean of the fits, and its error that of a mean."""
    runs = [run(seed=seed) for seed in range(5)]
    found = estimate(*np.concatenate(runs, axis=1), runs=np.repeat(list("abcde"), 20).tolist())
    each = np.array([fit(*points).a for points in runs])
    assert found.method == "cluster"
    assert found.runs == 5
    assert found.a.value == pytest.approx(each.mean())
    assert found.a.se == pytest.approx(each.std(ddof=1) / math.sqrt(5) * math.sqrt(99 / 98))
    assert (found.a.high - found.a.low) / 2 == pytest.approx(2.776445 * found.a.se)  # t, 4 degrees of freedom


def test_hac_of_several_runs_ignores_what_lies_between_runs():
    one, two = run(seed=1), run(seed=2)
    names = [0] * 20 + [1] * 20
    steps = np.tile(np.arange(20), 2)
    found = estimate(*np.concatenate((one, two), axis=1), steps, runs=names, method="hac")
    swapped = estimate(*np.concatenate((two, one), axis=1), steps, runs=names, method="hac")
    assert found.a.se == pytest.approx(swapped.a.se)


def test_huber_is_statsmodels_huber_and_an_outlier_moves_it_little():
    entropy, score = run()
    score[18] -= 0.5
    found = estimate(entropy, score, robust=True)
    right = sm.RLM(score, np.stack((-np.exp(entropy), np.ones(20)), 1), M=sm.robust.norms.HuberT())
    right = right.fit(maxiter=200, tol=1e-10)
    np.testing.assert_allclose([found.a.value, found.b.value], right.params, rtol=1e-6)
    assert found.a.value == pytest.approx(0.2, abs=0.02)
    assert found.a.low < 0.2 < found.a.high
    assert abs(estimate(entropy, score).a.value - 0.2) > 0.04
    assert found.robust
    assert found.law.rmse > 0.1  # against the points, the outlier among them


def test_the_bootstrap_is_deterministic_and_follows_its_seed():
    one, again, other = (ends(estimate(*run(), method="bootstrap", seed=seed)) for seed in (1, 1, 2))
    assert one.tolist() == again.tolist()
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_the_law_at_an_entropy_and_the_gain_that_is_left(method):
    found = estimate(*run(), method=method, **SMALL)
    np.testing.assert_allclose(
        [found.at(0.0).value, found.at(0.0).low, found.at(0.0).high],
        [found.ceiling.value, found.ceiling.low, found.ceiling.high],
        rtol=1e-6,
    )
    gain, rise = found.gain(0.5), math.exp(0.5) - 1
    np.testing.assert_allclose(
        [gain.value, gain.low, gain.high], [i * rise for i in (found.a.value, found.a.low, found.a.high)], rtol=1e-6
    )
    assert found.gain(0.5, to=0.2).value == pytest.approx(found.at(0.2).value - found.at(0.5).value)
    assert found.gain(0.3, to=0.3).value == 0


def warned(points, word, **options):
    return any(word in sentence for sentence in estimate(*points, **options).warnings)


def curved(n=20):
    entropy, _ = run(n)
    return entropy, 0.5 - 0.1 * (np.exp(entropy) - 1.8) ** 2 + np.random.default_rng(0).normal(0, 0.005, n)


WARNINGS = {
    "few points": ("Only 7 points", run(7), run(8), {}, {}),
    "a": ("not positive", run(a=-0.2), run(), {}, {}),
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
    found = estimate([0.5, 0.45, 0.4], [0.1, 0.2, 0.31])
    ratio = (math.exp(0.4) - 1) / (math.exp(0.5) - math.exp(0.4))
    assert any(f"{ratio:.1f} times" in sentence for sentence in found.warnings)


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
        found = estimate(*model.curve())
        np.testing.assert_allclose((found.a.value, found.b.value), (model.a, model.b))
        assert found.warnings == ()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0.1, 0.1, 0.2], [1, 2, 3]), {}, "at least 3 points of distinct entropy"),
        (([0.1, math.nan, 0.2], [1, 2, 3]), {}, r"entropy\[1\] is nan"),
        (([0.1, 0.2], [1, 2, 3]), {}, "same length"),
        (([0.1, 0.2, 0.3], [1, 2, 3], [0, 1]), {}, "one value for each of the 3 points"),
        (([0.1, 0.2, 0.3], [1, 2, 3], [0, 1, math.inf]), {}, "steps must be finite"),
        (([0.1, 0.2, 0.3], [1, 2, 3], [0, 4, 4]), {}, "step 4 comes twice"),
        (([0.1, 0.2, 0.3], [1, 2, 3]), {"runs": [1, 2]}, "one value for each of the 3 points"),
        (([0.1, 0.2, 0.3], [1, 2, 3]), {"level": 95}, "level must be between 0 and 1"),
        (([0.1, 0.2, 0.3], [1, 2, 3]), {"method": "jackknife"}, "'jackknife' is unknown"),
        (([0.1, 0.2, 0.3], [1, 2, 3]), {"method": "cluster"}, "at least two runs"),
    ],
)
def test_refuses_what_cannot_be_estimated(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        estimate(*arguments, **options)


def test_coverage_in_simulated_runs():
    """A small version of benchmarks/law_coverage.py: 95 % is 0.95 +- 0.015 at 200 runs (one standard error)."""
    row = one_run(200, (20,), (0.6,))[20, 0.6]
    assert np.all((row["ar1"] > 0.90) & (row["ar1"] < 0.995))
    assert np.all(row["ols"] < 0.85)
    pooled = several_runs(200, (4,), spread=0.05)[4]
    assert np.all((pooled["cluster"] > 0.90) & (pooled["cluster"] < 0.995))
    assert pooled["ar1"][2] < 0.92
