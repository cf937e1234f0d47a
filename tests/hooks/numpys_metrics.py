"""The metrics of a mini-batch of tests/hooks/engine.py, and of the rollout batch that it is, from numpy."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.core.test_rollout import by_definition
from tests.hooks import engine
from verl_cov.core.metric_table import LADDER, PREFIX
from verl_cov.core.update_kinds import UPDATE_KINDS


def ours(report: engine.Report) -> dict[str, float]:
    return {key.removeprefix(PREFIX): value for key, value in report.metrics.items() if key.startswith(PREFIX)}


def check(found: dict[str, float], wanted: dict[str, float], where: str) -> None:
    assert {key: found.get(key) for key in wanted} == pytest.approx(wanted, rel=1e-5, abs=1e-6), where
    assert sum(found[f"{kind}_frac"] for kind in UPDATE_KINDS) == pytest.approx(1)
    assert sum(found[f"{kind}_cov_frac"] for kind in UPDATE_KINDS) == pytest.approx(1)


@functools.cache
def expected(seed: int) -> dict[str, float]:
    """Every number of a mini-batch and of the rollout batch that it is, from numpy."""
    rows = engine.mini_batch(seed)
    tokens = [(row["old_log_prob"][at], row["advantage"][at]) for row in rows for at in np.flatnonzero(row["mask"])]
    x, a = np.array(tokens, dtype=np.float64).T
    cov = (x - x.mean()) * (a - a.mean())
    largest = np.sort(cov)[::-1]
    found = {"tokens": cov.size, "non_finite_tokens": 0, "mean": cov.mean(), "std": cov.std()}
    for share in LADDER:
        found[f"top_{share:g}"] = largest[: max(1, int(share * cov.size))].mean()
    likely, good = x > x.mean(), a > a.mean()
    kinds = dict(exploitation=likely & good, confirmation=~likely & ~good, exploration=~likely & good)
    for kind, mask in {**kinds, "correction": likely & ~good}.items():
        found[f"{kind}_frac"] = mask.mean()
        found[f"{kind}_cov_frac"] = abs(cov[mask].sum()) / np.abs(cov).sum()
    for row in rows:
        row["mask"] = row["mask"].astype(bool)
        row["prompt"] = row["uid"]
        row["log_prob"] = row["old_log_prob"].astype(np.float64)
    figure_8 = {key: value for key, value in by_definition(rows).items() if not key.startswith("prompt")}
    return found | figure_8 | figure_8_of(rows)


def figure_8_of(rows) -> dict[str, float]:
    """The engine's rows have an advantage of their own each, so every prompt counts."""
    found: dict[str, list[float]] = {"": [], "_hard": [], "_medium": [], "_easy": []}
    for name in sorted({row["uid"] for row in rows}):
        mine = [row for row in rows if row["uid"] == name]
        log_prob = np.array([row["old_log_prob"][row["mask"]].mean() for row in mine], dtype=np.float64)
        advantage = np.array([row["advantage"][0] for row in mine], dtype=np.float64)
        right = np.mean([row["score"] for row in mine])
        statistic = np.cov(log_prob, np.exp(log_prob) * advantage, bias=True)[0, 1]
        for key in ("", "_hard" if right < 0.3 else "_easy" if right > 0.7 else "_medium"):
            found[key].append(statistic)
    values = {f"prompts{key}": float(len(many)) for key, many in found.items()}
    return values | {f"prompt_cov{key}": np.mean(many) for key, many in found.items() if many}
