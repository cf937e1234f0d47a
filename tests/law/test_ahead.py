"""What comes later: the extrapolated entropy, the score at a later step, and the descriptions beside the law."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import curve_fit

from benchmarks.law_coverage import A, B, simulate, stands
from verl_cov.law import ahead, headline, rank
from verl_cov.law.ahead import draw
from verl_cov.law.alternatives import LAW, verdict
from verl_cov.law.decay import coefficients, decay, walk
from verl_cov.law.series import series

RNG = np.random.default_rng
STEPS = np.arange(60) * 4.0


def power_run(n=60, noise=0.02, seed=0):
    """(steps, entropy, score) of a run whose entropy falls as a power to a floor of 0.05."""
    rng = RNG(seed)
    entropy = (0.05 + 0.6 / (1 + np.arange(n) / 6)) * np.exp(rng.normal(0, noise, n))
    return STEPS[:n], entropy, B - A * np.exp(entropy) + rng.normal(0, 0.005, n)


def test_the_entropy_of_an_exponential_is_that_of_scipys_fit():
    rng = RNG(1)
    steps, entropy = STEPS[:40], (0.05 + 0.6 * np.exp(-STEPS[:40] / 50)) * np.exp(rng.normal(0, 0.01, 40))

    def curve(t, floor, fall, tau):
        return floor + fall * np.exp(-t / tau)

    right, _ = curve_fit(curve, steps, entropy, (0.1, 0.5, 60), sigma=curve(steps, 0.05, 0.6, 50))
    draws = decay(steps, entropy, np.ones(40)).draw(np.array([180.0, 236.0]), 4000, RNG(0))
    assert draws.decays
    np.testing.assert_allclose(np.median(draws.level, axis=0), curve(np.array([180.0, 236.0]), *right), rtol=0.1)
    np.testing.assert_allclose(np.median(draws.now), curve(steps[-1], *right), rtol=0.02)


def test_draws_of_coefficients_are_the_regressions():
    """Means, quantiles and the walk of the noise, against the mixture's own formulas."""
    steps, entropy, score = power_run()
    points = series(entropy, score, steps)
    (mixture, *_) = decay(steps, entropy, points.gap).mixtures
    beta, rho, _ = coefficients(mixture, 40_000, RNG(0))
    low, high = mixture.quantiles(np.eye(2), 0.9)
    np.testing.assert_allclose(np.quantile(beta, [0.05, 0.95], axis=0), [low, high], rtol=0.03, atol=1e-3)
    assert rho.mean() == pytest.approx(mixture.autocorrelation, abs=0.01)
    noise = walk(np.full(40_000, 2.0), np.full(40_000, 0.5), np.ones((40_000, 2)), np.array([1.0, 2.0]), RNG(0))
    np.testing.assert_allclose(noise.mean(0), [1.0, 0.25], atol=0.02)
    np.testing.assert_allclose(noise.std(0), np.sqrt([1 - 0.25, 1 - 0.125**2]), atol=0.02)


def test_a_run_is_placed_at_a_later_step():
    steps, entropy, score = power_run()
    there = ahead(steps[:40], entropy[:40], score[:40], to=steps[-1])
    for found, real in ((there.entropy, entropy[-1]), (there.score, score[-1])):
        assert found.low < real < found.high
        assert found.low < found.value < found.high
    truth = A * (np.exp(0.05 + 0.6 / (1 + 39 / 6)) - np.exp(0.05 + 0.6 / (1 + 59 / 6)))
    assert there.gain.low < there.gain.value < there.gain.high
    assert there.gain.value == pytest.approx(truth, rel=0.25)
    assert there.gain.high - there.gain.low < there.score.high - there.score.low
    assert there.warnings == ()
    assert ahead(steps[:40], entropy[:40], score[:40], to=steps[-1]) == there  # the draws are seeded
    order = RNG(0).permutation(40)
    assert ahead(steps[order], entropy[order], score[order], to=steps[-1]) == there


def test_it_is_honest_when_it_says_nothing():
    steps, entropy, score = power_run()
    few = ahead(steps[:7], entropy[:7], score[:7] + RNG(0).normal(0, 0.2, 7), to=236)
    assert any("says nothing" in warning for warning in few.warnings)
    assert any("farther away" in warning for warning in few.warnings)
    faster = 1 - 0.6 * (np.arange(30) / 30) ** 2  # falls ever faster: to no floor
    guess = ahead(STEPS[:30], faster, B - A * np.exp(faster), to=180)
    assert any("does not decay" in warning for warning in guess.warnings)
    assert guess.entropy.low >= 0
    with pytest.raises(ValueError, match="at least 6 points, got 5"):
        ahead(steps[:5], entropy[:5], score[:5], to=300)
    with pytest.raises(ValueError, match="step 236 is not after the last pair of score and entropy, at step 236"):
        ahead(steps, entropy, score, to=236)
    with pytest.raises(ValueError, match="above 0"):
        ahead(steps, entropy - 0.2, score, to=300)


def test_the_score_at_a_later_step_lies_in_its_interval():
    """A small version of the table in benchmarks/law_coverage.py."""
    coverage = [stands(30, n, share, 0.3)["held"][0] for n in (20, 60) for share in (0.5,)]
    assert 0.86 < np.mean(coverage) <= 1


def curved(degree):
    entropy = np.linspace(1.2, 0.1, 60)
    x = np.exp(entropy)
    return entropy, 0.8 - 0.15 * x - (0.15 * (x - 2) ** 2 if degree == 2 else 0)


COMPUTE = np.maximum(STEPS, 1e-6)
WAVE = 0.3 + 0.1 * np.sin(np.arange(60) / 3)
TRUTHS = {
    LAW: (WAVE, B - A * np.exp(WAVE)),
    "a quadratic in exp(H)": (WAVE, 0.9 - (np.exp(WAVE) - 1.2) ** 2),
    "a sigmoid in compute": (WAVE, 0.1 + 0.5 / (1 + (40 / COMPUTE) ** 2)),
    "a power law in compute": (WAVE, 1 - 0.7 * (COMPUTE / 236 + 0.1) ** -0.2),
    "no change": (WAVE, 0.5 + np.cumsum(RNG(8).normal(0, 0.02, 60))),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_the_description_that_made_a_run_predicts_it_best(name):
    entropy, score = TRUTHS[name]
    ranked = rank(STEPS, entropy, score + RNG(5).normal(0, 0.003, 60))
    assert [one.error for one in ranked] == sorted(one.error for one in ranked)
    assert len(ranked) == 6
    assert ranked[0].name == name
    assert ranked[0].error == pytest.approx(np.median(ranked[0].errors))
    said = verdict(ranked)
    assert name.lower() in said.lower()


def test_the_law_and_its_extrapolation_are_both_back_tested():
    steps, entropy, score = power_run()
    ranked = {one.name: one for one in rank(steps, entropy, score)}
    assert ranked[LAW].needs == "entropy"
    extrapolated = ranked["the law with extrapolated entropy"]
    assert extrapolated.needs == "step"
    assert extrapolated.error < ranked["no change"].error / 2
    k = 30
    points = series(entropy, score, steps)
    scores = draw(steps[:k], entropy[:k], score[:k], points.gap[:k], steps[k:], count=500)[0]
    by_hand = np.sqrt(np.mean((np.median(scores, axis=0) - score[k:]) ** 2))
    assert by_hand == pytest.approx(extrapolated.errors[-2])


def test_a_run_exactly_on_the_law_is_the_laws():
    """Rounding errors rank nothing: the quadratic, which is as exact, is not called better."""
    _, entropy, _ = power_run(noise=0)
    ranked = rank(STEPS, entropy, B - A * np.exp(entropy))
    assert (ranked[0].name, ranked[0].error) == (LAW, 0)


def test_no_change_is_the_last_score():
    steps, entropy, score = power_run()
    (stays,) = (one for one in rank(steps, entropy, score, fractions=(0.5,)) if one.name == "no change")
    assert stays.error == pytest.approx(np.sqrt(np.mean((score[29] - score[30:]) ** 2)))


@pytest.mark.parametrize("n", [3, 5, 6, 7, 8])
def test_short_runs_have_a_ranking_or_a_reason(n):
    ranked = rank(*(column[:n] for column in power_run()))
    assert bool(ranked) == (n >= 8)
    assert ("Too few points" in verdict(ranked)) == (n < 8)


def test_percent_and_odd_units_are_ranked_alike():
    steps, entropy, score = power_run()
    plain = {one.name: one.error for one in rank(steps, entropy, score)}
    percent = {one.name: one.error / 100 for one in rank(steps, entropy, 100 * score)}
    assert percent == pytest.approx(plain, rel=1e-3)
    assert len(rank(steps, entropy, 10 * score - 50)) == 6


def test_the_headline_shares_are_those_of_the_truth():
    """73 % and 94 % of the entropy for an exponential; the gain's shares by the law."""
    n = 49
    steps = np.arange(n) * 4.0
    entropy = 0.02 + 0.6 * np.exp(-np.arange(n) / 3)
    score = B - A * np.exp(entropy) + RNG(0).normal(0, 0.004, n)
    early, later = headline(steps, entropy * np.exp(RNG(1).normal(0, 0.01, n)), score)
    assert (early.fraction, later.fraction) == (1 / 12, 1 / 3)
    for shares, at in ((early, 4), (later, 16)):
        for found, values in ((shares.entropy, entropy), (shares.gain, -np.exp(entropy))):
            truth = (values[at] - values[0]) / (values[-1] - values[0])
            assert found.low < truth < found.high
            assert 0 < found.se < 0.1


def test_the_noise_of_the_shares_is_that_of_repeated_runs():
    entropy = 0.02 + 0.6 * np.exp(-np.arange(49) / 12)
    found = []
    for seed in range(80):
        score = B - A * np.exp(entropy) + RNG(seed).normal(0, 0.01, 49)
        found.append(headline(np.arange(49), entropy, score)[0].gain)
    spread = np.std([share.value for share in found])
    assert np.mean([share.se for share in found]) == pytest.approx(spread, rel=0.25)
    truth = (np.exp(entropy[0]) - np.exp(entropy[4])) / (np.exp(entropy[0]) - np.exp(entropy[-1]))
    assert np.mean([share.low < truth < share.high for share in found]) > 0.89


def test_what_did_not_change_has_no_shares():
    rng = RNG(0)
    entropy, score = 0.3 + rng.normal(0, 0.01, 30), 0.5 + rng.normal(0, 0.01, 30)
    for shares in headline(np.arange(30), entropy, score):
        assert shares.entropy is None
        assert shares.gain is None
    assert headline(np.arange(5), np.linspace(1, 0.1, 5), np.arange(5.0)) == ()
    rising = headline(np.arange(30), np.linspace(0.1, 1, 30), np.linspace(0.1, 1, 30))
    assert rising[0].entropy is None  # nothing was consumed


def test_an_interval_of_a_share_is_students():
    n = 20
    entropy, score = simulate(RNG(0), n, 0.0)
    gain = headline(np.arange(n), entropy, score, level=0.9)[1].gain
    assert (gain.high - gain.value) / gain.se == pytest.approx(stats.t.ppf(0.95, n - 2))
