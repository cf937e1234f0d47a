"""Logs pass@k of a validation's samples, for each validation set and over the prompts of all of them.

    val-cov/pass@4          mean over all prompts; val-cov/pass@4/SET: of one set

A success is a response whose ``acc`` (where the reward function gives none in a set: whose score) is 1; values other
than 0 and 1 need ``cov_val_success``, or the set is left out with a warning. The samples of a prompt are the
``val_kwargs.n`` responses to one row.

Leans on the names ``acc`` and ``reward`` among what verl's trainers hand to :mod:`.logged`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cov.core.pass_at_k import USUAL, NoSuccess, NoThreshold, mean_pass_at_k, tally
from verl_cov.hooks.asks import config_from_trainer
from verl_cov.hooks.loss_modes import POLICY_LOSS
from verl_cov.hooks.reporting import reporting
from verl_cov.hooks.seams import Seam
from verl_cov.hooks.validation import logged
from verl_cov.hooks.validation.averages import PREFIX
from verl_cov.hooks.validation.temperatures import AGENT_LOOP, AGENT_LOOP_FIELD

FIELD = f"{POLICY_LOSS}.cov_val_pass_at"
SUCCESS_FIELD = f"{POLICY_LOSS}.cov_val_success"
_SAMPLING = "actor_rollout_ref.rollout.val_kwargs"

Counts = dict[str, list[tuple[int, int]]]  # of each set: (samples, successes) of its prompts

seam = Seam()


def install() -> None:
    logged.add(seam, "pass@k", _measure)


def _measure(
    config: DictConfig,
    data_sources: Sequence[str],
    sample_uids: Sequence[str],
    infos: dict[str, list[Any]],
    expected: Mapping[tuple[str, str], int] | None,
) -> dict[str, float]:
    if not (ks := wanted(config)):
        return {}
    n = samples_per_prompt(config)
    requested = expected or {(str(name), str(uid)): n for name, uid in zip(data_sources, sample_uids, strict=True)}
    counts = counts_of_sets(data_sources, sample_uids, infos, lowest_success(config), requested)
    return named(counts, {k: f"pass@{k}" for k in ks})


def wanted(config: DictConfig) -> tuple[int, ...]:
    """Returns the k whose pass@k this run logs; none where each prompt has one sample, or none but greedy ones."""
    cov = config_from_trainer(config)
    if cov is None or cov.cov_metrics == "off" or cov.cov_val_pass_at == "off":
        return ()
    if cov.cov_val_pass_at != "auto":
        return tuple(cov.cov_val_pass_at)
    n = samples_per_prompt(config)
    return tuple(k for k in USUAL if k <= n) if n > 1 and not _samples_agree(config) else ()


def samples_per_prompt(config: DictConfig) -> int:
    """Responses to each validation row."""
    return OmegaConf.select(config, f"{_SAMPLING}.n", default=None) or 1


def lowest_success(config: DictConfig) -> float | None:
    """Returns the lowest value of a reward function that is a success; None: 1 is, and 0 is not."""
    cov = config_from_trainer(config)
    return None if cov is None else cov.cov_val_success


def refuse(config: DictConfig) -> None:
    """Raises ValueError for a pass@k that this run's validation has too few samples for, or only identical ones."""
    cov = config_from_trainer(config)
    if cov is None or isinstance(cov.cov_val_pass_at, str):
        return
    n, k = samples_per_prompt(config), max(cov.cov_val_pass_at)
    if k > n:
        raise ValueError(
            f"{FIELD}={list(cov.cov_val_pass_at)} needs {k} samples a prompt, and {_SAMPLING}.n={n}: set {_SAMPLING}."
            f"n={k}, or {FIELD}=auto, which logs what n allows"
        )
    if k > 1 and _samples_agree(config):
        raise ValueError(
            f"{FIELD}={list(cov.cov_val_pass_at)} needs samples that differ, and with {_SAMPLING}.temperature=0 all "
            f"{n} of a prompt are its greedy response: set {_SAMPLING}.temperature=1.0 and {_SAMPLING}.do_sample=True"
        )


def _samples_agree(config: DictConfig) -> bool:
    """True if a prompt's samples are one greedy response, n times."""
    own = OmegaConf.select(config, AGENT_LOOP_FIELD, default=None) == AGENT_LOOP  # rows may have a temperature
    return not own and OmegaConf.select(config, f"{_SAMPLING}.temperature", default=None) == 0


def counts_of_sets(
    names: Sequence[str],
    prompts: Sequence[str],
    infos: Mapping[str, Sequence[object]],
    least: float | None,
    expected: Mapping[tuple[str, str], int],
) -> Counts:
    """Counts (samples, successes) of the prompts of each set, from one entry a response.

    infos: the lists ``reward`` and, where a reward function gave one, ``acc``. A set whose values are neither 0 nor 1
    is left out, with a warning, unless ``least`` says from where on they are a success.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for at, name in enumerate(names):
        rows[str(name)].append(at)
    counts: Counts = {}
    for name, its in rows.items():
        with reporting(f"pass@k and the greedy accuracy of the validation set {name}"):
            key, values = _values(infos, its, len(names))
            of_prompt = {prompt: number for (of, prompt), number in expected.items() if of == name}
            try:
                counts[name] = tally([str(prompts[at]) for at in its], values, least, of_prompt)
            except NoSuccess as error:
                fix = f": set {SUCCESS_FIELD} to the lowest {key} that is a success"
                raise NoSuccess(f"{key} {error}{fix * isinstance(error, NoThreshold)}") from None
    return counts


def _values(infos: Mapping[str, Sequence[object]], rows: Sequence[int], total: int) -> tuple[str, list[object]]:
    """What decides a success in these rows, ``acc`` or ``reward``, and its values."""
    for key in ("acc", "reward"):
        every = infos.get(key, ())
        if len(every) not in (0, total):  # verl's lists are, if a reward function returns a key "reward"
            raise ValueError(f"{len(every)} values of {key} for {total} responses: whose is which is not known")
        values = [every[at] for at in rows] if len(every) else []
        if any(value is not None for value in values):
            return key, values
    raise ValueError("the reward function gave neither acc nor a score")


def named(counts: Counts, keys: Mapping[int, str]) -> dict[str, float]:
    """verl's metrics: the mean over all prompts and over those of each set, for each {k: key}.

    A set in which a prompt has fewer than k samples has no pass@k, and is not in the mean over all.
    """
    return dict(_named(counts, keys))


def _named(counts: Counts, keys: Mapping[int, str]) -> Iterator[tuple[str, float]]:
    for k, key in keys.items():
        of_sets = {name: value for name, its in counts.items() if (value := mean_pass_at_k(its, k)) is not None}
        over_all = mean_pass_at_k([one for name in of_sets for one in counts[name]], k)
        if over_all is not None:
            yield PREFIX + key, over_all
        for name, value in of_sets.items():
            yield f"{PREFIX}{key}/{name}", value
