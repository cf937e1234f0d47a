import numpy as np
import pytest

from benchmarks.law_coverage import simulate
from verl_cov.law import estimate, forecast, rolling_origin
from verl_cov.law.examples import qwen25_math

RNG = np.random.default_rng


def run(n=59, rho=0.3, seed=0):
    return (np.arange(n) * 4, *simulate(RNG(seed), n, rho))


def test_fits_the_papers_share_and_predicts_the_rest_by_the_law():
    """36 of 236 steps, a validation every 4: the first 9 of 59 points."""
    steps, entropy, score = run()
    result = forecast(steps, entropy, score)
    assert result.n == 9
    assert result.estimate.law == estimate(entropy[:9], score[:9]).law
    assert result.step.tolist() == steps[9:].tolist()
    np.testing.assert_array_equal(result.score, score[9:])
    np.testing.assert_array_equal(result.entropy, entropy[9:])
    np.testing.assert_allclose(result.predicted, result.estimate.law.predict(entropy[9:]))
    assert result.rmse_rest == pytest.approx(np.sqrt(np.mean((result.predicted - score[9:]) ** 2)))
    assert result.final_error == pytest.approx(result.predicted[-1] - score[-1])
    assert result.coverage == np.mean((result.low <= score[9:]) & (score[9:] <= result.high))


def test_a_share_that_is_whole_is_not_rounded_up():
    assert forecast(*run(100), fraction=0.07).n == 7


def test_a_run_on_the_law_is_known_from_three_points():
    entropy, score = qwen25_math()[3].curve(20)
    result = forecast(np.arange(20), entropy, score)
    assert result.n == 3
    assert result.rmse_rest < 1e-12
    assert result.estimate.ceiling.value == pytest.approx(0.386)
    assert np.all(result.high - result.low < 1e-9)


def test_the_order_of_the_points_does_not_matter():
    columns = np.stack(run())
    shuffled = columns[:, RNG(1).permutation(columns.shape[1])]
    one, other = forecast(*columns), forecast(*shuffled)
    for name in ("step", "predicted", "low", "high"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("rho", [0.6, pytest.param(0.0, marks=pytest.mark.nightly)])
def test_intervals_hold_the_rest_of_simulated_runs(rho):
    coverage = [forecast(*run(24, rho, seed), fraction=0.5).coverage for seed in range(40)]
    assert 0.90 < np.mean(coverage) < 0.995


def test_an_interval_for_a_new_point_is_wider_than_that_of_the_law():
    result = forecast(*run(), fraction=0.5)
    law = [result.estimate.at(entropy) for entropy in result.entropy]
    assert np.all(result.high[5:] - result.low[5:] > [i.high - i.low for i in law[5:]])


def test_rolling_origin_has_a_row_for_each_share_and_learns():
    rows = rolling_origin(*run())
    assert [(row.fraction, row.n) for row in rows] == [(0.1, 6), (0.15, 9), (0.2, 12), (0.3, 18), (0.5, 30), (0.75, 45)]
    result = forecast(*run(), fraction=0.3)
    assert (rows[3].rmse_rest, rows[3].final_error, rows[3].coverage) == (
        result.rmse_rest,
        result.final_error,
        result.coverage,
    )
    width = [row.estimate.ceiling.high - row.estimate.ceiling.low for row in rows]
    assert width[-1] < width[0] / 3


def test_shares_that_mean_the_same_points_have_one_row():
    assert [row.n for row in rolling_origin(*run(12))] == [3, 4, 6, 9]


@pytest.mark.parametrize(
    ("points", "fraction", "message"),
    [
        (run(4), 1.0, "fraction must be between 0 and 1"),
        (run(3), 0.15, "3 points are too few: the first 3"),
        (([0, 1, 2, 3], [0.1] * 4, [1, 2, 3, 4]), 0.15, "distinct entropy, got 1"),
        (([0, 1, 2, 3], [0.1, 0.2, 0.3, np.nan], [1, 2, 3, 4]), 0.15, "finite"),
        (([0, 1, 2, 2], [0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4]), 0.15, "step 2 occurs twice"),
        (([0, 1, 2], [0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4]), 0.15, "one value for each"),
    ],
)
def test_refuses_what_cannot_be_forecast(points, fraction, message):
    with pytest.raises(ValueError, match=message):
        forecast(*points, fraction=fraction)
