"""The entropy-performance law of arXiv 2505.22617 (Eq. 6): read logs of runs, fit R = -a exp(H) + b, forecast, compare.

Knows logs and numbers, and imports neither verl nor torch: it works on the metrics of any run, on any machine.
:mod:`~verl_cov.law.plots` is not imported here, so that fitting does not cost an import of matplotlib; the modules that
use statsmodels import it when they are first called, as that takes a second.
"""

from verl_cov.law.compare import Comparison, compare
from verl_cov.law.estimate import Estimate, Interval, estimate
from verl_cov.law.fit import LawFit, fit
from verl_cov.law.forecast import Forecast, Origin, forecast, rolling_origin
from verl_cov.law.points import Points, points
from verl_cov.law.readers import NoPoints, Run, find_runs, read_metrics
from verl_cov.law.scale import Scaling, scale

__all__ = [
    "Comparison",
    "Estimate",
    "Forecast",
    "Interval",
    "LawFit",
    "NoPoints",
    "Origin",
    "Points",
    "Run",
    "Scaling",
    "compare",
    "estimate",
    "find_runs",
    "fit",
    "forecast",
    "points",
    "read_metrics",
    "rolling_origin",
    "scale",
]
