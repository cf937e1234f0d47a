"""A straight line through points whose noise remembers itself: intervals that stay honest with few points.

Successive validations of a run share a policy, so their noise is autocorrelated, while the regressor, exp(H), only
falls. Sandwich errors (Newey-West) need many points for that: at 20 points they cover 70 to 91 % where they claim 95
(:func:`verl_cov.law.estimate.estimate`). Here the noise is a stationary AR(1) whose coefficient rho is not estimated
and then believed, but averaged over: given rho, generalised least squares is exact and its errors are Student's t
with n - 2 degrees of freedom; the restricted likelihood of the residuals (Harville 1974, doi:10.1093/biomet/61.2.383)
says how well each rho fits; the answer is the mixture of those t distributions, rho being uniform on [-0.95, 0.95]
beforehand. There is no optimiser in it, so there is one answer.

Where the steps are unevenly spaced the correlation across a gap g (1: the usual spacing) is sign(rho) |rho|^g.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verl_cov.law.distributions import stdtr, stdtrit

Array = NDArray[np.float64]

RHO = np.linspace(-0.95, 0.95, 96)
_BISECTIONS = 45  # the bracket, a few standard errors wide, shrinks by 2^45: float64 has no more to give
_NEGLIGIBLE = 1e-9  # weight below which a component moves no quantile that anyone prints


@dataclass(frozen=True)
class Mixture:
    """What the points say about linear functions of the coefficients: Student's t for each rho, and a weight.

    weight: [J], sums to 1. rho: [J]. params: [J, p]. cov: [J, p, p], squared scales. scale: [J], of the noise.
    last: [J], residual of the last point. last_row: [p], its design. df: degrees of freedom.
    """

    weight: Array
    rho: Array
    params: Array
    cov: Array
    scale: Array
    last: Array
    last_row: Array
    df: int

    def quantiles(self, contrasts: Array, level: float) -> tuple[Array, Array]:
        """(low, high), each [K], of the functions contrasts [K, p] @ params: the central interval of probability
        `level`."""
        centre, spread = self._components(contrasts)
        return self._mix(centre, spread, level)

    def predict(self, contrasts: Array, gap: Array, level: float) -> tuple[Array, Array]:
        """(low, high), each [K], of the points that follow the last one, with design rows `contrasts` [K, p].

        gap: [K], spacings from each to the one before. The law is uncertain, each point has noise of its own, and of
        the last residual something is left.
        """
        phi = np.cumprod(correlation(self.rho, gap), axis=1)  # [J, K]
        # The new point is x'beta + phi u_last + fresh noise, and u_last = y_last - x_last'beta holds beta too.
        rows = contrasts[None] - phi[..., None] * self.last_row
        centre = np.einsum("kp,jp->jk", contrasts, self.params) + phi * self.last[:, None]
        variance = np.einsum("jkp,jpq,jkq->jk", rows, self.cov, rows) + (1 - phi**2) * self.scale[:, None] ** 2
        return self._mix(centre, np.sqrt(variance), level)

    def standard_error(self, contrasts: Array) -> Array:
        """[K] standard errors: root mean square over rho, plus the spread between the centres."""
        centre, spread = self._components(contrasts)
        mean = self.weight @ centre
        return np.sqrt(self.weight @ (spread**2 + (centre - mean) ** 2))

    def tail(self, contrast: Array) -> float:
        """Two-sided p-value of contrast @ params = 0."""
        centre, spread = self._components(contrast[None])
        below = float(self.weight @ stdtr(self.df, -centre[:, 0] / spread[:, 0]))
        return 2 * min(below, 1 - below)

    def covariance(self) -> Array:
        """[p, p] covariance of the coefficients, on the scale of `standard_error`."""
        away = self.params - self.weight @ self.params
        return np.einsum("j,jpq->pq", self.weight, self.cov + away[:, :, None] * away[:, None, :])

    @property
    def autocorrelation(self) -> float:
        """Mean of rho given the points."""
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
    """[J, K] correlation of the noise across each gap [K], for each rho [J]; 0 across an infinite gap."""
    return np.sign(rho)[:, None] * np.abs(rho)[:, None] ** gap


def regress(design: Array, y: Array, gap: Array, *, rho: Array = RHO) -> Mixture:
    """Regress y [n] on design [n, p], n > p, under AR(1) noise.

    gap: [n], spacings since the previous point, inf where a new run starts (gap[0] is not looked at). The columns of
    the design should be of order one. Source: see the module.
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
    # Points that lie on the line leave rounding errors: they must not choose a rho, or divide by zero.
    squares = np.maximum(squares, n * (1e-13 * max(float(np.abs(y).max()), 1e-100)) ** 2)
    log_weight = -np.log(fresh).sum(1) - 0.5 * np.linalg.slogdet(information)[1] - 0.5 * (n - p) * np.log(squares)
    weight = np.exp(log_weight - log_weight.max())
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
        df=n - p,
    )
