"""Times verl-cov's hooks inside a real training: one JSON line a rollout in the file that ``BENCH_TIMERS`` names.

Loaded by verl itself, before the plugins: ``VERL_USE_EXTERNAL_MODULES=benchmarks.timers``.
"""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

from verl_cov.hooks.imports import when_imported

_seconds: dict[str, float] = {}


def _timed(owner: Any, name: str, key: str) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def call(*args, **kwargs):
        started = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            _seconds[key] = _seconds.get(key, 0.0) + time.perf_counter() - started

    setattr(owner, name, call)


def _install(engine_workers: Any) -> None:
    from verl_cov.hooks import mini_batch, rollout_batch

    worker = engine_workers.TrainingWorker
    _timed(worker, "train_mini_batch", "update")
    train = worker.train_mini_batch

    @functools.wraps(train)
    def train_mini_batch(self, data):
        if "advantages" not in data:
            return train(self, data)
        _seconds["update"] = _seconds["per update"] = 0.0
        output = train(self, data)
        with Path(os.environ["BENCH_TIMERS"]).open("a") as file:
            file.write(json.dumps(_seconds) + "\n")
        _seconds.clear()
        return output

    worker.train_mini_batch = train_mini_batch
    _timed(mini_batch, "look", "per update")
    _timed(mini_batch, "report", "per update")
    # Runs before train_mini_batch, and so stands in the same line.
    _timed(rollout_batch, "look", "per rollout")


when_imported("verl.workers.engine_workers", _install)
