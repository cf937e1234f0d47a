"""The law R = -a exp(H) + b (arXiv 2505.22617, Eq. 6): reads logs of runs, fits the law, forecasts and compares.

It imports neither verl nor torch, so it works on the metrics of any run on any machine.

    readers, keys, points, runs     from logs to points (entropy, score), of one run and of several
    fit, series, ar1, estimate, diagnostics, compare, scatter, scale        the law's statistics
    decay, forecast, ahead, alternatives, headline                          what comes later, and what came early
    commands, tables, to_json, beside, report, plots, watch, cli                    what `verl-cov fit` to `watch` show

This module imports no pictures, so fitting does not load matplotlib; statsmodels, which takes a second to load, is
imported at the first call that needs it.
"""

from verl_cov.law.ahead import Ahead, ahead
from verl_cov.law.alternatives import Ranked, rank
from verl_cov.law.compare import Comparison, compare
from verl_cov.law.estimate import Estimate, estimate
from verl_cov.law.fit import Interval, LawFit, fit
from verl_cov.law.forecast import Forecast, forecast, rolling_origin
from verl_cov.law.headline import Shares, headline
from verl_cov.law.points import Points, points
from verl_cov.law.readers import NoPoints, Run, find_runs, read_metrics
from verl_cov.law.scale import Scaling, scale

__all__ = [
    "Ahead",
    "Comparison",
    "Estimate",
    "Forecast",
    "Interval",
    "LawFit",
    "NoPoints",
    "Points",
    "Ranked",
    "Run",
    "Scaling",
    "Shares",
    "ahead",
    "compare",
    "estimate",
    "find_runs",
    "fit",
    "forecast",
    "headline",
    "points",
    "rank",
    "read_metrics",
    "rolling_origin",
    "scale",
]
