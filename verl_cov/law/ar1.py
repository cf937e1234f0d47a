"""Linear regression under autocorrelated noise, with intervals that keep their promise for few points.

Successive validations of a run share most of a policy, so their noise is autocorrelated, while the regressor, exp(H),
only falls. The noise is modelled as a stationary AR(1). Its coefficient rho is not estimated and then taken for true,
but averaged over: given rho, generalised least squares is exact and its errors are Student's t with n - p degrees of
freedom; the restricted likelihood of the residuals (Harville 1974, doi:10.1093/biomet/61.2.383) weighs each rho; the
result is the mixture of those t distributions under a uniform prior of rho on [-0.95, 0.95]. No optimiser is involved,
so there is one answer.

If the steps are unevenly spaced, the correlation across a gap g (1: the usual spacing) is sign(rho) |rho|^g.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verl_cov.law.distributions import stdtr, stdtrit
from verl_cov.law.fit import Array

RHO = np.linspace(-0.95, 0.95, 96)
_BISECTIONS = 45  # shrinks the bracket, a few standard errors wide, by 2^45: to the precision of float64
_NEGLIGIBLE = 1e-9  # relative weight below which a component moves no printed digit of a quantile


@dataclass(frozen=True)
class Mixture:
    """Posterior of the coefficients: one Student's t for each of J values of rho, with a weight.

    weight: [J], sums to 1. rho: [J]. params: [J, p], coefficients. cov: [J, p, p], their squared scales. scale: [J], of
    the noise. last: [J], residual of the last point. last_row, last_value: [p] and a number, its row of the design
    and its y. df: degrees of freedom. evidence: log of the restricted likelihood, averaged over rho, but for a constant
    of y and n.
    """

    weight: Array
    rho: Array
    params: Array
    cov: Array
    scale: Array
    last: Array
    last_row: Array
    last_value: float
    df: int
    evidence: float

    def quantiles(self, contrasts: Array, level: float) -> tuple[Array, Array]:
        """Central intervals (low, high), each [K], of contrasts [K, p] @ params, with probability `level`."""
        centre, spread = self._components(contrasts)
        return self._mix(centre, spread, level)

    def predict(self, contrasts: Array, gap: Array, level: float) -> tuple[Array, Array]:
        """Prediction intervals (low, high), each [K], of the points after the last one, with design rows [K, p].

        gap: [K], spacing from each point to the one before it. The intervals include the uncertainty of the
        coefficients, each new point's noise, and what remains of the last residual.
        """
        phi = np.cumprod(correlation(self.rho, gap), axis=1)  # [J, K]
        # The new point is x'beta + phi u_last + fresh noise, and u_last = y_last - x_last'beta holds beta too.
        rows = contrasts[None] - phi[..., None] * self.last_row
        centre = np.einsum("kp,jp->jk", contrasts, self.params) + phi * self.last[:, None]
        variance = np.einsum("jkp,jpq,jkq->jk", rows, self.cov, rows) + (1 - phi**2) * self.scale[:, None] ** 2
        return self._mix(centre, np.sqrt(variance), level)

    def standard_error(self, contrasts: Array) -> Array:
        """Standard errors [K] of contrasts [K, p] @ params: mean variance over rho plus variance of the centres."""
        centre, spread = self._components(contrasts)
        mean = self.weight @ centre
        return np.sqrt(self.weight @ (spread**2 + (centre - mean) ** 2))

    def tail(self, contrast: Array) -> float:
        """Two-sided p-value of the hypothesis contrast [p] @ params = 0."""
        centre, spread = self._components(contrast[None])
        # Each tail by itself: 1 minus the other would round to 0, or below it.
        return 2 * min(float(self.weight @ stdtr(self.df, sign * centre[:, 0] / spread[:, 0])) for sign in (-1, 1))

    def mean(self) -> Array:
        """Posterior mean [p] of the coefficients: their estimate."""
        return self.weight @ self.params

    def covariance(self) -> Array:
        """Covariance [p, p] of the coefficients, on the scale of `standard_error`."""
        away = self.params - self.mean()
        return np.einsum("j,jpq->pq", self.weight, self.cov + away[:, :, None] * away[:, None, :])

    @property
    def autocorrelation(self) -> float:
        """Posterior mean of rho."""
        return float(self.weight @ self.rho)

    def _components(self, contrasts: Array) -> tuple[Array, Array]:
        centre = np.einsum("kp,jp->jk", contrasts, self.params)
        return centre, np.sqrt(np.maximum(np.einsum("kp,jpq,kq->jk", contrasts, self.cov, contrasts), 1e-300))

    def _mix(self, centre: Array, spread: Array, level: float) -> tuple[Array, Array]:
        ends = []
        for tail in ((1 - level) / 2, (1 + level) / 2):
            each = centre + stdtrit(self.df, tail) * spread
            low, high = each.min(0), each.max(0)  # a mixture's quantile lies between those of its components
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                less = self.weight @ stdtr(self.df, (middle - centre) / spread) < tail
                low, high = np.where(less, middle, low), np.where(less, high, middle)
            ends.append((low + high) / 2)
        return ends[0], ends[1]


def correlation(rho: Array, gap: Array) -> Array:
    """Correlation [J, K] of the noise across each gap [K] for each rho [J]; 0 across an infinite gap."""
    return np.sign(rho)[:, None] * np.abs(rho)[:, None] ** gap


def regress(design: Array, y: Array, gap: Array, *, rho: Array = RHO) -> Mixture:
    """Regress y [n] on the columns of design [n, p], n > p, under AR(1) noise. Source: see the module.

    gap: [n], spacing since the previous point, inf where a new run starts (gap[0] is ignored). rho: [J], the grid to
    average over. The columns of the design should be of order one.
    """
    n, p = design.shape
    gap = np.concatenate(([np.inf], gap[1:]))
    phi = correlation(rho, gap)
    fresh = np.sqrt(1 - phi**2)
    columns = np.concatenate((design, y[:, None]), axis=1)
    before = np.concatenate((np.zeros((1, p + 1)), columns[:-1]))
    white = (columns - phi[..., None] * before) / fresh[..., None]  # [J, n, p + 1]
    x, z = white[..., :p], white[..., p]
    information = np.einsum("jnp,jnq->jpq", x, x)
    inverse = np.linalg.inv(information)
    params = np.einsum("jpq,jnq,jn->jp", inverse, x, z)
    squares = ((z - np.einsum("jnp,jp->jn", x, params)) ** 2).sum(1)
    # Points exactly on the line leave rounding errors only: these must neither choose a rho nor be divided by.
    squares = np.maximum(squares, n * (1e-13 * max(float(np.abs(y).max()), 1e-100)) ** 2)
    log_weight = -np.log(fresh).sum(1) - 0.5 * np.linalg.slogdet(information)[1] - 0.5 * (n - p) * np.log(squares)
    weight = np.exp(log_weight - log_weight.max())
    evidence = float(log_weight.max() + np.log(weight.mean()))
    keep = weight > _NEGLIGIBLE
    weight, squares, inverse, params = weight[keep], squares[keep], inverse[keep], params[keep]
    variance = squares / (n - p)
    return Mixture(
        weight=weight / weight.sum(),
        rho=rho[keep],
        params=params,
        cov=inverse * variance[:, None, None],
        scale=np.sqrt(variance),
        last=y[-1] - params @ design[-1],
        last_row=design[-1],
        last_value=float(y[-1]),
        df=n - p,
        evidence=evidence,
    )
