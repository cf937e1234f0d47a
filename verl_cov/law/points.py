"""The points of the law: the scores and entropies of a run that belong to the same policy.

:mod:`verl_cov.law.reading` chooses and joins them; here they are checked, and what a reader must know is said.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from verl_cov.law import keys
from verl_cov.law.fit import Array, fit
from verl_cov.law.readers import AVERAGE_KEY, Join, NoPoints, Run, Wanted, pick_score
from verl_cov.law.reading import LEAST, Curve, Reading, alternative, read

ENTROPY_KEY = "actor/entropy"  # verl's own, nats per token

_LARGEST_IN_NATS = 12.5  # the logarithm of the largest vocabularies, some 256 thousand tokens
_ABSURD = 20.0
_PREFIX = "actor/cov/"


@dataclass(frozen=True)
class Points:
    """The points of one run, and the curves they were joined from.

    name: of the run. steps: [n], ascending, of the scores. entropy: [n], nats per token. score: [n], as logged.
    entropy_key, score_key: the keys they were logged under (score_key may be a glob). control: "clip_cov" or "kl_cov"
    if the log shows that verl-cov acted on tokens, else None (other interventions leave no trace). notes: one sentence
    each on what was chosen, joined and dropped. averaged: the data sets, if the score is verl-cov's average over
    several. scores, entropies: all in the log, also those without a partner. run: the log itself.
    """

    name: str
    steps: NDArray[np.int64]
    entropy: Array
    score: Array
    entropy_key: str
    score_key: str
    control: str | None
    notes: tuple[str, ...]
    averaged: tuple[str, ...]
    scores: Curve
    entropies: Curve
    run: Run = field(repr=False)


def points(
    run: Run, name: str, entropy_key: str | None = None, score_key: str | None = None, join: Join | None = None
) -> Points:
    """The (entropy, score) points of `run`.

    entropy_key: a key of the log. score_key: a key, or a glob like `val-core/*/mean@8`, which averages the keys that
    match, at the steps that have them all. join: "same" or "next", the step whose entropy goes with a score, or "auto".
    Without them what the run was read for counts (`run.wanted`), and otherwise the tables in
    :mod:`verl_cov.law.keys` decide, and the notes say how.

    Raises NoPoints: the log has no records, or mixes the records of several runs; a key is missing; fewer than three
    scores have an entropy; the entropy does not vary.
    """
    wanted = run.wanted
    wanted = Wanted(entropy_key or wanted.entropy, score_key or wanted.score, wanted.step, join or wanted.join)
    try:
        return _points(replace(run, wanted=wanted), name)
    except NoPoints as error:
        raise NoPoints(f"{name}: {error}") from None


def _points(run: Run, name: str) -> Points:
    _check_log(run)
    reading = read(run)
    if reading.problems or reading.score_key is None or reading.entropy_key is None:
        raise NoPoints("; ".join(reading.problems))
    steps, entropies, scores = reading.joined
    entropy_key, score_key = reading.entropy_key, reading.score_key
    _check_points(run, reading)
    where = {1: "step n + 1", 0: "the same step", -1: "step n - 1"}[reading.shift]
    why = "both of the same policy" if run.wanted.join == "auto" else "as --join asks"
    notes = [
        *reading.notes,
        f"{_count(len(steps), 'point')}: {score_key} at step n with {entropy_key} at {where}, {why}.",
    ]
    lost = np.setdiff1d(reading.scores.steps, steps)
    if lost.size:
        partner = {1: "the next step", 0: "that step", -1: "the step before"}[reading.shift]
        first = ", ".join(map(str, lost[:5])) + (", ..." if lost.size > 5 else "")
        notes.append(f"{_count(lost.size, 'score')} dropped, without an entropy at {partner}: step {first}.")
    notes += [*keys.notes_on(entropy_key, reading.score_keys[0], run.table), *_notes_on_entropy(entropies)]
    if run.repeats:
        notes.append(f"The step ran backwards {_count(run.repeats, 'time')} (resumed?): the later values count.")
    if run.damaged:
        notes.append(f"{_damage(run)}.")
    notes += run.notes
    averaged = keys.validation_sets(run.known) if score_key == AVERAGE_KEY else ()
    if averaged:
        notes.append(
            f"The score is the mean over all generations of {_count(len(averaged), 'set')}: {keys.listed(averaged)}."
        )
    return Points(
        name=name,
        steps=steps,
        entropy=entropies,
        score=scores,
        entropy_key=entropy_key,
        score_key=score_key,
        control=_control(run),
        notes=tuple(notes),
        averaged=averaged,
        scores=reading.scores,
        entropies=reading.entropies,
        run=run,
    )


def _check_points(run: Run, reading: Reading) -> None:
    """Raise NoPoints, with the fix, unless a law can be fitted."""
    steps, entropies, scores = reading.joined
    if len(steps) < LEAST:
        other = alternative(run, reading)
        if other is not None:
            fix = f"{other}"
        elif reading.shift == 0:
            fix = "train on, or choose other keys with --entropy-key and --score-key"
        else:
            fix = "train on, validate more often (verl: trainer.test_freq), and log the entropy at every step"
        lost = f" ({_damage(run)})" if run.damaged else ""
        raise NoPoints(
            f"{_count(len(steps), 'point')} of {_count(len(reading.scores.steps), 'score')} ({reading.score_key}) and "
            f"{_count(len(reading.entropies.steps), 'entropy', 'entropies')} ({reading.entropy_key}); the law needs "
            f"{LEAST}: {fix}{lost}"
        )
    if np.ptp(entropies) == 0:
        raise NoPoints(
            f"{reading.entropy_key} is {entropies[0]:g} at every point, so no law can be fitted: choose another key "
            "with --entropy-key"
        )
    try:
        fit(entropies, scores)
    except ValueError as error:
        raise NoPoints(str(error)) from None


def score_key(run: Run) -> str | None:
    """The key of the run's validation score in verl's log, or None before any validation."""
    return pick_score(run.keys())


def law_points(run: Run) -> tuple[Array, Array]:
    """(entropy, score), each [m], as `points` reads them; empty before there are any."""
    joined = read(run).joined
    return joined.entropy, joined.score


def _check_log(run: Run) -> None:
    if not run.known and not run.damaged:
        raise NoPoints(
            "not a known kind of log, or a run without a step: there is no record of a console, of verl's file logger, "
            "TensorBoard or W&B, and no table with a step column in UTF-8 (`verl-cov docs law#what-is-read`)"
        )
    if not run.known:
        raise NoPoints(f"no record could be read, and {_damage(run)}")
    if run.repeats > max(3, len(run.steps) // 4):
        raise NoPoints(
            f"the step runs backwards {run.repeats} times in {len(run.steps)} steps, with other values: several runs "
            "write to this log; give each a log of its own"
        )
    if run.left_over:
        raise NoPoints(
            f"the log begins again from its first step, and its last {_count(run.left_over, 'step')} are of the run "
            "before: give each run a log of its own"
        )


def _notes_on_entropy(entropy: Array) -> list[str]:
    notes = []
    low, high = float(entropy.min()), float(entropy.max())
    if low < 0:
        notes.append(f"The entropy falls to {low:g}: no entropy over tokens is negative.")
    elif high > _ABSURD:
        notes.append(f"The entropy rises to {high:g}: no policy over tokens has that many nats; a sum over tokens?")
    elif high > _LARGEST_IN_NATS:
        notes.append(f"The entropy rises to {high:g}, more nats than any vocabulary gives: in bits?")
    return notes


def _control(run: Run) -> str | None:
    if not np.nansum(run.column(_PREFIX + "selected_tokens")) > 0:
        return None
    # Only KL-Cov takes the tokens above a threshold; Clip-Cov draws them from a band.
    return "kl_cov" if np.isfinite(run.column(_PREFIX + "threshold")).any() else "clip_cov"


def _damage(run: Run) -> str:
    return f"{_count(run.damaged, 'damaged line')} left out" + (f", as {run.damage}" if run.damage else "")


def _count(number: int, singular: str, plural: str | None = None) -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
