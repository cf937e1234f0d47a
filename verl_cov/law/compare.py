"""Do several runs share one law? In the paper (arXiv 2505.22617, Fig. 6) four RL algorithms do, two data sets do not.

Two tests of equal (a, b): the F-test of one line against a line for each run, exact where the noise is independent and
of one size in all runs; and a Wald test with each run's own covariance under AR(1) noise (:mod:`verl_cov.law.ar1`),
which is the one to read: neighbouring validations are not independent, and the F-test then finds differences that are
none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verl_cov.law.ar1 import Array, regress
from verl_cov.law.distributions import fdtrc
from verl_cov.law.estimate import Interval, Series, line_of, series
from verl_cov.law.fit import fit

_PAIRS_AT_ONCE = 50_000  # 40 MB of working memory, however many runs


@dataclass(frozen=True)
class Comparison:
    """The laws of G runs beside each other.

    names: G names. a, b, ceiling: one interval a run. f, f_p: statistic and p-value of the joint F-test. wald, wald_p:
    of the joint Wald test, in the scale of F. pair_p: [G, G], Wald p-value of each pair, 1 on the diagonal.
    pair_p_holm: the same, corrected for the number of pairs (Holm 1979). overlap: [G, G], whether the intervals of a
    meet and those of b meet too. Intervals that do not meet differ; those that meet may differ still: the test decides.
    """

    names: tuple[str, ...]
    a: tuple[Interval, ...]
    b: tuple[Interval, ...]
    ceiling: tuple[Interval, ...]
    f: float
    f_p: float
    wald: float
    wald_p: float
    pair_p: Array
    pair_p_holm: Array
    overlap: NDArray[np.bool_]


def compare(runs: Mapping[str, tuple[Any, ...]], *, level: float = 0.95) -> Comparison:
    """Compare the laws of runs: {name: (entropy, score) or (entropy, score, steps)}, each [n] (see `estimate`).

    Raises ValueError, with the run's name: as `estimate` does. Also for fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError(f"a comparison needs at least two runs, got {len(runs)}")
    checked: dict[str, Series] = {}
    laws = []
    for name, columns in runs.items():
        try:
            laws.append(fit(columns[0], columns[1]))
            checked[name] = series(*columns)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    # One line standardises all runs, so that their coefficients are comparable and the matrices well conditioned.
    line = line_of(np.concatenate([points.x for points in checked.values()]))
    params, covs, spans, errors, dfs = [], [], [], [], []
    for points in checked.values():
        # Each run is regressed on its own scale: a run whose entropy hardly moves is a spike on the common one.
        own = line_of(points.x)
        mixture = regress(own.design(points.x), points.score, points.gap)
        spans.append(mixture.quantiles(own.coefficients(), level))
        errors.append(mixture.standard_error(own.coefficients()))
        # (c0, c1) on the common scale: the law at its centre, and its slope times its width.
        change = np.stack(
            (own.contrast(line.centre), own.contrast(line.centre + line.width) - own.contrast(line.centre))
        )
        params.append(change @ (mixture.weight @ mixture.params))
        covs.append(change @ mixture.covariance() @ change.T)
        dfs.append(mixture.df)
    theta, cov, df = np.array(params), np.array(covs), np.array(dfs, dtype=np.float64)

    intervals = {
        key: tuple(
            Interval(getattr(law, key), float(se[i]), float(low[i]), float(high[i]))
            for law, se, (low, high) in zip(laws, errors, spans, strict=True)
        )
        for i, key in enumerate(("a", "b", "ceiling"))
    }
    f, f_p = _f_test(list(checked.values()))
    wald, wald_p = _wald(theta, cov, df)
    pairs = _pairs(theta, cov, df)
    return Comparison(
        names=tuple(checked),
        **intervals,
        f=f,
        f_p=f_p,
        wald=float(wald),
        wald_p=float(wald_p),
        pair_p=pairs,
        pair_p_holm=_holm(pairs),
        overlap=_meet(intervals["a"]) & _meet(intervals["b"]),
    )


def _f_test(runs: list[Series]) -> tuple[float, float]:
    pooled = fit(np.concatenate([r.entropy for r in runs]), np.concatenate([r.score for r in runs]))
    one = pooled.n * pooled.rmse**2
    each = sum(r.score.size * fit(r.entropy, r.score).rmse ** 2 for r in runs)
    above, below = 2 * (len(runs) - 1), pooled.n - 2 * len(runs)
    floor = pooled.n * (1e-13 * max(float(np.abs(np.concatenate([r.score for r in runs])).max()), 1e-100)) ** 2
    f = max(one - each, 0.0) / above / (max(each, floor) / below)
    return float(f), float(fdtrc(above, below, f))


def _wald(theta: Array, cov: Array, df: Array) -> tuple[Array, Array]:
    """(statistic, p-value), each [...]: are the G vectors theta [..., G, p], of covariances cov [..., G, p, p], equal?

    Weighted squares about the weighted mean, against F by the Welch-James approximation (Johansen 1980,
    doi:10.1093/biomet/67.1.85): against chi-squared, with few degrees of freedom df [..., G], much would look real.
    """
    runs, p = theta.shape[-2:]
    weight = np.linalg.inv(cov)
    mean = np.linalg.inv(weight.sum(-3)) @ np.einsum("...gpq,...gq->...p", weight, theta)[..., None]
    away = theta - mean[..., None, :, 0]
    square = np.einsum("...gp,...gpq,...gq->...", away, weight, away)
    rest = np.eye(p) - np.linalg.inv(weight.sum(-3))[..., None, :, :] @ weight
    traces = np.einsum("...gpq,...gqp->...g", rest, rest) + np.einsum("...gpp->...g", rest) ** 2
    spare = (traces / (2 * df)).sum(-1)
    above = p * (runs - 1)
    statistic = square / (above + 2 * spare - 6 * spare / (above + 2))
    return statistic, fdtrc(above, above * (above + 2) / (3 * spare), statistic)


def _pairs(theta: Array, cov: Array, df: Array) -> Array:
    """[G, G] p-values of theta[i] = theta[j]; 1 on the diagonal."""
    first, second = np.triu_indices(len(theta), 1)
    out = np.ones((len(theta), len(theta)))
    for part in np.array_split(np.arange(first.size), -(-first.size // _PAIRS_AT_ONCE)):
        pair = np.stack((first[part], second[part]), axis=1)
        out[pair[:, 0], pair[:, 1]] = out[pair[:, 1], pair[:, 0]] = _wald(theta[pair], cov[pair], df[pair])[1]
    return out


def _holm(p: Array) -> Array:
    """[G, G] p-values corrected for all pairs (statsmodels' multipletests does it too, and collects garbage first: more
    time than the rest of a comparison)."""
    upper = np.triu_indices(len(p), 1)
    each = p[upper]
    order = np.argsort(each)
    stepped = np.maximum.accumulate(each[order] * np.arange(each.size, 0, -1))
    out = np.ones_like(p)
    out[upper[0][order], upper[1][order]] = out[upper[1][order], upper[0][order]] = np.minimum(stepped, 1.0)
    return out


def _meet(intervals: tuple[Interval, ...]) -> NDArray[np.bool_]:
    low, high = np.array([i.low for i in intervals]), np.array([i.high for i in intervals])
    return (low[:, None] <= high) & (low <= high[:, None])
