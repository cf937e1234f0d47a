"""Refuses a run whose reward function, ours (``pkg://verl_cov.tasks.reward``), could not work.

At run time verl catches what a reward function raises and counts the prompt as failed: all of them. A failure in a
child process of the verifier for mathematics counts as a wrong answer. So the check is made before the run starts.

Leans on ``reward.custom_reward_function`` of verl's configuration.
"""

from __future__ import annotations

import importlib.util

from omegaconf import DictConfig, OmegaConf
from packaging.specifiers import SpecifierSet

from verl_cov.hooks import versions
from verl_cov.hooks.asks import names_verl_cov

_FUNCTION = "reward.custom_reward_function"
_OURS = "pkg://verl_cov.tasks.reward"


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package in front of it
        return False


def refuse(config: DictConfig) -> None:
    """Raises ValueError for our reward function without what it needs, or with an option that is misspelt or out of
    range."""
    path = str(OmegaConf.select(config, f"{_FUNCTION}.path", default=None))
    # verl takes dots and slashes between the names.
    if path.replace("/", ".") != _OURS.replace("/", "."):
        module = path.removeprefix("pkg://").replace("/", ".")
        if names_verl_cov(path) and not _exists(module):
            raise ValueError(f"{_FUNCTION}.path={path}: there is no such module; the reward function is {_OURS}")
        return
    from verl_cov.tasks.math import MATH_VERIFY
    from verl_cov.tasks.reward import check_options

    installed = versions.installed("math-verify")
    if installed is None or not SpecifierSet(MATH_VERIFY).contains(installed, prereleases=True):
        state = "which is not installed" if installed is None else f"and {installed} is installed"
        raise ValueError(
            f"{_FUNCTION}.path={path} needs math-verify{MATH_VERIFY}, {state}: pip install 'verl-cov[tasks]', on every "
            "node"
        )
    options = OmegaConf.select(config, f"{_FUNCTION}.reward_kwargs", default=None)
    if isinstance(options, DictConfig):
        check_options(OmegaConf.to_container(options, resolve=True))
