"""Which runs a command stands for: new ones, stopped ones to go on with, or finished ones to leave alone."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from verl_cov import terminal
from verl_cov.hooks.checks import command_line
from verl_cov.recipes import compose, machine
from verl_cov.recipes.catalogue import Selection
from verl_cov.recipes.finding import Finding
from verl_cov.recipes.launch import METRICS_KEY, Launch, finished, launch
from verl_cov.recipes.progress import Progress
from verl_cov.recipes.train import TrainingFailed, train

# `python -m MODULE`, of which Ctrl-C and a full disk leave no traceback.
_WITHOUT_TRACEBACK = """
import runpy, sys
from verl_cov.terminal import without_traceback
sys.excepthook = without_traceback
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
LANGUAGE = {"smollm2-135m": "smollm2", "arithmetic": "arithmetic"}  # made by these modules of verl_cov.tasks


@dataclass(frozen=True)
class Planned:
    """One run: how it would be launched, its resolved configuration, and whether it has reached its last step.

    digest: names the configuration; the launches of one run share it.
    """

    launch: Launch
    config: DictConfig
    digest: str
    finished: bool

    @property
    def note(self) -> str:
        """One line: what happens to it."""
        if self.finished:
            return f"{self.launch.name} is finished: {self.config.trainer.total_training_steps} steps"
        latest = Path(self.config.trainer.default_local_dir) / "latest_checkpointed_iteration.txt"
        if latest.is_file():
            return f"{self.launch.name} resumes after step {latest.read_text().strip()}"
        if self.launch.folder.is_dir():
            return f"{self.launch.name} starts over (no checkpoint yet)"
        return f"{self.launch.name} starts in {self.launch.folder}"

    def train(self, progress: Progress) -> None:
        """Train it to its end. Raises as `verl_cov.recipes.train.train`."""
        outcome = "stopped"
        progress.begin(self.launch.folder.name, self.config.trainer.total_training_steps)
        try:
            train(self.launch, self.digest, progress)
            outcome = "finished"
        except TrainingFailed:
            outcome = "failed"
            raise
        finally:
            progress.end(outcome)


def planned(selection: Selection, data: Path, toy: Path, runs: Path, number: int = 1) -> Planned:
    """One recipe's run. Raises ValueError for a configuration that does not compose."""
    made = launch(selection, data, toy, runs, number)
    command_line.refuse(made.overrides)  # before verl is imported
    if selection.choices["scale"] == "cpu":
        os.environ.setdefault("VERL_PLATFORM", "cpu")  # before verl is imported
    config = compose.resolved(compose.compose([word for word in made.overrides if not word.startswith("hydra.")]))
    recipe = config.get("recipe", {})
    if recipe.get("model") == "tiny" and "start" in recipe:
        from verl_cov.tasks.tiny_model import starts  # loads transformers

        starts.check(str(recipe.start), str(recipe.task))
    digest = compose.digest({key: value for key, value in compose.flat(config).items() if key != METRICS_KEY})
    saved = finished(Path(config.trainer.default_local_dir), config.trainer.total_training_steps)
    return Planned(made, config, digest, saved or made.has_finished(digest))


def check(selection: Selection, data: Path, toy: Path, runs: Path) -> list[Finding]:
    """What the machine check says of one recipe. Raises ValueError for a configuration that does not compose."""
    with terminal.working("composing the run and checking this machine"):
        return list(machine.check(planned(selection, data, toy, runs).config))


def rehearse(
    selections: Sequence[Selection], data: Path, toy: Path, runs: Path, *, again: bool = True, changed: bool = False
) -> tuple[list[Planned], list[Finding]]:
    """`plan`, and what verl and verl-cov would say of each configuration at start; makes and writes nothing."""
    with terminal.working("composing the runs and checking them as verl does"):
        made = plan(selections, data, toy, runs, again=again, changed=changed)
        todo = [run for run in made if not run.finished]
        findings = [finding for run in todo for finding in machine.configuration(run.config)]
    return made, list(dict.fromkeys(finding for finding in findings if finding.missing or finding.what == "note"))


def prepare(
    selections: Sequence[Selection], data: Path, toy: Path, runs: Path, *, again: bool = True, changed: bool = False
) -> tuple[list[Planned], list[Finding]]:
    """`rehearse`, then the models and tasks that are made here if they are needed, then the check of the machine.

    If a configuration is refused, nothing is made, and the machine is not looked at.
    """
    made, findings = rehearse(selections, data, toy, runs, again=again, changed=changed)
    todo = [run for run in made if not run.finished]
    if not todo or any(finding.missing for finding in findings):
        return made, findings
    for model, task, start in dict.fromkeys(_made_here(run.config.get("recipe", {})) for run in todo):
        if model == "tiny" or task in ("toy", "pointer"):
            make_toy(toy, start)
        for name in (task, model):
            if name in LANGUAGE:
                _make(LANGUAGE[name], toy / name)
    with terminal.working("checking this machine"):
        return made, list(dict.fromkeys(finding for run in todo for finding in machine.check(run.config)))


def _made_here(recipe: Mapping[str, Any]) -> tuple[str | None, str | None, str]:
    """What decides what is made: model, task, and start of the tiny models."""
    return recipe.get("model"), recipe.get("task"), str(recipe.get("start", "model"))


def make_toy(folder: Path, start: str = "model") -> None:
    """Make a start (`recipe.start`) and its task's data in `folder`; what is there already is kept.

    Raises ValueError: there is no such start, or it could not be made.
    """
    from verl_cov.tasks.tiny_model.starts import task_of  # loads transformers

    task = task_of(start)
    _make(task, folder / task)
    _make("tiny_model", folder / start, "--start", start)


def _make(module: str, folder: Path, *options: str) -> None:
    if not folder.exists():  # what cannot be made at all is told now
        folder.mkdir(parents=True)
        folder.rmdir()
    argv = [sys.executable, "-c", _WITHOUT_TRACEBACK, f"verl_cov.tasks.{module}", str(folder), *options]
    if subprocess.run(argv, stdout=subprocess.DEVNULL).returncode != 0:
        raise ValueError(f"could not make {folder}: the error stands above")


def plan(
    selections: Sequence[Selection], data: Path, toy: Path, runs: Path, *, again: bool = True, changed: bool = False
) -> list[Planned]:
    """The runs NAME, NAME-2, ... of the first number at which not all recipes are finished.

    So a stopped set of runs goes on, a finished one is left alone and the next stands beside it. again: False stays
    with the first number. changed: go on with a run that was started with other settings, which is a ValueError
    otherwise: nothing is trained over, and runs of different settings are never mixed in one set.
    """
    for number in itertools.count(1):
        made = [planned(selection, data, toy, runs, number) for selection in selections]
        if not again or not all(run.finished for run in made):
            break
        if not all(str(run.launch.folder) in run.config.trainer.default_local_dir for run in made):
            raise ValueError("trainer.default_local_dir holds a finished run: give another folder, or leave it out")
    for run in made:
        other = None if changed else run.launch.other_settings(run.digest)
        if other is not None:
            raise ValueError(
                f"{run.launch.folder} was started with other settings ({other}), and verl would go on from its "
                "checkpoint: give this run a name or folder of its own (recipe.name=NAME, --runs FOLDER), or --changed "
                "to go on with that one"
            )
    return made
