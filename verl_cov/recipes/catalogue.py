"""Which recipes there are: the files of `verl_cov/conf/recipe` and `verl_cov/conf/experiment`. No verl, no Hydra.

A recipe is one file of each group, MODEL ALGORITHM ENTROPY TASK SCALE, or an experiment, which names them and may hold
several runs: EXPERIMENT/RUN.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from verl_cov.suggestions import unknown

CONF = Path(__file__).parent.parent / "conf"
GROUPS = ("model", "algorithm", "entropy", "task", "scale")


class UnknownRecipe(ValueError):
    """A name that no file has; the message holds the nearest ones."""


@dataclass(frozen=True)
class Selection:
    """A recipe: `choices` (group -> file), or an experiment's; `overrides` are the run's own and the user's, in order.

    name: of the run's folder, its checkpoints and its logs.
    """

    choices: Mapping[str, str]
    experiment: str | None = None
    run: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`recipe.name`, if it is given. Two recipes that differ in a group have two names."""
        given = [word.partition("=")[2] for word in self.overrides if word.lstrip("+").startswith("recipe.name=")]
        if given:
            return _folder_name(given[-1].strip("'\""))
        if self.experiment is None:
            return "-".join(self.choices[group] for group in GROUPS if group != "scale")
        usual = experiment(self.experiment).selection(self.run).choices
        swapped = [self.choices[group] for group in GROUPS if self.choices[group] != usual[group]]
        return "-".join([self.experiment, *([self.run] if self.run else []), *swapped])

    @property
    def uses_toy(self) -> bool:
        """Whether it reads the folder of the tiny model and the toy task."""
        return self.choices["model"] == "tiny" or self.choices["task"] == "toy"

    def groups(self) -> list[str]:
        """The words that name the files."""
        if self.experiment is None:
            return [f"+recipe/{group}={self.choices[group]}" for group in GROUPS]
        return [f"+experiment={self.experiment}"]

    def hydra_overrides(self) -> list[str]:
        """What stands after `python -m verl.trainer.main_ppo`."""
        return [*self.groups(), *self.overrides]


@dataclass(frozen=True)
class Experiment:
    """A file of `verl_cov/conf/experiment`. choices: its groups; runs: name -> overrides, none if it is one run."""

    name: str
    about: str
    choices: Mapping[str, str]
    runs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def selection(self, run: str | None = None, overrides: Sequence[str] = ()) -> Selection:
        """The run of that name; None: the first if there are several. Raises UnknownRecipe."""
        if run is None and self.runs:
            run = next(iter(self.runs))
        if run is not None and run not in self.runs:
            raise UnknownRecipe(unknown(f"run of {self.name}", run, self.runs))
        choices, others = _swap(self.choices, [*(self.runs[run] if run is not None else ()), *overrides])
        swaps = [f"recipe/{group}={name}" for group, name in choices.items() if name != self.choices[group]]
        return Selection(choices, self.name, run, (*swaps, *others))


@functools.cache
def options(group: str) -> dict[str, str]:
    """name -> what its file says it is, of a group; shared parts (`_base`) left out. "experiment" is a group here."""
    folder = CONF / "experiment" if group == "experiment" else CONF / "recipe" / group
    return {path.stem: about(path) for path in sorted(folder.glob("[!_]*.yaml"))}


def about(path: Path) -> str:
    """The comment at the head of a file, in one line."""
    lines = path.read_text().splitlines()[1:]  # after `# @package _global_`
    head = [line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]
    return " ".join(head)


@functools.cache
def experiment(name: str) -> Experiment:
    """Raises UnknownRecipe."""
    if name not in options("experiment"):
        raise UnknownRecipe(unknown("experiment", name, options("experiment")))
    path = CONF / "experiment" / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    choices = {
        key.removeprefix("/recipe/"): value
        for default in content["defaults"]
        if isinstance(default, dict)
        for key, value in default.items()
    }
    runs = {str(run): tuple(overrides) for run, overrides in content["recipe"].get("runs", {}).items()}
    return Experiment(name, about(path), choices, runs)


def parse(words: Sequence[str], scale: str | None = None) -> Selection:
    """A recipe from the words of a command line: `EXPERIMENT[/RUN]` or `MODEL ALGORITHM ENTROPY TASK`, then overrides.

    scale: the group `scale`; None: the experiment's, or what fits the model (`natural_scale`). Raises UnknownRecipe.
    """
    names = [word for word in words if not _is_override(word)]
    overrides = tuple(word for word in words if _is_override(word))
    if len(names) == 1:
        name, _, run = names[0].partition("/")
        if name not in options("experiment") and run == "" and name in options("model"):
            raise UnknownRecipe(f"{name} is a model: give MODEL ALGORITHM ENTROPY TASK, or an experiment")
        if scale is not None:
            overrides = (f"recipe/scale={check('scale', scale)}", *overrides)
        return experiment(name).selection(run or None, overrides)
    if len(names) != len(GROUPS) - 1:
        raise UnknownRecipe(
            f"a recipe is EXPERIMENT[/RUN] or MODEL ALGORITHM ENTROPY TASK, not {' '.join(names) or 'nothing'}"
            "; `verl-cov recipes list` has them all"
        )
    choices = {group: check(group, name) for group, name in zip(GROUPS, names, strict=False)}
    choices["scale"] = check("scale", scale) if scale is not None else natural_scale(choices["model"])
    choices, others = _swap(choices, overrides)
    return Selection(choices, overrides=others)


def _swap(choices: Mapping[str, str], overrides: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Take `recipe/GROUP=NAME` (the last word on a group counts) out of overrides. Raises UnknownRecipe."""
    swapped, others = dict(choices), []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+").startswith("recipe/"):
            group = key.lstrip("+").removeprefix("recipe/")
            swapped[group] = check(group, value)
        else:
            others.append(override)
    return swapped, tuple(others)


def _folder_name(name: str) -> str:
    """`name`, if it can name one folder. Raises ValueError."""
    if re.fullmatch(r"[\w.+@-][\w.+@ -]*", name) and name not in (".", ".."):
        return name
    raise ValueError(f"recipe.name={name} names the run's folder: letters, digits, blanks and ._+@- only")


def natural_scale(model: str) -> str:
    """The smallest of our scales that a model's runs in the paper need: cpu, node8 or nodes4x8."""
    if model == "tiny":
        return "cpu"
    return "nodes4x8" if model in ("qwen2.5-32b", "mistral-small-24b") else "node8"


def check(group: str, name: str) -> str:
    """`name`, if the group has it. Raises UnknownRecipe."""
    if group not in GROUPS:
        raise UnknownRecipe(unknown("group", group, GROUPS))
    if name not in options(group):
        raise UnknownRecipe(unknown(group, name, options(group)))
    return name


def _is_override(word: str) -> bool:
    return "=" in word or word.startswith("~")
