"""How a study's results are shown: its figures and tables, which a protocol may change after its first result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl_cov.study.factors import Chosen, check, chosen
from verl_cov.study.statistics import STATISTICS
from verl_cov.suggestions import unknown

FIGURES = (
    "curves",
    "ends",
    "consumption",
    "law",
    "forecast",
    "sizes",
    "covariance",
    "targets",
)  # of `figures`, which needs matplotlib


@dataclass(frozen=True)
class Figure:
    """A figure as the paper draws it. kind: a name of :mod:`verl_cov.study.figures`. by: the factor whose levels are
    drawn apart. runs: the runs in it. says: its caption."""

    name: str
    kind: str
    says: str
    by: str
    runs: Chosen


@dataclass(frozen=True)
class Table:
    """Numbers of runs, a row a level of the factor `by`, means over the replicates. statistics: the columns, names of
    :mod:`verl_cov.study.statistics`, each with its head. runs: the runs in it. says: its caption."""

    name: str
    says: str
    by: str
    runs: Chosen
    statistics: Mapping[str, str]


def read_figure(name: str, given: Mapping[str, Any], factors: Mapping[str, Mapping[str, object]]) -> Figure:
    runs = chosen(given["runs"], factors, f"figure {name}")
    by, kind = str(given["by"]), str(given["kind"])
    check({by: ()}, factors, f"figure {name}")
    if kind not in FIGURES:
        raise ValueError(unknown(f"kind (figure {name})", kind, FIGURES))
    return Figure(name, kind, str(given["says"]), by, runs)


def read_table(name: str, given: Mapping[str, Any], factors: Mapping[str, Mapping[str, object]]) -> Table:
    runs, by = chosen(given["runs"], factors, f"table {name}"), str(given["by"])
    check({by: ()}, factors, f"table {name}")
    statistics = {str(statistic): str(head) for statistic, head in given["statistics"].items()}
    for statistic in statistics:
        if statistic not in STATISTICS:
            raise ValueError(unknown(f"statistic (table {name})", statistic, STATISTICS))
    return Table(name, str(given["says"]), by, runs, statistics)
