"""Refuses what is plainly wrong with verl-cov's own words on a command line, before verl is imported and composes them.

verl's imports take seconds, on a busy machine half a minute, and Hydra's advice about a misspelt field is to add it.
What needs the whole configuration is left to :mod:`verl_cov.hooks.checks.configuration`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib import resources

from verl_cov.core.target.settings import NODE
from verl_cov.hooks.asks import names_verl_cov
from verl_cov.hooks.loss_modes import POLICY_LOSS
from verl_cov.hooks.policy_loss_values import FIELDS, NUMBERS, OFF, RATIOS, check_ratio, check_value
from verl_cov.suggestions import did_you_mean

GROUP = "verl_cov"
CONTROLS = ("clip_cov", "kl_cov")
# Words that bring configurations or a class of the user's own, with groups and fields that are not known here.
_USERS_OWN = ("hydra.searchpath", "--config-", "-cd", "-cn", "-cp", f"{POLICY_LOSS}._target_")


def refuse(words: Sequence[str]) -> None:
    """Raises ValueError for a bad value, an unknown field or an unknown group of ours; names it and the fix.

    Does nothing if the words do not ask for verl-cov. Words that Hydra cannot read are Hydra's to refuse.
    """
    if not any(each in word for word in words for each in (GROUP, "recipe/entropy", "experiment=")):
        return  # without a look at other people's words
    if any(word.lstrip("+") in (f"{GROUP}=", f"{GROUP}=[]", f"{GROUP}=null") for word in words):
        raise ValueError(f"+{GROUP}= names nothing: give one of {', '.join(names(GROUP))}, or several, [kl_cov,cpu]")
    given = dict(_values(words))
    groups, entropy, mode = map(given.get, (GROUP, "recipe/entropy", f"{POLICY_LOSS}.loss_mode"))
    experiment = given.get("experiment") in names("experiment")
    controls = [name for name in (*_listed(groups), *_listed(entropy)) if name in CONTROLS]
    if not (groups or experiment or controls or names_verl_cov(mode)):
        return
    users_own = any(word.lstrip("+").startswith(_USERS_OWN) for word in words)
    if not users_own:
        for name in _listed(groups):
            if name not in names(GROUP):
                raise ValueError(f"+{GROUP}={name} is unknown{did_you_mean(str(name), names(GROUP))}")
        if not (entropy or experiment):  # which bring files of their own
            _refuse_without_its_file(words, _listed(groups))
    if mode is not None:
        control: str | None = str(mode).rpartition(".")[2] if names_verl_cov(mode) else ""
    else:
        control = controls[-1] if controls else None if experiment and not entropy else ""
    for key, value in given.items():
        parent, _, name = key.rpartition(".")
        if parent == POLICY_LOSS or (parent == "recipe" and name in NUMBERS):
            if name in FIELDS:
                _refuse_value(name, value, key, control)
            elif not users_own and not name.startswith("_") and importlib.util.find_spec("verl") is not None:
                from verl_cov.hooks.config import known_fields  # imports verl, to say what is wrong

                if name not in known_fields():
                    raise ValueError(f"{key} is unknown{did_you_mean(name, known_fields())}")


def _refuse_without_its_file(words: Sequence[str], composed: list[object]) -> None:
    """Raises ValueError for a number of a file of ours that is not composed; with a plus it is the user's own."""
    for key in (word.partition("=")[0] for word in words):
        for name in names(GROUP):
            its = key.startswith(f"{POLICY_LOSS}.cov_weights.{name}.") or (name == NODE and key.startswith(f"{NODE}."))
            if its and name not in composed:
                with_it = ",".join(map(str, [*composed, name]))
                raise ValueError(f"{key} is a number of {name}, which is not composed: give +{GROUP}=[{with_it}]")


def _refuse_value(name: str, value: object, key: str, control: str | None) -> None:
    """control: the loss's, "" if it is none of ours, None if the words do not tell."""
    if (isinstance(value, str) and "${" in value) or (value is False and name in OFF):
        return
    if control == "" and name in (*NUMBERS, "cov_seed"):  # the numbers of verl's own losses are verl's business
        return
    check_value(name, value, key)
    if name in RATIOS and control in (None, name.removesuffix("_ratio")):
        check_ratio(name, value, key)  # type: ignore[arg-type]


def of_this_program() -> list[str]:
    """The words of ``python -m verl.MODULE WORDS`` while Python still imports the packages above MODULE; else none."""
    words = sys.orig_argv
    for index, word in enumerate(words[:-1]):
        if word == "-m" and words[index + 1].startswith("verl.") and sys.argv[:1] == ["-m"]:
            return words[index + 2 :]
    return []


def names(group: str) -> list[str]:
    """The files of one of our groups of configurations."""
    files = resources.files("verl_cov.conf").joinpath(group).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _values(words: Sequence[str]) -> Iterator[tuple[str, object]]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException:
            continue
        if not override.is_delete() and not override.is_sweep_override():
            yield override.key_or_group, override.value()
