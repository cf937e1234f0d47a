"""Reads how often k samples of a prompt have a success, at each validation: pass@k, as trainers log it.

| keys                                 | what they are                                                                 |
|--------------------------------------|-------------------------------------------------------------------------------|
| `val-cov/pass@K`, `val-cov/greedy`   | verl-cov: the unbiased estimate over all prompts; the greedy accuracy         |
| `eval/SET/pass@K`, `.../pass_at_K`   | prime-rl, SkyRL: of K samples                                                 |
| `val-*/SET/VARIABLE/best@K/mean`     | verl: the best of K draws *with* replacement, a bootstrap: called best@K here |

Of several sets `all` counts, or else none: which one is meant is not known. Quantities of two rows are never mixed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from verl_cov.law.readers import Run
from verl_cov.law.reading import Curve

PASS, BEST = "pass", "best"
GREEDY_KEY = "val-cov/greedy"
_OURS = re.compile(r"val-cov/(?P<set>)pass@(?P<k>\d+)")
_EVALS = re.compile(r"eval/(?P<set>[^/]+)/pass(?:@|_at_)(?P<k>\d+)")
# k = 1 needs no draw: it is the mean over all N samples.
_VERLS = re.compile(r"val-(?:core|aux)/(?P<set>.+/(?:acc|reward))/(?:best@(?P<k>\d+)/mean|mean@\d+)")
_KINDS = ((PASS, _OURS), (PASS, _EVALS), (BEST, _VERLS))


@dataclass(frozen=True)
class Passes:
    """What a run's log has. kind: `PASS` or `BEST`. curves: {k: values against the step}, ascending. greedy: accuracy
    of one greedy response a prompt, empty without one."""

    kind: str
    curves: Mapping[int, Curve]
    greedy: Curve

    @property
    def most(self) -> int:
        """The largest k."""
        return max(self.curves)

    def name(self, k: int) -> str:
        """`pass@16`."""
        return f"{self.kind}@{k}"


def passes(run: Run) -> Passes | None:
    """pass@k of a run, in the first of the forms above that its log has for some k above 1; None without any."""
    for kind, pattern in _KINDS:
        keys = _of_one_set(run.known, pattern)
        if keys and max(keys) > 1:
            curves = {k: _curve(run, keys[k]) for k in sorted(keys)}
            return Passes(kind, curves, _curve(run, GREEDY_KEY))
    return None


def together(runs: Mapping[str, Run]) -> dict[str, Passes]:
    """pass@k of the runs that can share a panel: those of the kind that comes first among them."""
    found = {name: its for name, run in runs.items() if (its := passes(run)) is not None}
    kinds = {its.kind for its in found.values()}
    kind = PASS if PASS in kinds else BEST
    return {name: its for name, its in found.items() if its.kind == kind}


def last_values(run: Passes) -> str:
    """`pass@16 0.953, @1 0.402`: the last of each."""
    first, most = min(run.curves), run.most
    one = f", @{first} {run.curves[first].values[-1]:.3f}" if first < most else ""
    return f"{run.name(most)} {run.curves[most].values[-1]:.3f}{one}"


def _of_one_set(keys: Iterable[str], pattern: re.Pattern[str]) -> dict[int, str]:
    """{k: key} of the set called `all`, or of the only one; of verl's variables `acc` goes before `reward`."""
    sets: dict[str, dict[int, str]] = {}
    for key in keys:
        if match := pattern.fullmatch(key):
            sets.setdefault(match["set"], {})[int(match["k"] or 1)] = key
    if any(name.endswith("/acc") for name in sets):
        sets = {name: its for name, its in sets.items() if name.endswith("/acc")}
    if len(sets) > 1:
        sets = {name: its for name, its in sets.items() if name == "all"}
    return next(iter(sets.values()), {})


def _curve(run: Run, key: str) -> Curve:
    values = run.column(key)
    finite = np.isfinite(values)
    return Curve(run.steps[finite], values[finite])
