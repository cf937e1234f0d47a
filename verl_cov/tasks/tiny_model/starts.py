"""The starts that recipes name: TASK-SIZE-SEED, such as `pointer-small-3`; `model` is countdown-small-0."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from verl_cov.suggestions import unknown
from verl_cov.tasks import countdown, pointer
from verl_cov.tasks.tiny_model.model import Settings

# 0.04, 0.2, 0.9 and 3.0 million parameters, 17 to 100 thousand of them embeddings; heads of 32.
SIZES: dict[str, dict[str, Any]] = {
    "mini": {"hidden": 32, "layers": 2, "heads": 1, "inner": 96},
    "small": {"hidden": 64, "layers": 3, "heads": 2, "inner": 192},
    "medium": {"hidden": 128, "layers": 4, "heads": 4, "inner": 384, "lr": 2e-3},
    "large": {"hidden": 192, "layers": 6, "heads": 6, "inner": 576, "lr": 1e-3},
}
TASKS = {
    "countdown": Settings(),
    "pointer": Settings(task=pointer.Settings(), steps=3000, habit=0.8, slips=0.3, slips_from=0.85),
}
DEFAULT_NAME = "model"


def settings_of(name: str) -> Settings:
    """The settings of a start. Raises ValueError for a name that is none."""
    if name == DEFAULT_NAME:
        return Settings()
    words = re.fullmatch(r"(\w+)-(\w+)-(\d{1,6})", name)
    if words is None:
        raise ValueError(f"recipe.start={name} is no start: give TASK-SIZE-SEED, such as pointer-small-0")
    task, size, seed = words.groups()
    for what, given, there in (("task of recipe.start", task, TASKS), ("size of recipe.start", size, SIZES)):
        if given not in there:
            raise ValueError(unknown(what, given, there))
    return replace(TASKS[task], **SIZES[size], seed=int(seed))


def task_of(name: str) -> str:
    """The task of a start: the name of its folder of data, and of its module in :mod:`verl_cov.tasks`."""
    return "countdown" if isinstance(settings_of(name).task, countdown.Settings) else "pointer"


def check(name: str, task: str) -> None:
    """Raises ValueError unless the start is one, and of the task that it is trained on (as recipes call it)."""
    learned, wanted = task_of(name), "countdown" if task == "toy" else task
    if wanted in TASKS and learned != wanted:
        raise ValueError(
            f"recipe.start={name} has learned {learned}, and the task is {wanted}: give "
            f"recipe.start={wanted}-SIZE-SEED, or another recipe/task"
        )
