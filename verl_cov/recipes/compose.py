"""verl's configuration for a recipe, composed by Hydra from verl's own defaults, and how it differs from them."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_cov.hooks import versions
from verl_cov.hooks.checks import command_line
from verl_cov.recipes import sources
from verl_cov.recipes.catalogue import Selection
from verl_cov.suggestions import unknown

PRIMARY = ("verl.trainer.config", "ppo_trainer")


def compose(overrides: Sequence[str]) -> DictConfig:
    """:func:`compose_main_ppo` for a recipe; they are stated against verl 0.9's configuration. Raises ValueError."""
    if importlib.util.find_spec("verl") is not None:
        versions.require_v1("a recipe")
    return compose_main_ppo(overrides)


def compose_main_ppo(overrides: Sequence[str]) -> DictConfig:
    """What `python -m verl.trainer.main_ppo OVERRIDES` composes, interpolations not yet resolved.

    Raises ValueError, with one line, for what Hydra refuses: an unknown file, a misspelt key.
    """
    if importlib.util.find_spec("verl") is None:  # Hydra would say that a module of configurations is not found
        raise ModuleNotFoundError("verl is not installed", name="verl")
    if GlobalHydra.instance().is_initialized():  # a caller's own: left as it is
        return _compose(overrides)
    with initialize_config_module(PRIMARY[0], version_base=None):
        return _compose(overrides)


def _compose(overrides: Sequence[str]) -> DictConfig:
    try:
        return hydra_compose(PRIMARY[1], overrides=list(overrides))
    except OverrideParseException as error:
        raise ValueError(f"{error.override} is not in Hydra's grammar: {error.message.splitlines()[0]}") from None
    except (HydraException, OmegaConfBaseException) as error:
        line = " ".join(str(error).split())
        misspelt = re.match(r"Could not override '([^']+)'", line)
        if misspelt and misspelt[1] == command_line.GROUP:
            line = f"{misspelt[1]}=NAME needs a plus: +{misspelt[1]}=NAME"
        elif misspelt:  # what there is with the recipe's and verl-cov's own fields, and not only verl's
            others = [word for word in overrides if word.partition("=")[0] != misspelt[1]]
            line = unknown("field", misspelt[1], flat(_compose(others)))
        raise ValueError(line) from None


def resolved(config: DictConfig) -> DictConfig:
    """Resolve all interpolations of `config` in place, as verl's task runner does. Raises ValueError."""
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ValueError(" ".join(str(error).split())) from None
    return config


@dataclass(frozen=True)
class Change:
    """A key that a recipe sets. default: verl's, or `ABSENT`; setting: where it is set, None on the command line."""

    key: str
    default: Any
    value: Any
    setting: sources.Setting | None

    @property
    def same(self) -> bool:
        return self.default == self.value

    def as_json(self) -> dict[str, Any]:
        """The key, both values, and the source with its place; null for what the command line or the run sets."""
        found = self.setting
        place = None if found is None else f"{found.file}:{found.line}"
        source = None if found is None else found.why
        return {"key": self.key, "default": self.default, "value": self.value, "source": source, "place": place}


ABSENT = "-"


def changes(selection: Selection) -> list[Change]:
    """Every key that the recipe's files or overrides set, in the order of verl's configuration, resolved."""
    command_line.refuse(selection.hydra_overrides())
    wins = sources.by_key(selection)
    given = {word.lstrip("+~").partition("=")[0] for word in selection.overrides if not word.startswith("recipe/")}
    before, after = flat(_defaults()), flat(resolved(compose(selection.hydra_overrides())))
    keys = [key for key in after if (key in wins or key in given) and not key.startswith("recipe.runs")]
    settings = [None if key in given else _explained(wins[key], wins, given) for key in keys]
    return [
        Change(key, before.get(key, ABSENT), after[key], setting) for key, setting in zip(keys, settings, strict=True)
    ]


def _explained(
    setting: sources.Setting, wins: Mapping[str, sources.Setting], given: set[str]
) -> sources.Setting | None:
    """`lr: ${recipe.lr}` gets the source of recipe.lr, or None if the command line gives that."""
    refers = re.match(r"\$\{(?:oc\.select:)?(recipe\.[\w.]+)", str(setting.value))
    if refers and refers[1] in given:
        return None
    return replace(wins[refers[1]], key=setting.key) if refers and not setting.why else setting


@functools.cache
def _defaults() -> DictConfig:
    return resolved(compose_main_ppo([]))


def flat(config: DictConfig) -> dict[str, Any]:
    """Dotted key -> value; a list is one value."""
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict) and value:
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    walk(OmegaConf.to_container(config), "")
    return flat


def digest(values: Mapping[str, Any]) -> str:
    """Sixteen hex digits that name these values, whatever their order."""
    text = OmegaConf.to_yaml(OmegaConf.create(dict(values)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
