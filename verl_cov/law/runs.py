"""Reads the points of several runs and checks that they can be put side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from verl_cov.law.fit import LARGEST
from verl_cov.law.keys import ENTROPY_KEYS
from verl_cov.law.points import Points, points
from verl_cov.law.readers import (
    AVERAGE_KEY,
    DETECTED,
    SCORE_PREFIX,
    LeftOut,
    NoPoints,
    Run,
    Wanted,
    find,
    no_log,
    read_metrics,
)
from verl_cov.law.reading import read
from verl_cov.law.series import unit_of

_PROGRESS_BYTES = 50_000_000  # a smaller log is read before a progress bar could be seen
_MOST_NAMED = 20  # of what was left out, for one reason


class Loaded(list[Points]):
    """The points of runs. left_out: what was found and not read, or gives no points, with the reason."""

    def __init__(self, runs: Iterable[Points] = (), left_out: Iterable[LeftOut] = ()) -> None:
        super().__init__(runs)
        self.left_out = tuple(left_out)


def load(arguments: Sequence[Path], wanted: Wanted = DETECTED, labels: Sequence[tuple[str, Path]] = ()) -> Loaded:
    """The points of every run that the arguments and labels name (see :func:`verl_cov.law.readers.find_runs`).

    wanted: the keys to read, as in :func:`verl_cov.law.points.points`. Without them runs whose logs offer different
    definitions get one that all logs have, if there is one. A run without points is left out, and so is one whose
    points are the first of another's: it is an earlier state of that run. Progress on long logs and what was left out
    are said on standard error.

    Raises ValueError or OSError with one line if nothing is left.
    """
    found, left_out = find_labelled(arguments, labels, wanted.step)
    logs: list[tuple[str, Path, Run]] = []
    for name, paths, run in _read(found, wanted, left_out):
        logs.append((name, paths[0], run))
    shared = alike([run for _, _, run in logs])
    loaded: list[tuple[Points, Path]] = []
    for (name, path, _), run in zip(logs, shared, strict=True):
        try:
            _check_sizes(run)
            one = points(run, name)
            _check_varies(one)
            loaded.append((one, path))
        except NoPoints as error:
            left_out.append(LeftOut(path, str(error).removeprefix(f"{name}: ")))
    runs = _without_earlier_states(loaded, left_out)
    if not runs:
        _refuse(found, left_out)
    say_left_out(left_out)
    return Loaded(runs, left_out)


def _check_sizes(run: Run) -> None:
    """Raise NoPoints, with the key and the step, if a score or an entropy is no measured value."""
    reading = read(run)
    for key, curve in ((reading.score_key, reading.scores), (reading.entropy_key, reading.entropies)):
        if curve.values.size and np.abs(curve.values).max() > LARGEST:
            worst = int(np.abs(curve.values).argmax())
            raise NoPoints(f"{key} is {curve.values[worst]:g} at step {curve.steps[worst]}, which nothing measures")


def _check_varies(run: Points) -> None:
    """Raise NoPoints if the score is the same at every point, as :func:`points` does for the entropy."""
    if np.ptp(run.score) == 0:
        raise NoPoints(
            f"{run.score_key} is {run.score[0]:g} at every point, so no law can be fitted: choose another key with "
            "--score-key"
        )


def alike(runs: Sequence[Run]) -> list[Run]:
    """The runs, to be read so that entropy and score are the same quantity in all of them, if all logs have one."""
    readings = [read(run) for run in runs]
    entropies = {reading.entropy_key for reading in readings} - {None}
    scores = {reading.score_key for reading in readings} - {None}
    entropy = score = None
    if len(entropies) > 1 and all(run.wanted.entropy is None for run in runs):
        entropy = _first_shared(runs, ENTROPY_KEYS)
    if len(scores) > 1 and AVERAGE_KEY in scores:
        means = [key for key in runs[0].known if key.startswith(SCORE_PREFIX) and "/mean@" in key]
        score = _first_shared(runs, means)
    same = [
        replace(run, wanted=replace(run.wanted, entropy=entropy or run.wanted.entropy, score=score or run.wanted.score))
        for run in runs
    ]
    # Not at the cost of a run's points.
    kept = all(read(run).joined.usable() for run, own in zip(same, readings, strict=True) if own.joined.usable())
    return same if kept else list(runs)


def say_left_out(left_out: Sequence[LeftOut]) -> None:
    """Warn of what was left out on standard error, in a line for each reason."""
    console = Console(stderr=True)
    reasons: dict[str, list[str]] = {}
    for one in left_out:
        reasons.setdefault(one.reason, []).append(str(one.path))
    for reason, paths in reasons.items():
        listed = ", ".join(paths[:_MOST_NAMED]) + (f" and {len(paths) - _MOST_NAMED} more" * (len(paths) > _MOST_NAMED))
        text = f"Warning: left out: {listed}: {reason}".encode(errors="replace").decode()
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _refuse(found: Sequence[tuple[str, list[Path]]], left_out: Sequence[LeftOut]) -> NoReturn:
    if left_out and all(one.reason == "no such file or folder" for one in left_out):
        raise NoPoints("; ".join(str(one) for one in left_out[:_MOST_NAMED]))
    if not found:
        raise no_log(left_out)
    if len(left_out) == 1:
        raise NoPoints(str(left_out[0]))
    reasons = [str(one) for one in left_out]
    more = f"; and {len(reasons) - _MOST_NAMED} more" * (len(reasons) > _MOST_NAMED)
    none = "the run cannot be used" if len(found) == 1 else f"none of the {len(found)} runs can be used"
    raise NoPoints(f"{none}: {'; '.join(reasons[:_MOST_NAMED])}{more}")


def _without_earlier_states(loaded: Sequence[tuple[Points, Path]], left_out: list[LeftOut]) -> list[Points]:
    """The runs but those whose points are the first of another's, or all of them."""
    order = sorted(range(len(loaded)), key=lambda at: -loaded[at][0].steps.size)  # stable: of two copies the first
    kept: list[int] = []
    for at in order:
        run, path = loaded[at]
        whole = next((loaded[other][0] for other in kept if _begins(loaded[other][0], run)), None)
        if whole is None:
            kept.append(at)
            continue
        state = "the same run as" if whole.steps.size == run.steps.size else "an earlier state of"
        left_out.append(LeftOut(path, f"it is {state} {whole.name}"))
    return [loaded[at][0] for at in sorted(kept)]


def _begins(whole: Points, part: Points) -> bool:
    """Whether the points of `whole` begin with those of `part`, to three digits, as a console log rounds."""
    count = part.steps.size
    return (
        abs(whole.score[0] - part.score[0]) <= 1e-3 * abs(part.score[0]) + 1e-8
        and _bare(whole.score_key) == _bare(part.score_key)
        and _bare(whole.entropy_key) == _bare(part.entropy_key)
        and np.array_equal(whole.steps[:count], part.steps)
        and np.allclose(whole.score[:count], part.score, rtol=1e-3)
        and np.allclose(whole.entropy[:count], part.entropy, rtol=1e-3)
    )


def _bare(key: str) -> str:
    """The key without what a logger puts before it: W&B's eval/reward is the trainer's eval_reward."""
    return key.removeprefix("train/").replace("eval/", "eval_", 1)


def find_labelled(
    arguments: Sequence[Path], labels: Sequence[tuple[str, Path]] = (), step_key: str | None = None
) -> tuple[list[tuple[str, list[Path]]], list[LeftOut]]:
    """The runs that the arguments name, and those of the labels, (name, argument) each, under the labels' names; and
    what was left out (see :func:`verl_cov.law.readers.find`).

    It does not matter whether a labelled run is among the arguments, and how its path is written there. The several
    runs of a labelled folder are called name/run.

    Raises ValueError: two runs would have one name.
    """
    found, left_out = find([*arguments, *(path for _, path in labels)], step_key)
    if not labels:
        return found, left_out
    runs = {_places(paths): (name, paths) for name, paths in found}
    for label, argument in labels:
        meant, _ = find([argument], step_key)
        for name, paths in meant:
            for known in [places for places in runs if places & _places(paths)]:
                runs[known] = (label if len(meant) == 1 else f"{label}/{name}", runs[known][1])
    names = [name for name, _ in runs.values()]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"two runs are called {double}: give one of them another --label")
    return list(runs.values()), left_out


def _places(paths: Sequence[Path]) -> frozenset[Path]:
    """Where a run's logs lie, the same for all ways to write their paths."""
    return frozenset(path.resolve() for path in paths)


def _read(
    found: Sequence[tuple[str, list[Path]]], wanted: Wanted, left_out: list[LeftOut]
) -> Iterator[tuple[str, list[Path], Run]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    # Without a terminal the bar is not even started: older versions of rich end a disabled bar with an empty line.
    with bar if console.is_terminal else nullcontext():
        for name, paths in found:
            task: TaskID | None = None

            def show(done: int, total: int, name: str = name) -> None:
                nonlocal task
                if task is None and total >= _PROGRESS_BYTES:
                    task = bar.add_task(f"reading {name}", total=total)
                if task is not None:
                    bar.update(task, completed=done)

            try:
                run = read_metrics(paths, progress=show, step_key=wanted.step)
            except (OSError, ValueError) as error:  # ValueError: NoPoints among others
                left_out.append(LeftOut(paths[0], str(error)))
                continue
            yield name.encode(errors="replace").decode(), paths, replace(run, wanted=wanted)


def _first_shared(runs: Sequence[Run], keys: Sequence[str]) -> str | None:
    """The first of `keys` that has a value in every log."""
    return next((key for key in keys if all(key in run.known for run in runs)), None)


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
