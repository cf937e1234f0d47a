"""Which keys of a log hold the entropy and the score, and on which policy each was measured.

`ENTROPIES` and `SCORES` are the tables, the best first; docs/law.md says which trainer logs what, with the sources. `*`
stands for anything. At step n a key is of the policy before update n or after it. A key outside the tables is taken to
be of the policy after the update if its name begins with val, eval or test, and otherwise of the policy before it; that
is a guess, and said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from verl_cov.law.readers import AVERAGE_KEY, SCORE_PREFIX, NoPoints


@dataclass(frozen=True)
class Known:
    """A key that a trainer is known to log. after: whether it is of the policy after the update. note: what the
    quantity is, if not the mean over tokens of the entropy of the policy that sampled them."""

    pattern: str
    after: bool = False
    note: str = ""


_ROLLING = "{key} is averaged while the policy is updated, so it is of several policies."
ENTROPIES = (
    Known("actor/cov/entropy"),  # verl-cov: mean of the sequences' means, the paper's
    Known("actor/entropy"),  # verl: as loss_agg_mode averages it
    Known(
        "actor/entropy_loss",  # older verl
        note="Up to 0.4, verl averages this entropy over the wrong tokens if use_dynamic_bsz is on (JustRL issue 5).",
    ),
    Known("train_entropy/all"),  # the paper's fork of verl
    Known("val-cov/entropy", after=True),  # verl-cov: the validation's generations
    Known("test_entropy/all", after=True),  # the paper's fork of verl: the same
    Known("critic/entropy/mean"),  # ROLL: mean over tokens, before the update
    Known(
        "entropy/all/mean",  # prime-rl
        note="prime-rl trains on rollouts of older policies, and measures {key} under the newest.",
    ),
    Known("eval/entropy", after=True),  # TRL, of the evaluation's
    Known("eval_entropy", after=True),
    Known("train/entropy", note="{key}: as TRL logs it, a mean of the means of batches since the last log."),
    Known("entropy", note="{key}: as TRL logs it, a mean of the means of batches since the last log."),
    Known("train/entropy/mean", note="{key}: a mean of the responses' means (ms-swift)."),
    Known("entropy/mean", note="{key}: a mean of the responses' means (ms-swift)."),
    Known("policy/policy_entropy", note=_ROLLING),  # SkyRL
    Known("policy_entropy", note=_ROLLING),
    Known(
        "train/entropy_loss",
        note="{key} is a mean of the means of batches during the update (OpenRLHF), or of responses' means (slime).",
    ),
    Known("entropy_loss", note=_ROLLING),  # OpenRLHF's console
    Known("optim/entropy", note="{key} is a sampled estimate: the mean of -log p of the sampled tokens (tinker)."),
    Known("train/approx_entropy", note="{key} is an importance-weighted estimate from the sampled tokens (NeMo-RL)."),
    Known("approx_entropy", note="{key} is an importance-weighted estimate from the sampled tokens (NeMo-RL)."),
)
SCORES = (
    Known(AVERAGE_KEY, after=True),  # verl-cov: mean over all generations of all sets, the paper's
    Known("val-core/*/mean@*", after=True),  # verl, of one set
    Known("val-core/*", after=True),
    Known("val-cov/pass@*", after=True),  # verl-cov
    Known("val-cov/greedy*", after=True),
    Known("val/test_score/*", after=True),  # older verl
    Known("val/score-all", after=True),  # the paper's fork of verl
    Known("eval/all/avg_score", after=True),  # SkyRL
    Known("eval/*/avg_score", after=True),
    Known("test/env/all/correct"),  # tinker-cookbook validates before the update of its step
    Known("test/env/all/reward/total"),
    Known("test/env/*/reward/total"),
    Known("validation/accuracy", after=True),  # NeMo-RL
    Known("val_correct/all/mean"),  # ROLL validates before the update of its step
    Known("val_correct/*/mean"),
    Known("eval/*/avg@*"),  # prime-rl: of the policy that this step's rollouts are of
    Known("eval/*/reward/mean"),
    Known("eval/eval_*_pass1", after=True),  # OpenRLHF
    Known("eval_*_pass1", after=True),
    Known("eval/reward", after=True),  # TRL
    Known("eval_reward", after=True),
    Known("eval/?", after=True),  # slime: eval/SET, see _is_set
    Known("critic/score/mean"),  # verl, ROLL: reward of the rollouts
    Known("reward/avg_raw_reward"),  # SkyRL
    Known("env/all/reward/total"),  # tinker-cookbook
    Known("train/agg/effective/*reward/mean"),  # prime-rl
    Known("train/agg/all/*reward/mean"),
    Known("reward/all/mean"),
    Known("reward/mean"),
    Known("rollout/raw_reward"),  # slime
    Known("train/reward"),  # TRL, OpenRLHF, NeMo-RL
    Known("reward"),  # TRL; from here on also anyone's table, in upper or lower case
    Known("score"),
    Known("accuracy"),
    Known("return"),
)
ENTROPY_KEYS = tuple(known.pattern for known in ENTROPIES)

_AFTER = re.compile(r"(?:val(?:idation)?|eval(?:uation)?|test)(?:[/_-]|$)")
_SET_ACCURACY = re.compile(rf"{SCORE_PREFIX}(.+?)/acc/mean@")
_SLIMES_SETS = "eval/?"
_SIMPLE = {"entropy", "reward", "score", "accuracy", "return"}
_NO_SET = {"loss", "entropy", "kl", "step", "steps", "epoch", "time", "runtime", "second", "samples", "num", "tokens"}
_NO_SET |= {"length", "len", "ratio", "rate", "lr", "grad", "std", "min", "max", "count", "speed", "lag", "perplexity"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SCORE_WORDS = {"score", "scores", "reward", "rewards", "acc", "accuracy", "return", "returns", "correct", "pass"}
_EVALUATION_WORDS = {"val", "validation", "eval", "evaluation", "test"}
_ENTROPY_WORDS = {"entropy", "entropies"}


def known_as(key: str, table: Sequence[Known]) -> Known | None:
    """The row of the table for a key."""
    return next((known for known in table if _matches(key, known.pattern)), None)


def is_after_update(key: str) -> bool:
    """Whether the key's value at step n was measured after update n."""
    known = known_as(key, ENTROPIES) or known_as(key, SCORES)
    return is_validation(key) if known is None else known.after


def is_validation(key: str) -> bool:
    """Whether the key's name says that it is of a validation."""
    return _AFTER.match(key) is not None


def is_guess(key: str, table: bool = False) -> bool:
    """Whether it is only a guess from the key's name of which policy it is. table: the key is a column of anyone's
    table, where a plain `reward` need not be TRL's."""
    if table and key.lower() in _SIMPLE:
        return True
    return known_as(key, ENTROPIES) is None and known_as(key, SCORES) is None


def candidates(keys: Sequence[str], table: Sequence[Known]) -> list[list[str]]:
    """The keys, among the sorted `keys`, that a row of the table fits, the best row first; each key once."""
    groups: list[list[str]] = []
    seen: set[str] = set()
    for known in table:
        group = [key for key in keys if key not in seen and _matches(key, known.pattern)]
        seen.update(group)
        groups += [group] * bool(group)
    return groups


def asked_scores(keys: Sequence[str], wanted: str) -> list[str]:
    """The keys whose mean is the score that the user asked for: a key, or those that match a glob.

    Raises NoPoints with the fix, without the run's name.
    """
    matches = [wanted] if wanted in keys else [key for key in keys if fnmatchcase(key, wanted)]
    if not matches:
        raise NoPoints(f"no score {wanted!r} in the log; {suggest_scores(keys, wanted)}")
    if len({is_after_update(key) for key in matches}) > 1:
        raise NoPoints(f"{wanted!r} matches validation and training scores: {listed(matches)}; choose one kind")
    return matches


def suggest_scores(keys: Sequence[str], wanted: str = "") -> str:
    """Which keys may be a score, as the end of a message."""
    named = _with_words(keys, _SCORE_WORDS)
    return _suggest(keys, wanted, "score", [*named, *_with_words(keys, _EVALUATION_WORDS)])


def suggest_entropies(keys: Sequence[str], wanted: str = "") -> str:
    """Which keys may be an entropy, as the end of a message."""
    return _suggest(keys, wanted, "entropy", _with_words(keys, _ENTROPY_WORDS))


def notes_on(entropy_key: str, score_key: str, table: bool = False) -> list[str]:
    """What the entropy is, and what was assumed about keys that are not in the tables. table: as in `is_guess`."""
    known = None if is_guess(entropy_key, table) else known_as(entropy_key, ENTROPIES)
    what = [known.note.format(key=entropy_key)] if known is not None and known.note else []
    return what + [
        f"{key} is not a known key: from its name it is taken to be of the policy "
        f"{'after' if is_after_update(key) else 'before'} the update, which is a guess: --join same or next decides it."
        for key in (entropy_key, score_key)
        if is_guess(key, table)
    ]


def validation_sets(keys: Sequence[str]) -> tuple[str, ...]:
    """Names of the data sets whose accuracy verl logs."""
    return tuple(sorted({match[1] for key in keys if (match := _SET_ACCURACY.match(key))}))


def listed(items: Sequence[str]) -> str:
    """At most ten of the items, separated by commas, and how many more there are."""
    return ", ".join(items[:10]) + (f" and {len(items) - 10} more" if len(items) > 10 else "")


def _matches(key: str, pattern: str) -> bool:
    if pattern in _SIMPLE:
        return key.lower() == pattern
    return _is_set(key) if pattern == _SLIMES_SETS else fnmatchcase(key, pattern)


def _is_set(key: str) -> bool:
    """Whether a key may be slime's score of a data set: no trainer's loss, time or length."""
    first, _, name = key.partition("/")
    return first == "eval" and bool(name) and "/" not in name and not _words(name) & _NO_SET


def _words(key: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(key)}


def _with_words(keys: Iterable[str], words: set[str]) -> list[str]:
    """The keys that have one of the words as a whole word; times and the like are none."""
    return [key for key in keys if _words(key) & words and not re.match(r"(?:time|timing|perf)", key)]


def _suggest(keys: Sequence[str], wanted: str, kind: str, named: Sequence[str]) -> str:
    near = get_close_matches(wanted, keys, 10, cutoff=0.6) if wanted else []
    near = near or list(dict.fromkeys(named))
    if not near:
        return (
            f"choose its key with --{kind}-key (there {'is' if len(keys) == 1 else 'are'} {len(keys)}: {listed(keys)})"
        )
    return f"choose one with --{kind}-key: {listed(near)}"
