"""The entropy-performance law of arXiv 2505.22617 (Eq. 6): read the metrics of runs, fit R = -a exp(H) + b, draw both.

Knows logs and numbers, and imports neither verl nor torch: it works on the metrics of any run, on any machine.
:mod:`~verl_cov.law.plots` is not imported here, so that fitting does not cost an import of matplotlib.
"""

from verl_cov.law.fit import LawFit, fit
from verl_cov.law.points import Points, points
from verl_cov.law.readers import NoPoints, Run, find_runs, read_metrics

__all__ = ["LawFit", "NoPoints", "Points", "Run", "find_runs", "fit", "points", "read_metrics"]
