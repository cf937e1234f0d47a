import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from verl_cov.law import LawFit, fit

entropies = st.lists(st.floats(0.0, 6.0), min_size=3, max_size=40, unique=True)
coefficient = st.floats(-2.0, 2.0)


def spread(entropy: list[float]) -> float:
    return float(np.ptp(np.exp(entropy)))


@given(entropies, coefficient, coefficient)
def test_recovers_noise_free_coefficients(entropy, a, b):
    assume(spread(entropy) > 0.1 and len(set(np.exp(entropy))) >= 3)
    law = fit(entropy, b - a * np.exp(entropy))
    scale = 1e-9 * (1 + np.exp(max(entropy)) / spread(entropy))
    assert law.a == pytest.approx(a, abs=scale)
    assert law.b == pytest.approx(b, abs=scale * np.exp(max(entropy)))
    assert law.ceiling == law.b - law.a
    assert law.rmse < 1e-9
    assert law.n == len(entropy)
    if abs(a) > 1e-3:
        assert law.r2 == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(-1, 1)), min_size=3, max_size=30), st.randoms())
def test_order_of_the_points_does_not_matter_to_the_last_bit(points, random):
    assume(len({math.exp(h) for h, _ in points}) >= 3)
    shuffled = list(points)
    random.shuffle(shuffled)
    one, other = (fit(*zip(*order, strict=True)) for order in (points, shuffled))
    assert [one.a, one.b, one.rmse, one.n] == [other.a, other.b, other.rmse, other.n]
    assert one.r2 == other.r2 or (math.isnan(one.r2) and math.isnan(other.r2))


def test_agrees_with_numpys_least_squares_on_noisy_points():
    rng = np.random.default_rng(0)
    entropy = rng.uniform(0.05, 1.5, 50)
    score = 0.6 - 0.2 * np.exp(entropy) + rng.normal(0, 0.02, 50)
    law = fit(entropy, score)
    design = np.stack([-np.exp(entropy), np.ones(50)], 1)
    (a, b), residual, *_ = np.linalg.lstsq(design, score, rcond=None)
    assert (law.a, law.b) == pytest.approx((a, b))
    assert law.rmse == pytest.approx(math.sqrt(residual[0] / 50))
    assert law.r2 == pytest.approx(np.corrcoef(np.exp(entropy), score)[0, 1] ** 2)


def test_predict_keeps_the_shape():
    law = LawFit(a=0.2, b=0.6, ceiling=0.4, r2=1.0, rmse=0.0, n=3)
    assert isinstance(law.predict(0.0), float)
    assert law.predict([[0.0, 1.0]]).shape == (1, 2)


def test_scores_that_do_not_vary_have_no_r2():
    law = fit([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])
    assert law.a == 0
    assert law.b == 0.5
    assert math.isnan(law.r2)


@pytest.mark.parametrize(
    ("entropy", "score", "message"),
    [
        ([0.1, 0.2], [0.5, 0.6], "at least 3 points of distinct entropy, got 2"),
        ([0.1, 0.1, 0.1, 0.2], [1, 2, 3, 4], "got 2"),
        ([], [], "got 0"),
        ([0.1, 0.2, 0.3], [0.5, 0.6], "same length"),
        ([[0.1, 0.2, 0.3]], [[1, 2, 3]], "same length"),
        ([0.1, math.nan, 0.3], [1, 2, 3], r"entropy\[1\] is nan"),
        ([0.1, 0.2, 0.3], [1, 2, math.inf], r"score\[2\] is inf"),
        ([0.1, 0.2, 800.0], [1, 2, 3], "nats per token"),
    ],
)
def test_refuses_what_cannot_be_fitted(entropy, score, message):
    with pytest.raises(ValueError, match=message):
        fit(entropy, score)


def test_the_law_imports_neither_verl_nor_torch_nor_matplotlib_nor_statsmodels():
    heavy = {"verl", "torch", "matplotlib", "statsmodels", "pandas"}
    code = "import sys; from verl_cov.law import estimate, fit; points = [.3, .2, .1], [.1, .2, .3]; fit(*points); "
    code += f"estimate(*points); print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
