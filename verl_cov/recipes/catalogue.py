"""The catalogue of recipes: the files of `verl_cov/conf/recipe` and `verl_cov/conf/experiment`. Needs no verl or Hydra.

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
# The models that are made on this machine, each with its tasks, which are made here too.
MADE = {"tiny": ("toy", "pointer"), "smollm2-135m": ("arithmetic",)}
TOYS = tuple(task for tasks in MADE.values() for task in tasks)


class UnknownRecipe(ValueError):
    """No file has the name that was given; the message suggests the nearest ones."""


@dataclass(frozen=True)
class Selection:
    """A recipe. choices: group -> file; overrides: the experiment's run's and then the user's."""

    choices: Mapping[str, str]
    experiment: str | None = None
    run: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`recipe.name`, which verl's loggers show: the user's, or one that tells the recipe's groups."""
        return "-".join(self.folder.parts)

    @property
    def folder(self) -> Path:
        """Where the run goes, below the folder of runs: NAME, or EXPERIMENT/RUN. Raises ValueError for a bad name."""
        given = [word.partition("=")[2] for word in self.overrides if word.lstrip("+").startswith("recipe.name=")]
        if given:
            return Path(_folder_name(given[-1].strip("'\"")))
        if self.experiment is None:
            return Path("-".join(self.choices[group] for group in GROUPS if group != "scale"))
        usual = experiment(self.experiment).selection(self.run).choices
        swapped = [self.choices[group] for group in GROUPS if self.choices[group] != usual[group]]
        if self.run is None:
            return Path("-".join([self.experiment, *swapped]))
        return Path(self.experiment, "-".join([self.run, *swapped]))

    @property
    def uses_toy(self) -> bool:
        """Whether it reads a model or a task that is made on this machine."""
        return self.choices["model"] in MADE or self.choices["task"] in TOYS

    def groups(self) -> list[str]:
        """Hydra's overrides that select the files."""
        if self.experiment is None:
            return [f"+recipe/{group}={self.choices[group]}" for group in GROUPS]
        return [f"+experiment={self.experiment}"]

    def hydra_overrides(self) -> list[str]:
        """The command-line arguments of `python -m verl.trainer.main_ppo`."""
        return [*self.groups(), *self.overrides]


@dataclass(frozen=True)
class Experiment:
    """A file of `verl_cov/conf/experiment`. choices: its groups; runs: name -> overrides, empty if it is one run."""

    name: str
    about: str
    choices: Mapping[str, str]
    runs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def selection(self, run: str | None = None, overrides: Sequence[str] = ()) -> Selection:
        """The recipe of one run, the first if none is named. Raises UnknownRecipe."""
        if run is None and self.runs:
            run = next(iter(self.runs))
        if run is not None and run not in self.runs:
            raise UnknownRecipe(unknown(f"run of {self.name}", run, self.runs))
        choices, others = _swap(self.choices, [*(self.runs[run] if run is not None else ()), *overrides])
        swaps = [f"recipe/{group}={name}" for group, name in choices.items() if name != self.choices[group]]
        return Selection(choices, self.name, run, (*swaps, *others))


@functools.cache
def options(group: str) -> dict[str, str]:
    """The files of a group, or of "experiment": name -> description. Shared parts (`_base`) are left out."""
    folder = CONF / "experiment" if group == "experiment" else CONF / "recipe" / group
    return {path.stem: about(path) for path in sorted(folder.glob("[!_]*.yaml"))}


def about(path: Path) -> str:
    """The comment at the head of a file, joined into one line."""
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
    """The one recipe that the words mean, of an experiment its first run; see `parse_all`. Raises UnknownRecipe."""
    selections = _parse(words, scale)
    if len(selections) > 1:
        raise UnknownRecipe(f"give one recipe, not {len(selections)}: only `verl-cov recipes run` takes several")
    return selections[0]


def parse_all(words: Sequence[str], scale: str | None = None) -> list[Selection]:
    """The recipes that the words of a command line mean, each with all the overrides (key=value) among the words.

    A recipe is EXPERIMENT[/RUN], MODEL/ALGORITHM/ENTROPY/TASK, or, if it is the only one, those four words. Of an
    experiment with several runs, one must be named.
    scale: the group `scale`; None: the experiment's, or what fits the model (`natural_scale`). Raises UnknownRecipe.
    """
    selections = _parse(words, scale)
    for selection in selections:
        if selection.experiment in words and selection.run is not None:
            runs = list(experiment(selection.experiment).runs)
            raise UnknownRecipe(
                f"{selection.experiment} has {len(runs)} runs: give one of "
                f"{', '.join(f'{selection.experiment}/{run}' for run in runs)}, or train all of them: "
                f"verl-cov recipes run $(verl-cov recipes commands {selection.experiment})"
            )
    return selections


def _parse(words: Sequence[str], scale: str | None) -> list[Selection]:
    recipes = [word for word in words if not _is_override(word)]
    overrides = [word for word in words if _is_override(word)]
    if scale is not None:
        overrides.insert(0, f"recipe/scale={check('scale', scale)}")
    if len(recipes) == len(GROUPS) - 1 and not any("/" in word or word in options("experiment") for word in recipes):
        recipes = ["/".join(recipes)]
    if len(recipes) > 1 and recipes[0] in options("model"):
        raise UnknownRecipe(f"a recipe is EXPERIMENT[/RUN] or MODEL ALGORITHM ENTROPY TASK, not {' '.join(recipes)}")
    if not recipes:
        raise UnknownRecipe(
            "give a recipe: EXPERIMENT[/RUN] or MODEL ALGORITHM ENTROPY TASK; `verl-cov recipes list` has them all"
        )
    selections = [_selection(recipe, overrides) for recipe in recipes]
    folders = [selection.folder for selection in selections]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UnknownRecipe(f"two of the recipes would share the folder {folder}: run them one by one")
    return selections


def _selection(recipe: str, overrides: Sequence[str]) -> Selection:
    words = recipe.split("/")
    if len(words) == len(GROUPS) - 1:
        choices = {group: check(group, word) for group, word in zip(GROUPS, words, strict=False)}
        choices["scale"] = natural_scale(choices["model"])
        choices, others = _swap(choices, overrides)
        return Selection(choices, overrides=others)
    name, _, run = recipe.partition("/")
    if name not in options("experiment") and name in options("model"):
        task = MADE.get(name, ("math",))[0]
        raise UnknownRecipe(
            f"{recipe} begins with a model: give MODEL ALGORITHM ENTROPY TASK, such as `{name} grpo kl_cov {task}`, or "
            "an experiment; `verl-cov recipes list` has all names"
        )
    return experiment(name).selection(run or None, overrides)


def _swap(choices: Mapping[str, str], overrides: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Apply `recipe/GROUP=NAME` words to choices; returns them and the other overrides. Raises UnknownRecipe."""
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
    """Return `name` if it can name a single folder. Raises ValueError otherwise."""
    if re.fullmatch(r"[\w.+@-][\w.+@ -]*", name) and name not in (".", ".."):
        return name
    raise ValueError(f"recipe.name={name} names the run's folder: use letters, digits, blanks and ._+@- only")


def natural_scale(model: str) -> str:
    """The smallest scale that holds a model's runs as in the paper: cpu, node8 or nodes4x8."""
    if model in MADE:
        return "cpu"
    return "nodes4x8" if model in ("qwen2.5-32b", "mistral-small-24b") else "node8"


def check(group: str, name: str) -> str:
    """Return `name` if the group has such a file. Raises UnknownRecipe otherwise."""
    if group not in GROUPS:
        raise UnknownRecipe(unknown("group", group, GROUPS))
    if name not in options(group):
        raise UnknownRecipe(unknown(group, name, options(group)))
    return name


def _is_override(word: str) -> bool:
    return "=" in word or word.startswith("~")
