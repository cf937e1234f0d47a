"""Chooses what of a run's log is read as score and entropy, and joins the two.

Most trainers log under step n what they measured before update n and what they validated after it. So a validation at
step n goes with the entropy at step n + 1, and that of step 0 (`val_before_train`) with the entropy at step 1; the last
validation has no partner unless the log goes on. Two values from the same side of the update go together at the same
step. Nothing is interpolated.

:mod:`verl_cov.law.keys` has the keys and says on which side of the update each is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from verl_cov.law import keys
from verl_cov.law.fit import Array, fit
from verl_cov.law.readers import NoPoints, Run

LEAST = 3  # two points always lie on the curve
_FAR_BETTER = 10.0  # difference of log likelihoods times 2: what is called decisive evidence
_ENOUGH = 5  # points for a word about the join


class Curve(NamedTuple):
    """Logged values against the training step, both [n], ascending by step."""

    steps: NDArray[np.int64]
    values: Array


class Joined(NamedTuple):
    """The points, each [m]: step of the score, entropy, score."""

    steps: NDArray[np.int64]
    entropy: Array
    score: Array

    def usable(self) -> bool:
        """Whether a law can be fitted."""
        return np.unique(self.entropy).size >= LEAST


@dataclass(frozen=True)
class Reading:
    """What of a run is read, also of one that has no points yet.

    entropy_key, score_key: None if the log has none; score_key may be a glob. score_keys: the keys that it stands for.
    shift: the score at step n goes with the entropy at n + shift. scores, entropies: all in the log. joined: the
    points. notes: one sentence each on what was chosen. problems: why there are no points.
    """

    entropy_key: str | None
    score_key: str | None
    score_keys: tuple[str, ...]
    shift: int
    scores: Curve
    entropies: Curve
    joined: Joined
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def read(run: Run) -> Reading:
    """Choose score and entropy: those that the user wants (`run.wanted`), or else the first in the tables that have
    three points; without any, the first in the tables."""
    problems: list[str] = []
    groups, entropies = _scores(run, problems), _entropies(run, problems)
    scores = [score for group in groups for score in group]
    if not scores or not entropies:
        return _reading(run, scores[0] if scores else (), entropies[0] if entropies else None, (), problems)
    pairs = [(score, entropy) for score in scores for entropy in _in_order(entropies, score)]
    joins = [_join(run, *pair) for pair in pairs]
    at = next((at for at, joined in enumerate(joins) if joined.usable()), 0)
    score, entropy = pairs[at]
    notes = []
    if run.wanted.score is None:
        group = next(group for group in groups if score in group)
        others = [other[0] for other in group if other != score]
        if others:
            notes.append(f"Other scores: {keys.listed(others)}; choose one, or several with *, with --score-key.")
        notes += _fallback(run, scores, score, joins[0], joins[at])
    elif len(score) > 1:
        notes.append(f"The score is the mean of {len(score)} keys: {keys.listed(score)}.")
    if len(entropies) > 1:
        others = [other for other in entropies if other != entropy]
        notes.append(f"Other entropies: {keys.listed(others)}; choose one with --entropy-key.")
    return _reading(run, score, entropy, notes, problems)


def pair(steps: NDArray[np.int64], entropy: Array, score: Array, shift: int = 1) -> Joined:
    """Join each score at a step s with the entropy at s + shift, where both are finite.

    steps: [n], ascending, distinct. entropy, score: [n], nan where the step has none.
    """
    scored, measured = np.isfinite(score), np.isfinite(entropy)
    _, left, right = np.intersect1d(steps[scored] + shift, steps[measured], assume_unique=True, return_indices=True)
    return Joined(steps[scored][left], entropy[measured][right], score[scored][left])


def alternative(run: Run, reading: Reading) -> str | None:
    """A score that has enough points, with their number, if the one that is read has not."""
    entropies = _entropies(run, [])
    for group in keys.candidates(run.known, keys.SCORES):
        for key in group:
            for entropy in _in_order(entropies, (key,)):
                joined = _join(run, (key,), entropy)
                if joined.usable() and (key,) != reading.score_keys:
                    return f"--score-key {key} has {len(joined.steps)}"
    return None


def _reading(
    run: Run, score: tuple[str, ...], entropy: str | None, notes: Sequence[str], problems: Sequence[str]
) -> Reading:
    nothing = np.full(run.steps.shape, np.nan)
    scored = _mean(run, score) if score else nothing
    measured = run.column(entropy) if entropy is not None else nothing
    shift = _shift(run, score, entropy) if score and entropy is not None else 0
    joined = pair(run.steps, measured, scored, shift)
    return Reading(
        entropy_key=entropy,
        score_key=(run.wanted.score or score[0]) if score else None,
        score_keys=score,
        shift=shift,
        scores=_curve(run, scored),
        entropies=_curve(run, measured),
        joined=joined,
        notes=(*notes, *_about_the_join(run, score, entropy, shift)),
        problems=tuple(problems),
    )


def _scores(run: Run, problems: list[str]) -> list[list[tuple[str, ...]]]:
    """The scores to try, in groups of one kind; each a tuple of the keys that it is the mean of."""
    if run.wanted.score is None:
        groups = keys.candidates(run.known, keys.SCORES)
        if not groups:
            problems.append(f"no known score in the log; {keys.suggest_scores(run.known)}")
        return [[(key,) for key in group] for group in groups]
    try:
        return [[tuple(keys.asked_scores(run.known, run.wanted.score))]]
    except NoPoints as error:
        problems.append(str(error))
        return []


def _entropies(run: Run, problems: list[str]) -> list[str]:
    """The entropies to try."""
    wanted = run.wanted.entropy
    if wanted is None:
        found = [key for group in keys.candidates(run.known, keys.ENTROPIES) for key in group]
        if not found:
            problems.append(
                "no known entropy in the log (verl logs one with actor.calculate_entropy=True); "
                f"{keys.suggest_entropies(run.known)}"
            )
        return found
    if wanted not in run.known:
        problems.append(f"no entropy {wanted!r} in the log; {keys.suggest_entropies(run.known, wanted)}")
        return []
    return [wanted]


def _in_order(entropies: Sequence[str], score: tuple[str, ...]) -> list[str]:
    """The entropies that go with a score, the best first: an evaluation's is logged too rarely for a training score."""
    if keys.is_validation(score[0]):
        return list(entropies)
    return sorted(entropies, key=keys.is_after_update)


def _fallback(
    run: Run, scores: Sequence[tuple[str, ...]], chosen: tuple[str, ...], first: Joined, found: Joined
) -> list[str]:
    """What a reader must know about a score that is not the best of the log."""
    (key,) = chosen
    if keys.is_validation(key):
        return []
    best = scores[0][0]
    if not keys.is_validation(best) and keys.is_guess(key, run.table):
        return []  # what it is taken for is said with the join
    if not keys.is_validation(best):
        return [f"There is no validation: {key} is the training score, of the policy before the update."]
    return [
        f"{best} has {len(first.steps)} of the {LEAST} points that the law needs, so the training score {key} is read "
        f"instead, which has {len(found.steps)}; choose another with --score-key."
    ]


def _join(run: Run, score: tuple[str, ...], entropy: str) -> Joined:
    return pair(run.steps, run.column(entropy), _mean(run, score), _shift(run, score, entropy))


def _shift(run: Run, score: tuple[str, ...], entropy: str) -> int:
    if run.wanted.join != "auto":
        return int(run.wanted.join == "next")
    return int(keys.is_after_update(score[0])) - int(keys.is_after_update(entropy))


def _about_the_join(run: Run, score: tuple[str, ...], entropy: str | None, shift: int) -> list[str]:
    """Whether the other join fits far better, where that says something: for validations, and for unknown keys."""
    if entropy is None or not score or run.wanted.join != "auto":
        return []
    guessed = any(keys.is_guess(key, run.table) for key in (score[0], entropy))
    if not (guessed or keys.is_validation(score[0])):
        return []
    other = 0 if shift else 1
    here, there = (pair(run.steps, run.column(entropy), _mean(run, score), by) for by in (shift, other))
    both = np.intersect1d(here.steps, there.steps)
    if both.size < _ENOUGH:
        return []
    try:
        laws = [fit(*(column[np.isin(joined.steps, both)] for column in joined[1:])) for joined in (here, there)]
    except ValueError:
        return []
    spread = 1e-9 * float(np.ptp(here.score)) or 1e-300
    gain = 2 * both.size * math.log((laws[0].rmse + spread) / (laws[1].rmse + spread))
    if not (gain > _FAR_BETTER and laws[1].r2 > 0.5):
        return []
    ways = {0: "the same step", 1: "the next step", -1: "the step before"}
    return [
        f"With the entropy of {ways[other]} the scores follow the law far better (R² {laws[1].r2:.3f} instead of "
        f"{laws[0].r2:.3f}): if this trainer validates {'before' if other == 0 else 'after'} the update of the step, "
        f"give --join {'same' if other == 0 else 'next'}."
    ]


def _mean(run: Run, score: tuple[str, ...]) -> Array:
    return np.asarray(np.mean([run.column(key) for key in score], axis=0), dtype=np.float64)


def _curve(run: Run, values: Array) -> Curve:
    finite = np.isfinite(values)
    return Curve(run.steps[finite], values[finite])
