"""Pictures of runs and of their laws. Nothing else in :mod:`verl_cov.law` but `watch`'s picture needs matplotlib.

`style` has the common looks, `runs` the figures of logged values, `covariance` those of why entropy falls, `fits` those
of laws with their ceilings, `laws` those of what is derived from them.
"""

from verl_cov.law.plots.runs import FIT_RUN, fit_law, plot_all, plot_demo, plot_entropy, plot_law, plot_score
from verl_cov.law.plots.style import PALETTE, TEXT
from verl_cov.law.points import ENTROPY_KEY, law_points, score_key

__all__ = [
    "ENTROPY_KEY",
    "FIT_RUN",
    "PALETTE",
    "TEXT",
    "fit_law",
    "law_points",
    "plot_all",
    "plot_demo",
    "plot_entropy",
    "plot_law",
    "plot_score",
    "score_key",
]
