"""What a run reports about the control. Keys stand under ``actor/cov/`` in verl's metrics.

===========================  ==================  =====================================================================
key                          unit                meaning (over one optimizer mini-batch, all ranks)
===========================  ==================  =====================================================================
``tokens``                   tokens              valid response tokens with finite values, N of the paper
``mean``                     nats x advantage    mean token covariance; positive: this update lowers entropy (Theorem 2)
``std``                      nats x advantage    standard deviation of the token covariance
``selected_tokens``          tokens              tokens the control acted on
``selected_frac``            1                   selected_tokens / tokens
``selected_mean``            nats x advantage    mean covariance of the selected tokens (0 if none)
``selected_negative_frac``   1                   share of the selected tokens with a negative advantage (0 if none)
``candidate_tokens``         tokens              tokens the control could choose from (Clip-Cov: those in the band)
``non_finite_tokens``        tokens              tokens left out because log-prob or advantage is not finite
``tied_tokens``              tokens              tokens with the smallest chosen covariance, if some were left out
``overlap_old``              1                   with ``cov_log_prob=current``: share of the selected tokens that
                                                 ``old`` would have selected too
``forward_seconds``          s                   with ``cov_log_prob=current``: time of the additional forward
===========================  ==================  =====================================================================

Each is exact (sums and counts over all ranks) and computed once an optimizer step; verl logs the mean over the
optimizer steps of a rollout. With ``cov_scope=micro_batch`` the counts are sums over the micro-batches, and the
covariance is that within each micro-batch, by which that scope selects: it depends on the micro-batch size.
No key contains "min" or "max": verl would reduce it by that.
"""

from __future__ import annotations

from verl_cov.selection import Totals

PREFIX = "actor/cov/"


def of_totals(totals: Totals) -> dict[str, float]:
    """The table above (without the keys of ``current``) as a flat dictionary of floats, the same on every rank."""
    tokens, count = max(totals.tokens, 1), max(totals.selected, 1)
    mean = totals.covariance_sum / tokens
    variance = max(totals.covariance_square_sum / tokens - mean * mean, 0.0)
    values = {
        "tokens": totals.tokens,
        "mean": mean,
        "std": variance**0.5,
        "selected_tokens": totals.selected,
        "selected_frac": totals.selected / tokens,
        "selected_mean": totals.selected_covariance_sum / count,
        "selected_negative_frac": totals.negative / count,
        "candidate_tokens": totals.candidates,
        "non_finite_tokens": totals.non_finite,
        "tied_tokens": totals.tied,
    }
    return {PREFIX + key: float(value) for key, value in values.items()}
