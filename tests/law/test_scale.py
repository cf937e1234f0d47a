import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.law_coverage import one_size_more
from verl_cov.law import scale
from verl_cov.law.examples import qwen25_math
from verl_cov.law.scatter import _half

MODELS = qwen25_math()


def paper(models):
    return scale([m.parameters for m in models], [m.a for m in models], [m.b for m in models])


def test_the_papers_line_overshoots_its_own_largest_model():
    """Read off Fig. 3: 0.5B to 7B promise 32B 0.07 more in a, 0.12 more in b, 5 points more in the ceiling."""
    largest = MODELS[-1]
    predicted = paper(MODELS[:4]).predict(largest.parameters)
    assert predicted.a.value - largest.a == pytest.approx(0.07, abs=0.005)
    assert predicted.b.value - largest.b == pytest.approx(0.12, abs=0.005)
    assert predicted.ceiling.value - (largest.b - largest.a) == pytest.approx(0.05, abs=0.005)
    assert predicted.b.low > largest.b  # and the interval, which believes in the line, does not save it
    assert paper(MODELS[:4]).warnings == ()  # the four give no sign of it

    all_sizes = paper(MODELS)
    assert all_sizes.b.left_out[-1] == pytest.approx(predicted.b.value - largest.b)
    assert all_sizes.b.end_p == pytest.approx(0.036, abs=0.001)  # one of six tests: no sign of a bend
    assert all_sizes.warnings == ()
    assert (all_sizes.a.slope.value, all_sizes.a.intercept.value) == pytest.approx((0.046, 0.102), abs=1e-3)
    assert (all_sizes.b.slope.value, all_sizes.b.intercept.value) == pytest.approx((0.116, 0.333), abs=1e-3)


def test_agrees_with_scipy():
    x, y = np.log([m.parameters for m in MODELS]), [m.b for m in MODELS]
    right, trend = stats.linregress(x, y), paper(MODELS).b
    assert (trend.slope.value, trend.slope.se) == pytest.approx((right.slope, right.stderr))
    assert (trend.intercept.value, trend.intercept.se) == pytest.approx((right.intercept, right.intercept_stderr))
    predicted = trend.predict(72.0)
    rest = y - right.intercept - right.slope * x
    spread = math.sqrt(rest @ rest / 3 * (1 + 1 / 5 + (math.log(72) - x.mean()) ** 2 / (5 * x.var())))
    half = stats.t.ppf(0.975, 3) * spread
    assert predicted.value == pytest.approx(right.intercept + right.slope * math.log(72))
    assert (predicted.low, predicted.high) == pytest.approx((predicted.value - half, predicted.value + half))
    assert trend.rmse == pytest.approx(np.sqrt(np.mean(rest**2)))


def test_the_end_is_judged_as_statsmodels_judges_an_outlier():
    x = np.log([m.parameters for m in MODELS])
    result = sm.OLS([m.b for m in MODELS], sm.add_constant(x)).fit()
    outlier = result.get_influence().resid_studentized_external[-1]
    assert paper(MODELS).b.end_p == pytest.approx(2 * stats.t.sf(abs(outlier), 2))


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_recovers_lines_without_noise_and_does_not_warn(a0, a1, b0, b1):
    size = np.array([0.5, 1.5, 3, 7, 32])
    trend = scale(size, a0 + a1 * np.log(size), b0 + b1 * np.log(size))
    assert (trend.a.intercept.value, trend.a.slope.value) == pytest.approx((a0, a1), abs=1e-9)
    predicted = trend.predict(100)
    assert predicted.b.value == pytest.approx(b0 + b1 * math.log(100), abs=1e-9)
    assert predicted.ceiling.value == pytest.approx(predicted.b.value - predicted.a.value, abs=1e-9)
    assert trend.warnings == ()
    np.testing.assert_allclose(trend.a.left_out, 0, atol=1e-9)


def test_the_unit_of_the_sizes_and_their_order_do_not_matter():
    columns = zip(*((1e9 * MODELS[i].parameters, MODELS[i].a, MODELS[i].b) for i in (3, 0, 4, 2, 1)), strict=True)
    trend, counted = paper(MODELS), scale(*columns)
    assert counted.predict(72e9).ceiling.high == pytest.approx(trend.predict(72).ceiling.high)
    np.testing.assert_allclose(counted.a.left_out, trend.a.left_out)
    assert counted.warnings == trend.warnings


def test_a_size_is_left_out_with_all_its_runs():
    size = [1, 1, 3, 3, 9]
    y = np.array([0.1, 0.3, 0.4, 0.4, 0.9])
    line = np.polyfit(np.log([3, 3, 9]), y[2:], 1)
    trend = scale(size, y, y)
    np.testing.assert_allclose(trend.a.left_out[:2], np.polyval(line, 0) - y[:2])


def test_seeds_of_one_size_count_as_its_mean_does():
    """Two seeds each, equally far apart: the line, its error and the trend's tests are those of the means."""
    size, means = [1, 3, 9, 20], np.array([0.1, 0.4, 0.5, 0.8])
    seeds = np.concatenate((means - 0.01, means + 0.01))
    one, two = scale(size, means, means).a, scale([*size, *size], seeds, seeds).a
    for name in ("slope", "intercept"):
        np.testing.assert_allclose(
            [getattr(getattr(one, name), key) for key in ("value", "se", "low", "high")],
            [getattr(getattr(two, name), key) for key in ("value", "se", "low", "high")],
        )
    assert (one.bend_p, one.end_p) == pytest.approx((two.bend_p, two.end_p))
    assert two.predict(30).high > one.predict(30).high  # a new run has a seed's scatter too


def test_without_scatter_of_sizes_all_squares_are_one_regression():
    """If the means lie closer to the line than their seeds explain, a new run is that of a regression over all runs."""
    size = np.repeat([1.0, 2, 4, 8], 3)
    y = 0.1 + 0.2 * np.log(size) + np.tile([-0.03, 0.01, 0.02], 4)
    trend, right = scale(size, y, y).a, sm.OLS(y, sm.add_constant(np.log(size))).fit()
    expected = right.get_prediction([[1, math.log(30)]])
    assert trend.scatter.pooled == pytest.approx(right.mse_resid)
    assert (trend.predict(30).low, trend.predict(30).high) == pytest.approx(tuple(expected.conf_int(obs=True)[0]))


@given(st.integers(0, 10**6))
def test_the_sum_of_two_students_t_has_the_asked_quantile(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.uniform(0.05, 1, 2)
    df, second_df = rng.integers(2, 30, 2)
    draws = first * rng.standard_t(df, 40_000) + second * rng.standard_t(second_df, 40_000)
    half = _half(first, int(df), second, int(second_df), 0.975)
    assert np.mean(draws < half) == pytest.approx(0.975, abs=0.004)


@pytest.mark.parametrize(("sizes", "seeds", "scatter"), [(4, 1, 0.02), (4, 3, 0.02), (5, 5, 0.05), (6, 3, 0.0)])
def test_coverage_with_seeds(sizes, seeds, scatter):
    """A small version of the table in benchmarks/law_coverage.py; runs taken for independent hold 57 to 74 %."""
    coverage = one_size_more(150, sizes, seeds, scatter)["prediction"]
    assert np.all((coverage > 0.88) & (coverage < 0.995)), coverage


def test_straight_lines_are_called_bent_no_more_often_than_promised():
    assert one_size_more(150, 5, 1, 0.02)["bent"] < 0.09  # 28 % if each test has a level of its own


def test_a_bend_in_the_middle_is_seen_by_the_quadratic_term():
    size = np.exp(np.arange(8.0))
    bowl = 0.01 * (np.arange(8) - 3.5) ** 2 + np.array([1, -1, 1, -1, 1, -1, 1, -1]) * 0.02
    trend = scale(size, bowl, bowl)
    assert trend.a.bend_p < 0.05
    assert any(sentence.startswith("a ") for sentence in trend.warnings)


def test_three_sizes_cannot_show_a_bend():
    trend = paper(MODELS[:3])
    assert math.isnan(trend.a.bend_p)
    assert math.isnan(trend.a.end_p)
    assert trend.warnings == ("Three sizes are too few to see whether the line bends.",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([1, 2, 3], [1, 2], [1, 2, 3]), "same length"),
        (([1, 2, 3], [1, 2, math.nan], [1, 2, 3]), "finite"),
        (([0, 2, 3], [1, 2, 3], [1, 2, 3]), "positive"),
        (([2, 2, 3], [1, 2, 3], [1, 2, 3]), "at least 3 different sizes, got 2"),
    ],
)
def test_refuses_what_has_no_trend(columns, message):
    with pytest.raises(ValueError, match=message):
        scale(*columns)
