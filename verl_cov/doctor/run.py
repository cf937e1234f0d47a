"""Would a run with a given configuration use verl-cov, and would it be refused at start?"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from verl_cov.doctor.checks import PLUGIN, Check

if TYPE_CHECKING:
    from omegaconf import DictConfig

NOT_HERE = "on this machine it would not start"


def check_run(overrides: Sequence[str], file: Path | None) -> Iterator[Check]:
    """What verl-cov's start-up check says of the run of :func:`load_config`. To be called after ``import verl``."""
    name, notices = "configuration", list[str]()
    if importlib.util.find_spec("verl") is None:
        return  # said already
    if PLUGIN not in sys.modules:  # what the check itself imports must not make it pass
        yield Check("FAIL", name, "not checked: a run would not load verl-cov either, for the reason above")
        return
    from verl_cov.hooks.asks import asks_for_verl_cov
    from verl_cov.hooks.checks import configuration

    answer = Check("note", name, "does not ask for verl-cov, which leaves this run alone: add +verl_cov=kl_cov, say")
    try:
        config = load_config(overrides, file)
        if asks_for_verl_cov(config):
            configuration.refuse(config)
            notices = list(configuration.notices(config))
            line = configuration.start_up_line(config)
            answer = Check("ok", name, f"asks for verl-cov; at start it prints: {line}")
            notices += _refused_here(config)
        elif misspelt := next(filter(_is_misspelt, overrides), None):
            text = f"{misspelt} does not ask for verl-cov: did you mean +verl_cov=kl_cov?"
            answer = Check("FAIL", name, text)
    except Exception as error:  # of whatever kind: why the run would not start is what was asked
        answer = Check("FAIL", name, f"the run would not start: {' '.join(str(error).split())}")
    for notice in notices:
        yield Check("warn" if "WARNING" in notice else "note", name, notice)
    yield answer


def _refused_here(config: DictConfig) -> list[str]:
    """What this machine cannot run; the run may be meant for another one."""
    from verl_cov.hooks.checks import configuration

    try:
        configuration.refuse_here(config)
    except ValueError as error:
        return [f"WARNING: {NOT_HERE}: {error}"]
    return []


def _is_misspelt(override: str) -> bool:
    """True for an override whose key looks like our flag and is not, such as +verlcov=kl_cov."""
    key = override.partition("=")[0]
    return key != "+verl_cov" and re.match(r"\+*verl[-_ ]?cov", key, re.IGNORECASE) is not None


def load_config(overrides: Sequence[str], file: Path | None) -> DictConfig:
    """The configuration in ``file``, or what ``python -m verl.trainer.main_ppo OVERRIDES`` would compose.

    Raises ValueError, in one line, for an override that Hydra refuses and for a file that is no configuration of
    verl's.
    """
    if file is None:
        from verl_cov.hooks.checks import command_line
        from verl_cov.recipes.compose import compose_main_ppo

        command_line.refuse(overrides)
        return compose_main_ppo([override for override in overrides if not override.startswith("hydra.")])
    import yaml
    from omegaconf import DictConfig, OmegaConf

    try:
        config = OmegaConf.load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read as YAML: {error}") from None
    if not isinstance(config, DictConfig) or "actor_rollout_ref" not in config:
        raise ValueError(f"{file} has no actor_rollout_ref: give verl's whole configuration, .hydra/config.yaml say")
    return config
