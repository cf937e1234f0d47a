"""Tests whether several runs share one law. In the paper (arXiv 2505.22617, Fig. 6) four RL algorithms do.

Equal (a, b) are tested by a Wald test with each run's own covariance under AR(1) noise (:mod:`verl_cov.law.ar1`). The
F-test of one line against a line for each run is not offered: it takes neighbouring validations for independent, and
then reports differences that do not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from verl_cov.law.ar1 import regress
from verl_cov.law.distributions import fdtrc
from verl_cov.law.fit import Array, Interval, fit
from verl_cov.law.series import Series, line_of, series

_PAIRS_AT_ONCE = 50_000  # 40 MB of working memory, however many runs

# (entropy, score) or (entropy, score, steps), each [n].
Columns: TypeAlias = tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike]


@dataclass(frozen=True)
class Comparison:
    """The laws of G runs side by side.

    names: of the runs. a, b, ceiling: one interval for each run. wald, wald_p: statistic (on the scale of F) and
    p-value of the joint Wald test. pair_p: [G, G], Wald p-value of each pair, 1 on the diagonal. pair_p_holm: the same,
    corrected for the number of pairs (Holm 1979). overlap: [G, G], whether two runs' intervals overlap in both a and b.
    Runs without overlap differ; runs with overlap may differ too: the test decides.
    """

    names: tuple[str, ...]
    a: tuple[Interval, ...]
    b: tuple[Interval, ...]
    ceiling: tuple[Interval, ...]
    wald: float
    wald_p: float
    pair_p: Array
    pair_p_holm: Array
    overlap: NDArray[np.bool_]


def compare(runs: Mapping[str, Columns], *, level: float = 0.95) -> Comparison:
    """Compare the laws of runs, given as {name: columns}; columns as in `estimate`.

    Raises ValueError: as `estimate` does, with the run's name, or there are fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError(f"a comparison needs at least two runs, got {len(runs)}")
    checked: dict[str, Series] = {}
    for name, columns in runs.items():
        try:
            fit(*columns[:2])  # checks the values
            checked[name] = series(*columns)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    # One scaling for all runs makes their coefficients comparable and the matrices well conditioned.
    line = line_of(np.concatenate([points.x for points in checked.values()]))
    params, covs, laws, dfs = [], [], [], []
    for points in checked.values():
        # Each run is regressed on its own scale: on the common one, a run whose entropy hardly moves is a spike.
        own = line_of(points.x)
        mixture = regress(own.design(points.x), points.score, points.gap)
        ends = mixture.quantiles(own.coefficients(), level)
        laws.append((own.coefficients() @ mixture.mean(), mixture.standard_error(own.coefficients()), *ends))
        # (c0, c1) on the common scale: the law at its centre, and its slope times its width.
        change = np.stack(
            (own.contrast(line.centre), own.contrast(line.centre + line.width) - own.contrast(line.centre))
        )
        params.append(change @ mixture.mean())
        covs.append(change @ mixture.covariance() @ change.T)
        dfs.append(mixture.df)
    theta, cov, df = np.array(params), np.array(covs), np.array(dfs, dtype=np.float64)

    intervals = {
        key: tuple(Interval(*(float(column[i]) for column in law)) for law in laws)
        for i, key in enumerate(("a", "b", "ceiling"))
    }
    wald, wald_p = _wald(theta, cov, df)
    pairs = _pairs(theta, cov, df)
    return Comparison(
        names=tuple(checked),
        **intervals,
        wald=float(wald),
        wald_p=float(wald_p),
        pair_p=pairs,
        pair_p_holm=_holm(pairs),
        overlap=_overlap(intervals["a"]) & _overlap(intervals["b"]),
    )


def _wald(theta: Array, cov: Array, df: Array) -> tuple[Array, Array]:
    """Test whether G vectors theta [..., G, p] of covariances cov [..., G, p, p] are equal: (statistic, p), each [...].

    df: [..., G], degrees of freedom. The weighted squares about the weighted mean are compared with F by the
    Welch-James approximation (Johansen 1980, doi:10.1093/biomet/67.1.85); with few degrees of freedom a comparison with
    chi-squared would call too many differences real.
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
    """[G, G] p-values corrected for all pairs.

    (statsmodels' multipletests runs the garbage collector first, which takes longer than the rest of a comparison.)
    """
    upper = np.triu_indices(len(p), 1)
    each = p[upper]
    order = np.argsort(each)
    stepped = np.maximum.accumulate(each[order] * np.arange(each.size, 0, -1))
    out = np.ones_like(p)
    out[upper[0][order], upper[1][order]] = out[upper[1][order], upper[0][order]] = np.minimum(stepped, 1.0)
    return out


def _overlap(intervals: tuple[Interval, ...]) -> NDArray[np.bool_]:
    low, high = np.array([i.low for i in intervals]), np.array([i.high for i in intervals])
    return (low[:, None] <= high) & (low <= high[:, None])
