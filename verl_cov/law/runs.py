"""Reads the points of several runs and checks that they can be put side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from verl_cov.law.keys import ENTROPY_KEYS
from verl_cov.law.points import Points, points
from verl_cov.law.readers import AVERAGE_KEY, SCORE_PREFIX, Run, find_runs, read_metrics
from verl_cov.law.series import unit_of

_PROGRESS_BYTES = 50_000_000  # a smaller log is read before a progress bar could be seen


def load(
    arguments: Sequence[Path],
    entropy_key: str | None = None,
    score_key: str | None = None,
    labels: Sequence[tuple[str, Path]] = (),
) -> list[Points]:
    """The points of every run that the arguments and labels name (see :func:`verl_cov.law.readers.find_runs`).

    entropy_key, score_key: as in :func:`verl_cov.law.points.points`. Without them runs whose logs offer different
    definitions get one that all logs have, if there is one. Progress on long logs is shown on standard error.

    Raises ValueError or OSError with one line that names the run.
    """
    logs = _read(arguments, labels)
    loaded = [points(run, name, entropy_key, score_key) for name, run in logs]
    shared_entropy = shared_score = None
    if entropy_key is None and len({run.entropy_key for run in loaded}) > 1:
        shared_entropy = _first_shared(logs, ENTROPY_KEYS)
    scores = {run.score_key for run in loaded}
    if len(scores) > 1 and AVERAGE_KEY in scores:
        keys = logs[0][1].keys()
        means = [key for key in keys if key.startswith(SCORE_PREFIX) and "/mean@" in key]
        shared_score = _first_shared(logs, means)
    if shared_entropy is None and shared_score is None:
        return loaded
    return [points(run, name, shared_entropy or entropy_key, shared_score or score_key) for name, run in logs]


def find_labelled(arguments: Sequence[Path], labels: Sequence[tuple[str, Path]] = ()) -> list[tuple[str, list[Path]]]:
    """The runs that the arguments name, and those of the labels, (name, argument) each, under the labels' names.

    It does not matter whether a labelled run is among the arguments, and how its path is written there. The several
    runs of a labelled folder are called name/run.

    Raises NoLog as `find_runs` does; ValueError: two runs would have one name.
    """
    if not labels:
        return find_runs(arguments)
    runs = {_places(paths): (name, paths) for name, paths in find_runs([*arguments, *(path for _, path in labels)])}
    for label, argument in labels:
        meant = find_runs([argument])
        for name, paths in meant:
            for known in [places for places in runs if places & _places(paths)]:
                runs[known] = (label if len(meant) == 1 else f"{label}/{name}", runs[known][1])
    names = [name for name, _ in runs.values()]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"two runs are called {double}: give one of them another --label")
    return list(runs.values())


def _places(paths: Sequence[Path]) -> frozenset[Path]:
    """Where a run's logs lie, the same for all ways to write their paths."""
    return frozenset(path.resolve() for path in paths)


def _read(arguments: Sequence[Path], labels: Sequence[tuple[str, Path]]) -> list[tuple[str, Run]]:
    logs: list[tuple[str, Run]] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    # Without a terminal the bar is not even started: older versions of rich end a disabled bar with an empty line.
    with bar if console.is_terminal else nullcontext():
        for name, paths in find_labelled(arguments, labels):
            task: TaskID | None = None

            def show(done: int, total: int, name: str = name) -> None:
                nonlocal task
                if task is None and total >= _PROGRESS_BYTES:
                    task = bar.add_task(f"reading {name}", total=total)
                if task is not None:
                    bar.update(task, completed=done)

            logs.append((name.encode(errors="replace").decode(), read_metrics(paths, progress=show)))
    return logs


def _first_shared(logs: Sequence[tuple[str, Run]], keys: Sequence[str]) -> str | None:
    """The first of `keys` that has a value in every log."""
    return next((key for key in keys if all(np.isfinite(run.column(key)).any() for _, run in logs)), None)


def check_comparable(runs: Sequence[Points]) -> None:
    """Raise ValueError unless the runs are distinct and have the same entropy, score and unit."""
    for what, option, keys in (
        ("entropies", "--entropy-key", {run.entropy_key for run in runs}),
        ("scores", "--score-key", {run.score_key for run in runs}),
    ):
        if len(keys) > 1:
            raise ValueError(f"the runs have different {what} ({', '.join(sorted(keys))}): choose one with {option}")
    averaged = {run.averaged for run in runs}
    if len(averaged) > 1:
        sets = " and ".join(sorted(", ".join(names) or "none" for names in averaged))
        raise ValueError(f"the runs' scores are averages over different sets ({sets}): choose one with --score-key")
    units = {unit_of(run.score) for run in runs}
    if len(units) > 1:
        raise ValueError(f"the runs' scores have different units ({', '.join(sorted(units))}), so no law is common")
    seen: dict[tuple[int, ...], list[Points]] = {}
    for run in runs:
        for other in seen.setdefault(tuple(run.steps.tolist()), []):
            # To three digits, as a console log rounds.
            if np.allclose(run.score, other.score, rtol=1e-3) and np.allclose(run.entropy, other.entropy, rtol=1e-3):
                raise ValueError(f"{other.name} and {run.name} are the same run: give it once")
        seen[tuple(run.steps.tolist())].append(run)
