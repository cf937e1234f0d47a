"""Against dense matrices and statsmodels, which take other ways to the same numbers."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from verl_cov.law.ar1 import RHO, regress

N = 12
TIME = np.array([0, 1, 2, 3, 5, 6, 7, 8.5, 9, 10, 14, 15.0])
GAP = np.diff(TIME, prepend=-np.inf)


@pytest.fixture
def points():
    rng = np.random.default_rng(4)
    z = np.linspace(1.5, -1.5, N) ** 3 / 2
    return np.stack((np.ones(N), z), 1), 0.4 - 0.1 * z + rng.normal(0, 0.05, N)


def dense(rho, gap):
    """[n, n] correlations: the product of those between neighbours."""
    near = np.sign(rho) * np.abs(rho) ** gap[1:]
    n = len(gap)
    return np.array([[np.prod(near[min(i, j) : max(i, j)]) for j in range(n)] for i in range(n)])


def test_without_correlation_it_is_ordinary_least_squares(points):
    design, y = points
    found = regress(design, y, GAP, rho=np.zeros(1))
    right = sm.OLS(y, design).fit()
    np.testing.assert_allclose(found.params[0], right.params)
    np.testing.assert_allclose(np.stack(found.quantiles(np.eye(2), 0.9), 1), right.conf_int(alpha=0.1))
    np.testing.assert_allclose(found.standard_error(np.eye(2)), right.bse)
    assert found.tail(np.array([0.0, 1.0])) == pytest.approx(right.pvalues[1])
    assert found.df == N - 2


@pytest.mark.parametrize("rho", [-0.4, 0.5, 0.9])
def test_given_rho_it_is_generalised_least_squares_at_uneven_steps(points, rho):
    design, y = points
    found = regress(design, y, GAP, rho=np.array([rho]))
    right = sm.GLS(y, design, sigma=dense(rho, GAP)).fit()
    np.testing.assert_allclose(found.params[0], right.params)
    np.testing.assert_allclose(found.covariance(), right.cov_params())
    assert found.autocorrelation == pytest.approx(rho)


def test_the_weights_are_the_restricted_likelihood(points):
    design, y = points
    rhos = np.array([-0.3, 0.1, 0.6])
    found = regress(design, y, GAP, rho=rhos)
    logs = []
    for rho in rhos:
        right = sm.GLS(y, design, sigma=dense(rho, GAP)).fit()
        inverse = np.linalg.inv(dense(rho, GAP))
        information = np.linalg.slogdet(design.T @ inverse @ design)[1]
        logs.append(0.5 * (np.linalg.slogdet(inverse)[1] - information - (N - 2) * np.log(right.ssr)))
    weight = np.exp(np.array(logs) - max(logs))
    np.testing.assert_allclose(found.weight, weight / weight.sum())


def test_quantiles_leave_the_asked_share_on_either_side(points):
    design, y = points
    found = regress(design, y, GAP)
    contrast = np.array([[1.0, -2.0], [0.0, 1.0]])
    centre = found.params @ contrast.T
    spread = np.sqrt(np.einsum("kp,jpq,kq->jk", contrast, found.cov, contrast))
    for end, share in zip(found.quantiles(contrast, 0.8), (0.1, 0.9), strict=True):
        np.testing.assert_allclose(found.weight @ stats.t.cdf((end - centre) / spread, N - 2), share)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_p_value_is_never_negative_and_keeps_its_digits(sign):
    """1 minus a probability near 1 is 0, or less: scipy's sf is not."""
    z = np.linspace(-1, 1, 40)
    y = sign * z + 1e-3 * np.cos(9 * np.arange(40))
    found = regress(np.stack((np.ones(40), z), 1), y, np.ones(40), rho=np.zeros(1))
    right = sm.OLS(y, np.stack((np.ones(40), z), 1)).fit()
    assert found.tail(np.array([0.0, 1.0])) == pytest.approx(right.pvalues[1], rel=1e-6, abs=0)
    assert 0 < right.pvalues[1] < 1e-60


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.7])
def test_the_prediction_of_new_points_is_the_best_linear_one(points, rho):
    design, y = points
    known = 9
    low, high = regress(design[:known], y[:known], GAP[:known], rho=np.array([rho])).predict(
        design[known:], GAP[known:], 0.95
    )
    right = sm.GLS(y[:known], design[:known], sigma=dense(rho, GAP[:known])).fit()
    all_ = dense(rho, GAP)
    pull = all_[known:, :known] @ np.linalg.inv(all_[:known, :known])
    centre = design[known:] @ right.params + pull @ right.resid
    rows = design[known:] - pull @ design[:known]
    fresh = right.scale * np.diag(all_[known:, known:] - pull @ all_[:known, known:])
    half = stats.t.ppf(0.975, known - 2) * np.sqrt(np.diag(rows @ right.cov_params() @ rows.T) + fresh)
    np.testing.assert_allclose(low, centre - half)
    np.testing.assert_allclose(high, centre + half)


def test_runs_are_independent_of_each_other(points):
    """Two runs, one after the other: an infinite gap between them, so which comes first does not matter."""
    design, y = points
    gap = GAP.copy()
    gap[5] = np.inf
    swapped = np.r_[5:N, 0:5]
    one, other = regress(design, y, gap), regress(design[swapped], y[swapped], gap[swapped])
    np.testing.assert_allclose(one.weight, other.weight)
    np.testing.assert_allclose(one.params, other.params)
    assert not np.allclose(one.params, regress(design, y, GAP).params)


def test_finds_the_correlation_of_many_points():
    rng = np.random.default_rng(0)
    noise = np.zeros(1500)
    for t in range(1, noise.size):
        noise[t] = 0.6 * noise[t - 1] + rng.normal()
    design = np.stack((np.ones(noise.size), np.linspace(-1, 1, noise.size)), 1)
    assert regress(design, noise, np.ones(noise.size)).autocorrelation == pytest.approx(0.6, abs=0.06)


def test_points_on_a_line_and_flat_points_have_no_width():
    design = np.stack((np.ones(6), np.arange(6) - 2.5), 1)
    for y in (design @ [3.0, 2.0], np.zeros(6)):
        low, high = regress(design, y, np.ones(6)).quantiles(np.eye(2), 0.95)
        assert np.all(high - low < 1e-10)
        assert np.all(high >= low)


def test_the_grid_of_rho_is_symmetric_and_stationary():
    np.testing.assert_allclose(RHO, -RHO[::-1])
    assert np.abs(RHO).max() < 1
