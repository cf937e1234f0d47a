"""Which keys of a log hold the entropy and the score, and on which policy each was measured.

The first key that has values counts. `*` stands for anything; if several keys match, the first in sorted order counts.

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

A key outside the table is taken to be of the policy after the update if its name begins with val, eval or test, and
otherwise of the policy before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from verl_cov.law.readers import AVERAGE_KEY, SCORE_PREFIX, NoPoints

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

_AFTER = re.compile(r"(?:val(?:idation)?|eval(?:uation)?|test)(?:[/_-]|$)")
_SET_ACCURACY = re.compile(rf"{SCORE_PREFIX}(.+?)/acc/mean@")


def is_after_update(key: str) -> bool:
    """Whether the key's value at step n was measured after update n."""
    return _AFTER.match(key) is not None


def choose_scores(keys: Sequence[str], wanted: str | None, notes: list[str]) -> list[str]:
    """The keys, among the sorted `keys` of a log, whose mean is the score; appends to `notes` what a reader must know.

    wanted: a key, or a glob that averages the keys that match. Raises NoPoints with the fix, without the run's name.
    """
    if wanted is not None:
        matches = [wanted] if wanted in keys else [key for key in keys if fnmatchcase(key, wanted)]
        if not matches:
            raise NoPoints(f"no score {wanted!r} in the log; {_suggest(keys, wanted, 'score')}")
        if len({is_after_update(key) for key in matches}) > 1:
            raise NoPoints(f"{wanted!r} matches validation and training scores: {listed(matches)}; choose one kind")
        if len(matches) > 1:
            notes.append(f"The score is the mean of {len(matches)} keys: {listed(matches)}.")
        return matches
    for pattern in SCORE_KEYS:
        matches = [key for key in keys if fnmatchcase(key, pattern)]
        if not matches:
            continue
        score, *others = matches
        if others:
            notes.append(f"Other scores: {listed(others)}; choose one, or several with *, with --score-key.")
        if not is_after_update(score):
            notes.append(f"There is no validation: {score} is the training score, of the policy before the update.")
        return [score]
    raise NoPoints(f"no known score in the log; {_suggest(keys, 'score reward acc val', 'score')}")


def choose_entropy(keys: Sequence[str], wanted: str | None, score: str, notes: list[str]) -> str:
    """The key of the entropy that goes with `score`. Arguments and errors as in `choose_scores`."""
    if wanted is not None:
        if wanted not in keys:
            raise NoPoints(f"no entropy {wanted!r} in the log; {_suggest(keys, wanted, 'entropy')}")
        return wanted
    known = [key for key in ENTROPY_KEYS if key in keys]
    if not known:
        raise NoPoints(
            "no known entropy in the log (verl logs one with actor.calculate_entropy=True); "
            f"{_suggest(keys, 'entropy', 'entropy')}"
        )
    if not is_after_update(score):  # an evaluation's entropy is logged too rarely for a training score
        known = [key for key in known if not is_after_update(key)] or known
    entropy, *others = known
    if others:
        notes.append(f"Other entropies: {listed(others)}; choose one with --entropy-key.")
    return entropy


def notes_on_unknown(entropy_key: str, score_key: str) -> list[str]:
    """What was assumed about keys that are not in the table."""
    return [
        f"{key} is not a known key: from its name it is taken to be of the policy "
        f"{'after' if is_after_update(key) else 'before'} the update."
        for key, patterns in ((entropy_key, ENTROPY_KEYS), (score_key, SCORE_KEYS))
        if not any(fnmatchcase(key, pattern) for pattern in patterns)
    ]


def validation_sets(keys: Sequence[str]) -> tuple[str, ...]:
    """Names of the data sets whose accuracy verl logs."""
    return tuple(sorted({match[1] for key in keys if (match := _SET_ACCURACY.match(key))}))


def listed(items: Sequence[str]) -> str:
    """At most ten of the items, separated by commas, and how many more there are."""
    return ", ".join(items[:10]) + (f" and {len(items) - 10} more" if len(items) > 10 else "")


def _suggest(keys: Sequence[str], wanted: str, kind: str) -> str:
    words = [word for word in re.split(r"[^a-z]+", wanted.lower()) if word]
    similar = [key for key in keys if any(word in key.lower() for word in words)]
    similar = get_close_matches(wanted, similar, 10, cutoff=0.0) or similar[:10]
    if not similar:
        return f"choose its key with --{kind}-key (there are {len(keys)}: {listed(keys)})"
    return f"choose one with --{kind}-key: {listed(similar)}"
