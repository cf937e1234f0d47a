"""Joins the scores and entropies of a run that belong to the same policy: the points of the law.

All known trainers log under step n what they measured before update n and what they validated after it. So a validation
at step n goes with the entropy at step n + 1, and that of step 0 (`val_before_train`) with the entropy at step 1; the
last validation has no partner unless the log goes on. Two values from the same side of the update go together at the
same step. Nothing is interpolated: a score without a partner is dropped and counted.

:mod:`verl_cov.law.keys` has the table of keys and says on which side of the update each is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from verl_cov.law import keys
from verl_cov.law.fit import Array
from verl_cov.law.readers import AVERAGE_KEY, NoPoints, Run, pick_score

ENTROPY_KEY = "actor/entropy"  # verl's own, nats per token

_LEAST = 3  # two points always lie on the curve
_LARGEST_IN_NATS = 12.5  # the logarithm of the largest vocabularies, some 256 thousand tokens
_ABSURD = 20.0
_PREFIX = "actor/cov/"


class Curve(NamedTuple):
    """Logged values against the training step, both [n], ascending by step."""

    steps: NDArray[np.int64]
    values: Array


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


def points(run: Run, name: str, entropy_key: str | None = None, score_key: str | None = None) -> Points:
    """The (entropy, score) points of `run`.

    entropy_key: a key of the log. score_key: a key, or a glob like `val-core/*/mean@8`, which averages the keys that
    match, at the steps that have them all. Without them the table in :mod:`verl_cov.law.keys` decides, and the notes
    say how.

    Raises NoPoints: the log has no records, or mixes the records of several runs; a key is missing; fewer than three
    scores have an entropy; the entropy does not vary.
    """
    try:
        return _points(run, name, entropy_key, score_key)
    except NoPoints as error:
        raise NoPoints(f"{name}: {error}") from None


def _points(run: Run, name: str, entropy_key: str | None, score_key: str | None) -> Points:
    notes: list[str] = []
    known = sorted(key for key in set().union(*run.records) if np.isfinite(run.column(key)).any())
    _check_log(run, known)
    score_keys = keys.choose_scores(known, score_key, notes)
    score_key = score_key or score_keys[0]
    entropy_key = keys.choose_entropy(known, entropy_key, score_keys[0], notes)

    score = np.mean([run.column(key) for key in score_keys], axis=0)
    entropy = run.column(entropy_key)
    shift = int(keys.is_after_update(score_keys[0])) - int(keys.is_after_update(entropy_key))
    steps, entropies, scores = pair(run.steps, entropy, score, shift)
    where = {1: "step n + 1", 0: "the same step", -1: "step n - 1"}[shift]
    notes.append(
        f"{_count(len(steps), 'point')}: {score_key} at step n with {entropy_key} at {where}, both of the same policy."
    )
    lost = np.setdiff1d(run.steps[np.isfinite(score)], steps)
    if lost.size:
        partner = {1: "the next step", 0: "that step", -1: "the step before"}[shift]
        first = ", ".join(map(str, lost[:5])) + (", ..." if lost.size > 5 else "")
        notes.append(f"{_count(lost.size, 'score')} dropped, without an entropy at {partner}: step {first}.")
    if len(steps) < _LEAST:
        fix = (
            "train on, or choose other keys with --entropy-key and --score-key"
            if shift == 0
            else "train on, validate more often (verl: trainer.test_freq), and log the entropy at every step"
        )
        raise NoPoints(
            f"{_count(len(steps), 'point')} of {_count(int(np.isfinite(score).sum()), 'score')} ({score_key}) and "
            f"{_count(int(np.isfinite(entropy).sum()), 'entropy', 'entropies')} ({entropy_key}); the law needs "
            f"{_LEAST}: {fix}"
        )
    if np.ptp(entropies) == 0:
        raise NoPoints(
            f"{entropy_key} is {entropies[0]:g} at every point, so no law can be fitted: choose another key with "
            "--entropy-key"
        )
    notes += [*keys.notes_on_unknown(entropy_key, score_keys[0]), *_notes_on_entropy(entropy_key, entropies)]
    if run.repeats:
        notes.append(f"The step ran backwards {_count(run.repeats, 'time')} (resumed?): the later values count.")
    if run.damaged:
        notes.append(f"{_count(run.damaged, 'damaged line')} left out.")
    averaged = keys.validation_sets(known) if score_key == AVERAGE_KEY else ()
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
        scores=_curve(run, score),
        entropies=_curve(run, entropy),
        run=run,
    )


def pair(
    steps: NDArray[np.int64], entropy: Array, score: Array, shift: int = 1
) -> tuple[NDArray[np.int64], Array, Array]:
    """Join each score at a step s with the entropy at s + shift, where both are finite.

    steps: [n], ascending, distinct. entropy, score: [n], nan where the step has none. Returns (steps, entropy, score),
    each [m].
    """
    scored, measured = np.isfinite(score), np.isfinite(entropy)
    _, left, right = np.intersect1d(steps[scored] + shift, steps[measured], assume_unique=True, return_indices=True)
    return steps[scored][left], entropy[measured][right], score[scored][left]


def score_key(run: Run) -> str | None:
    """The key of the run's validation score in verl's log, or None before any validation."""
    return pick_score(run.keys())


def law_points(run: Run) -> tuple[Array, Array]:
    """(entropy, score), each [m], of verl's own entropy and the validation score; empty before any validation."""
    key = score_key(run)
    if key is None:
        return np.empty(0), np.empty(0)
    _, entropy, score = pair(run.steps, run.column(ENTROPY_KEY), run.column(key))
    return entropy, score


def _curve(run: Run, values: Array) -> Curve:
    finite = np.isfinite(values)
    return Curve(run.steps[finite], values[finite])


def _check_log(run: Run, known: list[str]) -> None:
    if not known:
        raise NoPoints(
            "not a known kind of log: there is no record of verl's file or console logger, TensorBoard or W&B, and no "
            "table with a step column"
        )
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


def _notes_on_entropy(key: str, entropy: Array) -> list[str]:
    notes = []
    low, high = float(entropy.min()), float(entropy.max())
    if low < 0:
        notes.append(f"The entropy falls to {low:g}: no entropy over tokens is negative.")
    elif high > _ABSURD:
        notes.append(f"The entropy rises to {high:g}: no policy over tokens has that many nats; a sum over tokens?")
    elif high > _LARGEST_IN_NATS:
        notes.append(f"The entropy rises to {high:g}, more nats than any vocabulary gives: in bits?")
    if key == "actor/entropy_loss":
        notes.append(
            "Up to 0.4, verl averages this entropy over the wrong tokens if use_dynamic_bsz is on (JustRL issue 5)."
        )
    return notes


def _control(run: Run) -> str | None:
    if not np.nansum(run.column(_PREFIX + "selected_tokens")) > 0:
        return None
    # Only KL-Cov takes the tokens above a threshold; Clip-Cov draws them from a band.
    return "kl_cov" if np.isfinite(run.column(_PREFIX + "threshold")).any() else "clip_cov"


def _count(number: int, singular: str, plural: str | None = None) -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
