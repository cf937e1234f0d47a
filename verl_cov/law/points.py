"""The points of the law: which entropy goes with which score.

Keys, the first that has values counts (`*` stands for anything, and of several the first in sorted order):

| entropy, nats per token   | logged by                                                | of the policy         |
|---------------------------|----------------------------------------------------------|-----------------------|
| actor/cov/entropy         | verl-cov: mean of the sequences' means, the paper's      | before the update     |
| actor/entropy             | verl: as `loss_agg_mode` averages it                     | before the update     |
| actor/entropy_loss        | older verl                                               | before (or during)    |
| train_entropy/all         | the paper's fork of verl                                 | before the update     |
| val-cov/entropy           | verl-cov: the validation's generations                   | after the update      |
| test_entropy/all          | the paper's fork of verl: the same                       | after the update      |
| eval/entropy, eval_entropy| TRL, of the evaluation's                                 | after the update      |
| train/entropy, entropy    | TRL: mean since the last log                             | before the update     |
| policy/policy_entropy, policy_entropy | SkyRL: mean over the update's mini-batches   | before (or during)    |

| score                     | logged by                                                | of the policy         |
|---------------------------|----------------------------------------------------------|-----------------------|
| val-cov/acc/sample_weighted | verl-cov: mean over all generations of all sets, the paper's | after the update |
| val-core/*/mean@*, val-core/* | verl, of one set                                     | after the update      |
| val/test_score/*          | older verl                                               | after the update      |
| val/score-all             | the paper's fork of verl                                 | after the update      |
| eval/all/avg_score, eval/*/avg_score | SkyRL                                         | after the update      |
| eval/reward, eval_reward  | TRL                                                      | after the update      |
| critic/score/mean         | verl: reward of the rollouts                             | before the update     |
| reward/avg_raw_reward     | SkyRL: the same                                          | before the update     |
| train/reward, reward      | TRL: the same                                            | before the update     |

The join: two values belong together if they are of the same policy. All these trainers log what they measured before
update n, and what they validated after it, under step n. So a validation at step n goes with the entropy at step n + 1,
and step 0's (`val_before_train`) with that of step 1; the last validation has no partner unless the log goes on. Two
values from the same side of the update go together at the same step. Nothing is interpolated: a score without its
partner is dropped and counted. A key that is not in the table is taken to be of the policy after the update if its name
begins with val, eval or test, and otherwise of the one before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from verl_cov.law.readers import AVERAGE_KEY, SCORE_PREFIX, NoPoints, Run, find_runs

__all__ = ["ENTROPY_KEYS", "SCORE_KEYS", "NoPoints", "Points", "find_runs", "pair", "points"]

ENTROPY_KEYS = (
    "actor/cov/entropy",
    "actor/entropy",
    "actor/entropy_loss",
    "train_entropy/all",
    "val-cov/entropy",
    "test_entropy/all",
    "eval/entropy",
    "eval_entropy",
    "train/entropy",
    "entropy",
    "policy/policy_entropy",
    "policy_entropy",
)
SCORE_KEYS = (
    AVERAGE_KEY,
    "val-core/*/mean@*",
    "val-core/*",
    "val/test_score/*",
    "val/score-all",
    "eval/all/avg_score",
    "eval/*/avg_score",
    "eval/reward",
    "eval_reward",
    "critic/score/mean",
    "reward/avg_raw_reward",
    "train/reward",
    "reward",
)

_LEAST = 3  # two points always lie on the curve
_LARGEST_IN_NATS = 12.5  # the logarithm of the largest vocabularies, some 256 thousand tokens
_ABSURD = 20.0
_AFTER = re.compile(r"(?:val(?:idation)?|eval(?:uation)?|test)(?:[/_-]|$)")  # measured on the policy after the update
_IS_SET = re.compile(rf"{SCORE_PREFIX}.+/acc/mean@")
_PREFIX = "actor/cov/"


@dataclass(frozen=True)
class Points:
    """The points of one run.

    name: of the run. steps: [n], ascending, of the score. entropy: [n], nats per token. score: [n], as it was logged.
    entropy_key, score_key: what they were logged as (score_key may be a glob). control: "clip_cov" or "kl_cov" if the
    log shows that verl-cov acted on tokens, else None (other interventions leave no trace that could be told). notes:
    one sentence each on what was chosen, joined and dropped. averaged: the sets that an average of verl-cov's is over.
    """

    name: str
    steps: NDArray[np.int64]
    entropy: NDArray[np.float64]
    score: NDArray[np.float64]
    entropy_key: str
    score_key: str
    control: str | None
    notes: tuple[str, ...]
    averaged: tuple[str, ...] = ()


def points(run: Run, name: str, entropy_key: str | None = None, score_key: str | None = None) -> Points:
    """The (entropy, score) points of `run`.

    entropy_key: a key of the log. score_key: a key, or a glob like `val-core/*/mean@8`, which averages the keys that
    match, at the steps that have them all. Without them the module's table decides, and the notes say how.

    Raises NoPoints: the log has no record, or several runs' records in turns; a key is missing; fewer than three scores
    have an entropy; the entropy does not vary.
    """
    notes: list[str] = []
    keys = sorted(key for key in set().union(*run.records) if np.isfinite(run.column(key)).any())
    if not keys:
        raise NoPoints(
            f"{name}: not a log that we know: found no record of verl's file or console logger, TensorBoard or W&B, "
            "and no table with a step column"
        )
    if run.repeats > max(3, len(run.steps) // 4):
        raise NoPoints(
            f"{name}: the step runs backwards {run.repeats} times in {len(run.steps)} steps, with other values: "
            "several runs write to this log; give each a log of its own"
        )
    if run.left_over:
        raise NoPoints(
            f"{name}: the log begins again from its first step, and its last {_count(run.left_over, 'step')} "
            "are of the run before: give each run a log of its own"
        )
    scores = _score_keys(run, name, keys, score_key, notes)
    chosen_score = score_key or scores[0]
    chosen_entropy = _entropy_key(name, keys, entropy_key, scores[0], notes)

    score = np.mean([run.column(key) for key in scores], axis=0)
    entropy = run.column(chosen_entropy)
    shift = _shift(chosen_entropy, scores[0])
    steps, entropies, values = pair(run.steps, entropy, score, shift)
    notes.append(_joined(chosen_entropy, chosen_score, shift, len(steps)))
    lost = np.setdiff1d(run.steps[np.isfinite(score)], steps)
    if lost.size:
        partner = {1: "the next step", 0: "that step", -1: "the step before"}[shift]
        notes.append(f"{_count(lost.size, 'score')} dropped, without an entropy at {partner}: step {_some(lost)}.")
    if len(steps) < _LEAST:
        raise NoPoints(
            f"{name}: {_count(len(steps), 'point')} of {_count(int(np.isfinite(score).sum()), 'score')} "
            f"({chosen_score}) and {_count(int(np.isfinite(entropy).sum()), 'entropy', 'entropies')} "
            f"({chosen_entropy}); the law needs {_LEAST}: {_remedy(shift)}"
        )
    if np.ptp(entropies) == 0:
        raise NoPoints(
            f"{name}: {chosen_entropy} is {entropies[0]:g} at every point, which no law can be fitted to: "
            "name another key with --entropy-key"
        )
    notes += [*_assumed(chosen_entropy, ENTROPY_KEYS), *_assumed(scores[0], SCORE_KEYS), *_doubts(entropies)]
    if chosen_entropy == "actor/entropy_loss":
        notes.append(
            "verl up to 0.4 averages this entropy over the wrong tokens where use_dynamic_bsz is on (JustRL issue 5)."
        )
    if run.repeats:
        notes.append(f"The step ran backwards {_count(run.repeats, 'time')} (resumed?): the later values count.")
    if run.damaged:
        notes.append(f"{_count(run.damaged, 'damaged line')} left out.")
    averaged = _sets(keys) if chosen_score == AVERAGE_KEY else ()
    if averaged:
        notes.append(
            f"The score is the mean over all generations of {_count(len(averaged), 'set')}: {_list(averaged)}."
        )
    return Points(name, steps, entropies, values, chosen_entropy, chosen_score, _control(run), tuple(notes), averaged)


def pair(
    steps: NDArray[np.int64], entropy: NDArray[np.float64], score: NDArray[np.float64], shift: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """(steps, entropy, score), each [m]: the scores at a step s with the entropies at s + shift, where both are finite.

    steps: [n], ascending, distinct. entropy, score: [n], nan where the step has none.
    """
    scored, measured = np.isfinite(score), np.isfinite(entropy)
    _, left, right = np.intersect1d(steps[scored] + shift, steps[measured], assume_unique=True, return_indices=True)
    return steps[scored][left], entropy[measured][right], score[scored][left]


def _score_keys(run: Run, name: str, keys: list[str], wanted: str | None, notes: list[str]) -> list[str]:
    if wanted is not None:
        found = [wanted] if wanted in keys else [key for key in keys if fnmatchcase(key, wanted)]
        if not found:
            raise NoPoints(f"{name}: no score {wanted!r} in the log; {_near(keys, wanted, 'score')}")
        if len({bool(_AFTER.match(key)) for key in found}) > 1:
            raise NoPoints(f"{name}: {wanted!r} is validation and training scores: {_list(found)}; name one kind")
        if len(found) > 1:
            notes.append(f"The score is the mean of {len(found)} keys: {_list(found)}.")
        return found
    for pattern in SCORE_KEYS:
        found = [key for key in keys if fnmatchcase(key, pattern)]
        if not found:
            continue
        if len(found) > 1:
            notes.append(f"Other scores: {_list(found[1:])}; name one, or several with *, with --score-key.")
        if not _AFTER.match(found[0]):
            notes.append(f"There is no validation: {found[0]} is the training score, of the policy that was updated.")
        return found[:1]
    raise NoPoints(f"{name}: no score that we know in the log; {_near(keys, 'score reward acc val', 'score')}")


def _sets(keys: list[str]) -> tuple[str, ...]:
    """Names of the data sources that verl reports an accuracy of."""
    return tuple(sorted({key.removeprefix(SCORE_PREFIX).split("/acc/")[0] for key in keys if _IS_SET.match(key)}))


def _entropy_key(name: str, keys: list[str], wanted: str | None, score: str, notes: list[str]) -> str:
    if wanted is not None:
        if wanted not in keys:
            raise NoPoints(f"{name}: no entropy {wanted!r} in the log; {_near(keys, wanted, 'entropy')}")
        return wanted
    found = [key for key in ENTROPY_KEYS if key in keys]
    if not found:
        raise NoPoints(
            f"{name}: no entropy that we know in the log (verl logs one with actor.calculate_entropy=True); "
            f"{_near(keys, 'entropy', 'entropy')}"
        )
    if not _AFTER.match(score):  # an evaluation's entropy comes too seldom for a training score
        found = [key for key in found if not _AFTER.match(key)] or found
    if len(found) > 1:
        notes.append(f"Other entropies: {_list(found[1:])}; name one with --entropy-key.")
    return found[0]


def _shift(entropy_key: str, score_key: str) -> int:
    """How many steps after the score the entropy of the same policy is logged."""
    return int(bool(_AFTER.match(score_key))) - int(bool(_AFTER.match(entropy_key)))


def _joined(entropy_key: str, score_key: str, shift: int, count: int) -> str:
    where = {1: "step n + 1", 0: "the same step", -1: "step n - 1"}[shift]
    return f"{_count(count, 'point')}: {score_key} at step n with {entropy_key} at {where}, both of the same policy."


def _remedy(shift: int) -> str:
    if shift == 0:
        return "train on, or name other keys with --entropy-key and --score-key"
    return "train on, validate more often (verl: trainer.test_freq), and log the entropy at every step"


def _assumed(key: str, known: Sequence[str]) -> list[str]:
    if any(fnmatchcase(key, pattern) for pattern in known):
        return []
    side = "after" if _AFTER.match(key) else "before"
    return [f"{key} is not a key that we know: by its name it is taken to be of the policy {side} the update."]


def _doubts(entropy: NDArray[np.float64]) -> list[str]:
    low, high = float(entropy.min()), float(entropy.max())
    if low < 0:
        return [f"The entropy falls to {low:g}: no entropy of tokens is negative."]
    if high > _ABSURD:
        return [f"The entropy rises to {high:g}: no policy over tokens has that many nats; a sum over tokens?"]
    if high > _LARGEST_IN_NATS:
        return [f"The entropy rises to {high:g}, more nats than any vocabulary gives: in bits?"]
    return []


def _control(run: Run) -> str | None:
    if not np.nansum(run.column(_PREFIX + "selected_tokens")) > 0:
        return None
    # Only KL-Cov takes the tokens above a threshold; Clip-Cov draws them from a band.
    return "kl_cov" if np.isfinite(run.column(_PREFIX + "threshold")).any() else "clip_cov"


def _near(keys: list[str], wanted: str, kind: str) -> str:
    words = [word for word in re.split(r"[^a-z]+", wanted.lower()) if word]
    near = [key for key in keys if any(word in key.lower() for word in words)]
    near = get_close_matches(wanted, near, 10, cutoff=0.0) or near[:10]
    if not near:
        return f"name its key with --{kind}-key (there are {len(keys)}: {_list(keys)})"
    return f"name one with --{kind}-key: {_list(near)}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _some(steps: NDArray[np.int64]) -> str:
    return ", ".join(map(str, steps[:5])) + (", ..." if steps.size > 5 else "")


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
