"""Checks the signatures of ``verl_cov.core`` in the tests: beartype, which accepts an int for a float as mypy does."""

from __future__ import annotations

from collections.abc import Callable

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable) -> Callable:
    # PrimeConfig is built from what users write and refuses wrong types itself: that is what its tests test.
    return function if function.__module__ == "verl_cov.core.prime.prime_config" else _check(function)
