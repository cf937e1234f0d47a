import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.oneway import anova_oneway

from benchmarks.law_coverage import A, B, simulate
from verl_cov.law import compare, estimate
from verl_cov.law.compare import _wald


def runs(count, n=20, rho=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return {str(number): simulate(rng, n, rho) for number in range(count)}


def test_the_wald_test_is_welchs_for_one_coefficient():
    """With one coefficient Johansen's test is Welch's analysis of variance, here from the means of samples."""
    rng = np.random.default_rng(0)
    samples = [rng.normal(0, size, count) for size, count in ((1, 8), (3, 12), (2, 10))]
    right = anova_oneway(samples, use_var="unequal")
    theta = np.array([[s.mean()] for s in samples])
    cov = np.array([[[s.var(ddof=1) / s.size]] for s in samples])
    statistic, p = _wald(theta, cov, np.array([s.size - 1.0 for s in samples]))
    assert p == pytest.approx(right.pvalue, rel=1e-6)
    assert statistic == pytest.approx(right.statistic, rel=1e-6)


def test_the_wald_test_is_chi_squared_with_many_points():
    theta = np.array([[0.0, 0.0], [1.0, -2.0]])
    cov = np.array([np.eye(2), [[2.0, 0.5], [0.5, 1.0]]])
    square = (theta[1] - theta[0]) @ np.linalg.inv(cov.sum(0)) @ (theta[1] - theta[0])
    statistic, p = _wald(theta, cov, np.array([1e7, 1e7]))
    assert 2 * statistic == pytest.approx(square)
    assert p == pytest.approx(stats.chi2.sf(square, 2), rel=1e-4)


def test_two_runs_have_one_pair():
    result = compare(runs(2))
    assert result.pair_p[0, 1] == result.pair_p[1, 0] == pytest.approx(result.wald_p)
    assert result.pair_p_holm[0, 1] == result.pair_p[0, 1]
    assert result.pair_p[0, 0] == result.pair_p_holm[1, 1] == 1
    assert result.names == ("0", "1")


def test_intervals_are_those_of_the_estimates():
    sets = runs(3)
    result = compare(sets, level=0.9)
    for i, points in enumerate(sets.values()):
        right = estimate(*points, level=0.9)
        for name in ("a", "b", "ceiling"):
            one, other = getattr(result, name)[i], getattr(right, name)
            assert (one.value, one.se, one.low, one.high) == (other.value, other.se, other.low, other.high)


def test_finds_the_run_that_differs():
    sets = runs(4)
    entropy, score = sets["2"]
    sets["2"] = entropy, score - 0.1 * np.exp(entropy)
    result = compare(sets)
    differs = np.zeros((4, 4), dtype=bool)
    differs[2], differs[:, 2], differs[2, 2] = True, True, False
    assert result.wald_p < 1e-4
    np.testing.assert_array_equal(result.pair_p_holm < 0.01, differs)
    np.testing.assert_array_equal(result.overlap, ~differs)
    upper = np.triu_indices(4, 1)
    np.testing.assert_allclose(result.pair_p_holm[upper], multipletests(result.pair_p[upper], method="holm")[1])
    np.testing.assert_array_equal(result.pair_p_holm, result.pair_p_holm.T)


def test_runs_of_one_law_are_told_apart_no_more_often_than_promised():
    """At 5 %, although neighbouring points are correlated."""
    assert np.mean([compare(runs(3, rho=0.6, seed=seed)).wald_p < 0.05 for seed in range(80)]) < 0.11


def test_the_unit_of_the_score_and_the_order_of_points_do_not_matter():
    sets = runs(3, rho=0.3)
    result = compare(sets)
    percent = compare({name: (h, 100 * r) for name, (h, r) in sets.items()})
    order = np.random.default_rng(1).permutation(20)
    steps = np.arange(20)
    shuffled = compare({name: (h[order], r[order], steps[order]) for name, (h, r) in sets.items()})
    np.testing.assert_allclose(percent.pair_p, result.pair_p, rtol=1e-6)
    np.testing.assert_allclose(shuffled.pair_p, result.pair_p, rtol=1e-9)
    assert percent.wald == pytest.approx(result.wald)


def test_runs_on_one_law_without_noise_do_not_differ():
    entropy = np.linspace(1, 0.1, 9)
    result = compare({name: (h, B - A * np.exp(h)) for name, h in {"one": entropy, "two": entropy / 2}.items()})
    assert result.wald_p > 0.05
    assert result.overlap.all()


def test_many_runs_at_once():
    result = compare(runs(340, n=6))  # 57,630 pairs: more than are worked on at once
    assert result.pair_p.shape == (340, 340)
    np.testing.assert_array_equal(result.pair_p, result.pair_p.T)
    assert 0.005 < np.mean(result.pair_p[np.triu_indices(340, 1)] < 0.05) < 0.1


def test_refuses_with_the_name_of_the_run():
    with pytest.raises(ValueError, match="at least two runs, got 1"):
        compare(runs(1))
    with pytest.raises(ValueError, match="short: the law needs at least 3 points"):
        compare({**runs(1), "short": ([0.1, 0.2], [0.3, 0.4])})
    with pytest.raises(ValueError, match="bad: step 1 occurs twice"):
        compare({**runs(1), "bad": ([0.1, 0.2, 0.3], [0.3, 0.4, 0.5], [1, 1, 2])})
