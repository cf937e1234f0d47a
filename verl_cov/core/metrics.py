"""Computes the metrics of one optimizer step; :mod:`.metric_table` explains each key. Knows nothing about verl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from verl_cov.core.metric_table import LADDER, PREFIX, ladder_key
from verl_cov.core.selection import Totals
from verl_cov.core.update_kinds import UPDATE_KINDS

# Means are rounded to 2^-24: a mean covariance below this is rounding error.
_ROUNDING = 1e-6


def update_metrics(
    totals: Totals, level: str, ladder: Sequence[float] | None = None, selected: bool = False, threshold: bool = False
) -> dict[str, float]:
    """Computes the metrics of one optimizer step, the same on every rank, as {key without the prefix: value}.

    Args:
        totals: of the mini-batch.
        level: ``cov_metrics``.
        ladder: :func:`verl_cov.core.selection.largest_means` of :data:`LADDER`, with level "full".
        selected: True if a control selected tokens.
        threshold: True if it selected the largest covariances of the mini-batch.
    """
    tokens = max(totals.tokens, 1)
    values: dict[str, float] = {"tokens": totals.tokens, "non_finite_tokens": totals.non_finite}
    if level != "off":
        values |= _shape(totals)
    if ladder is not None:
        values |= {
            ladder_key(share): value if totals.tokens else 0.0 for share, value in zip(LADDER, ladder, strict=True)
        }
    if selected:
        chosen = max(totals.selected, 1)
        values |= {
            "selected_tokens": totals.selected,
            "selected_frac": totals.selected / tokens,
            "selected_mean": totals.selected_covariance_sum / chosen,
            "selected_negative_frac": totals.negative / chosen,
            "candidate_tokens": totals.candidates,
            "tied_tokens": totals.tied,
        }
    if threshold:
        values["threshold"] = totals.threshold
    return values


def prefixed(values: Mapping[str, float]) -> dict[str, float]:
    """Returns the values as plain floats, their keys with :data:`PREFIX`."""
    return {PREFIX + key: float(value) for key, value in values.items()}


def _shape(totals: Totals) -> dict[str, float]:
    tokens = max(totals.tokens, 1)
    mean = totals.covariance_sum / tokens
    variance = max(totals.covariance_square_sum / tokens - mean * mean, 0.0)
    values = {"mean": mean, "std": variance**0.5}
    # If all responses to each prompt are right or all are wrong, covariances are 0 up to rounding: no shares then.
    if (absolute := sum(map(abs, totals.kind_covariance_sums))) > _ROUNDING * tokens:
        for kind, count, covariance in zip(UPDATE_KINDS, totals.kind_tokens, totals.kind_covariance_sums, strict=True):
            values |= {f"{kind}_frac": count / tokens, f"{kind}_cov_frac": abs(covariance) / absolute}
    return values
