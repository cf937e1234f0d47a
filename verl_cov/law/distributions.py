"""scipy's distribution functions, under scipy's names, imported at the first call.

Recipes and training processes read logs through this package and have numpy only; scipy belongs to the extra `law`.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from verl_cov.law.fit import Array


def stdtr(df: ArrayLike, t: ArrayLike) -> Array:
    """Student's t: probability below `t`."""
    from scipy import special

    return special.stdtr(df, t)


def stdtrit(df: ArrayLike, p: ArrayLike) -> Array:
    """Student's t: the value below which the probability is `p`."""
    from scipy import special

    return special.stdtrit(df, p)


def fdtrc(above: ArrayLike, below: ArrayLike, f: ArrayLike) -> Array:
    """F distribution: probability above `f`."""
    from scipy import special

    return special.fdtrc(above, below, f)


def p_text(p: float) -> str:
    """A p-value in words: `p = 0.03`. Below 1e-15 float64 and the model behind it say no more than `p < 1e-15`."""
    return f"p = {p:.2g}" if p >= 1e-15 else "p < 1e-15"
