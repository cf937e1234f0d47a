"""The table of metrics: it is the documentation, and its keys survive verl's reducers and loggers."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest

from docs import pages
from verl_cov.core import metric_table, metrics
from verl_cov.core.metric_table import PREFIX, TABLE
from verl_cov.core.selection import Totals
from verl_cov.core.update_kinds import UPDATE_KINDS
from verl_cov.hooks import versions

PAGE = pages.METRICS_PAGE
KEYS = [metric.key for metric in TABLE]


def totals(**changes):
    numbers = dict(
        tokens=100,
        non_finite=1,
        covariance_sum=20.0,
        covariance_square_sum=54.0,
        kind_tokens=(40, 10, 20, 30),
        kind_covariance_sums=(30.0, 10.0, -5.0, -15.0),
        candidates=7,
        selected=4,
        negative=3,
        tied=0,
        selected_covariance_sum=12.0,
        threshold=2.5,
    )
    return Totals(**(numbers | changes))


def test_the_page_holds_the_table():
    assert pages.with_metrics(PAGE.read_text()) == PAGE.read_text(), "run `python -m docs.pages`"
    for key in KEYS:
        assert f"| `{key}` |" in PAGE.read_text()


def test_a_page_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="begin"):
        pages.with_metrics("# Metrics")


def test_rows_are_complete_and_distinct():
    assert len(set(KEYS)) == len(KEYS)
    for metric in TABLE:
        assert metric.unit
        assert metric.meaning
        assert metric.level in metric_table.LEVELS
        assert metric.per in ("update", "rollout")


def test_verls_reducers_take_the_mean_of_every_key():
    """verl takes the largest or the smallest of a key with "max" or "min" in it, and adds up those with "sum"."""
    from verl.utils.metric import reduce_metrics

    names = [f"actor/{PREFIX.removeprefix('actor/')}{key}" for key in KEYS]
    reduced = reduce_metrics({name: [1.0, 2.0, 6.0] for name in names})
    assert reduced == dict.fromkeys(names, 3.0)
    if not versions.installed_release().v1:
        return
    from verl.trainer.ppo.v1.utils import MetricsAggregator

    aggregator = MetricsAggregator()
    assert {aggregator._get_aggregation_type(name) for name in names} == {"weighted_avg"}


def test_verls_loggers_show_every_key(tmp_path, monkeypatch):
    if versions.installed_release().version == "0.5.0":
        pytest.skip("verl 0.5 has no file logger")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from verl.utils.tracking import Tracking

    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "run.jsonl"))
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "tensorboard"))
    values = metrics.prefixed({key: index for index, key in enumerate(KEYS)})
    out = io.StringIO()
    with redirect_stdout(out):
        tracking = Tracking("project", "experiment", ["console", "file", "tensorboard"], config={})
        tracking.log(values, step=3)
        del tracking
    assert json.loads((tmp_path / "run.jsonl").read_text()) == {"step": 3, "data": values}
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {key: events.Scalars(key)[0].value for key in events.Tags()["scalars"]}
    assert shown == values
    for key, value in values.items():
        assert f"{key}:{value}" in out.getvalue()


def test_an_update_reports_what_its_totals_say():
    found = metrics.update_metrics(totals(), "full", ladder=[5, 4, 3, 2, 1], selected=True, threshold=True)
    assert set(found) <= set(KEYS)
    expected = dict(tokens=100, mean=0.2, std=np.sqrt(0.54 - 0.04), selected_frac=0.04, selected_mean=3)
    expected |= dict(selected_negative_frac=0.75, candidate_tokens=7, threshold=2.5, non_finite_tokens=1)
    expected |= {"top_0.0002": 5, "top_0.5": 1}
    expected |= dict(exploitation_frac=0.4, confirmation_frac=0.1, exploration_frac=0.2, correction_frac=0.3)
    expected |= {
        f"{kind}_cov_frac": share for kind, share in zip(UPDATE_KINDS, (1 / 2, 1 / 6, 1 / 12, 1 / 4), strict=True)
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert all(type(value) is float for value in metrics.prefixed(found).values())


def test_a_mini_batch_without_covariance_or_without_tokens_has_no_shares():
    """A share of nothing, logged as 0, would pull the mean over the updates down: the four would not add to 1."""
    for nothing_but_rounding in (0.0, 1e-6):
        flat = metrics.update_metrics(totals(kind_covariance_sums=(nothing_but_rounding, 0.0, 0.0, 0.0)), "basic")
        assert not any(key.split("_")[0] in UPDATE_KINDS for key in flat)
    nothing = totals(tokens=0, kind_tokens=(0,) * 4, kind_covariance_sums=(0.0,) * 4, covariance_sum=0.0, selected=0)
    empty = metrics.update_metrics(nothing, "full", ladder=[float("nan")] * 5, selected=True)
    assert not any(key.endswith("cov_frac") or key.split("_")[0] in UPDATE_KINDS for key in empty)
    assert all(np.isfinite(value) for value in empty.values())


def test_levels():
    off, basic = (set(metrics.update_metrics(totals(), level, selected=True)) for level in ("off", "basic"))
    of_level = {level: {metric.key for metric in TABLE if metric.level == level} for level in metric_table.LEVELS}
    # What the hook adds: what needs a second selection, and what the losses have shown.
    assert off == of_level["off"] - {"threshold", "overlap_old", "forward_seconds", "kl_dead_zone"}
    assert basic - off == of_level["basic"] - {"changed_gradient_frac", "overlap_current"}
    assert set(metrics.update_metrics(totals(), "off")) == {"tokens", "non_finite_tokens"}
