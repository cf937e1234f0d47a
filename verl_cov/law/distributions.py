"""scipy's distribution functions, by scipy's names, loaded at the first call.

The recipes and the trainer's processes read logs through this package: for that numpy is enough (scipy is in the extra
`law`).
"""

from __future__ import annotations

from typing import Any


def stdtr(df: Any, t: Any) -> Any:
    """Student's distribution function."""
    from scipy import special

    return special.stdtr(df, t)


def stdtrit(df: Any, p: Any) -> Any:
    """Its inverse."""
    from scipy import special

    return special.stdtrit(df, p)


def fdtrc(above: Any, below: Any, f: Any) -> Any:
    """The upper tail of the F distribution."""
    from scipy import special

    return special.fdtrc(above, below, f)
