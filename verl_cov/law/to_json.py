"""The JSON objects that the law's commands print with `--json` and write with `-o FILE.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from verl_cov.law.compare import Comparison
from verl_cov.law.estimate import Estimate
from verl_cov.law.fit import Interval
from verl_cov.law.forecast import Forecast
from verl_cov.law.points import Points
from verl_cov.law.readers import LeftOut
from verl_cov.law.scale import Scaling, Trend

Json: TypeAlias = dict[str, object]


def fit_json(run: Points, law: Estimate) -> Json:
    """The law of one run, or of several that were pooled."""
    return {
        "name": run.name,
        "last_score": float(run.scores.values[-1]),
        "last_step": int(run.scores.steps[-1]),
        "a": law.a.value,
        "b": law.b.value,
        "ceiling": law.ceiling.value,
        "a_interval": _ends(law.a),
        "b_interval": _ends(law.b),
        "ceiling_interval": _ends(law.ceiling),
        "level": law.level,
        "r2": _finite(law.law.r2),
        "rmse": law.law.rmse,
        "least_squares": {key: _finite(getattr(law.least_squares, key)) for key in ("a", "b", "ceiling", "r2", "rmse")},
        "n": law.n,
        "runs": law.runs,
        "unit": law.unit,
        "autocorrelation": law.autocorrelation,
        "entropy_key": run.entropy_key,
        "score_key": run.score_key,
        "warnings": list(law.warnings),
        "notes": list(run.notes),
    }


def forecast_json(run: Points, forecast: Forecast, origins: Sequence[Forecast]) -> Json:
    """The law of a run's first points, as in `fit_json`, and its predictions of the others."""
    columns = {
        "step": forecast.step,
        "entropy": forecast.entropy,
        "score": forecast.score,
        "predicted": forecast.predicted,
        "low": forecast.low,
        "high": forecast.high,
    }
    gain_left = forecast.estimate.gain(float(run.entropy[forecast.n - 1]))
    return fit_json(run, forecast.estimate) | {
        "fraction": forecast.fraction,
        "fraction_used": forecast.n / run.steps.size,
        "predictions": [
            {key: float(values[at]) for key, values in columns.items()} for at in range(forecast.step.size)
        ],
        "rmse_rest": forecast.rmse_rest,
        "final_error": forecast.final_error,
        "coverage": forecast.coverage,
        "gain_left": gain_left.value,
        "gain_left_interval": _ends(gain_left),
        "how_early": [
            {
                "fraction": origin.fraction,
                "n": origin.n,
                "rmse_rest": origin.rmse_rest,
                "final_error": origin.final_error,
                "coverage": origin.coverage,
                "ceiling": origin.estimate.ceiling.value,
                "ceiling_interval": _ends(origin.estimate.ceiling),
            }
            for origin in origins
        ],
    }


def compare_json(runs: Sequence[Points], comparison: Comparison, left_out: Sequence[LeftOut] = ()) -> Json:
    """The laws of `runs` and the tests of whether they are one."""
    laws: list[Json] = []
    for at, name in enumerate(comparison.names):
        intervals = {"a": comparison.a[at], "b": comparison.b[at], "ceiling": comparison.ceiling[at]}
        values = {key: interval.value for key, interval in intervals.items()}
        ends = {f"{key}_interval": _ends(interval) for key, interval in intervals.items()}
        laws.append({"name": name, **values, **ends})
    return {
        "entropy_key": runs[0].entropy_key,
        "score_key": runs[0].score_key,
        "wald": _finite(comparison.wald),
        "wald_p": _finite(comparison.wald_p),
        "runs": laws,
        "pair_p_holm": [[_finite(value) for value in row] for row in comparison.pair_p_holm],
        "left_out": _left_out(left_out),
    }


def scale_json(scaling: Scaling, names: Sequence[str], target: float | None) -> Json:
    """The trends over model size and, if there is a target size, the law predicted for it."""
    result: Json = {"parameters": list(map(float, scaling.parameters)), "names": list(names)}
    for key, trend in _by_coefficient(scaling).items():
        result[key] = {
            "slope": trend.slope.value,
            "slope_interval": _ends(trend.slope),
            "intercept": trend.intercept.value,
            "rmse": trend.rmse,
            "left_out_errors": list(map(float, trend.left_out)),
            "bend_p": _finite(trend.bend_p),
        }
    if target is not None:
        for key, trend in _by_coefficient(scaling).items():
            interval = trend.predict(target)
            result[f"predicted_{key}"], result[f"predicted_{key}_interval"] = interval.value, _ends(interval)
        result["predicted_parameters"] = target
    return result | {"warnings": list(scaling.warnings)}


def of_runs(objects: Sequence[Json], left_out: Sequence[LeftOut]) -> Json:
    """One object for one run and for several: their objects, and what was left out."""
    return {"runs": list(objects), "left_out": _left_out(left_out)}


def dumps(value: Json) -> str:
    """JSON text that every parser accepts: without NaN."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _by_coefficient(scaling: Scaling) -> Mapping[str, Trend]:
    return {"a": scaling.a, "b": scaling.b, "ceiling": scaling.ceiling}


def _left_out(left_out: Sequence[LeftOut]) -> list[Json]:
    return [{"path": str(one.path), "reason": one.reason} for one in left_out]


def _ends(interval: Interval) -> list[float | None]:
    return [_finite(interval.low), _finite(interval.high)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
