"""One launch of verl's trainer: its command, its environment and its folder.

runs/NAME/ (for a run of an experiment runs/EXPERIMENT/RUN/) holds, and no launch ever overwrites:

  001.jsonl, 002.jsonl   verl's metrics, one file a launch, which `verl-cov watch`, `fit` and `report` read as one run;
                         verl's file logger empties the file it is given (verl/utils/tracking.py opens it with "wb")
  train.log              everything verl, Ray and vLLM printed, launch after launch
  launches.jsonl         the command and the settings of each launch
  checkpoints/, hydra/   verl's and Hydra's
  .lock                  held while a training is alive
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from verl_cov.recipes.catalogue import MADE, TOYS, Selection

METRICS_KEY = "ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"
RECORD = "launches.jsonl"
TRAINER = [sys.executable, "-m", "verl.trainer.main_ppo"]


@dataclass(frozen=True)
class Launch:
    """One start of the trainer.

    name: what messages call it; overrides: Hydra's, for verl; environment: what is added to ours; metrics: the file
    that verl logs to. Paths are absolute.
    """

    name: str
    overrides: list[str]
    environment: Mapping[str, str]
    folder: Path
    metrics: Path

    @property
    def argv(self) -> list[str]:
        return [*TRAINER, *self.overrides]

    @property
    def log(self) -> Path:
        return self.folder / "train.log"

    def shell(self) -> str:
        """The launch as a line for a shell."""
        added = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return " ".join([*added, shlex.join(["python", *self.argv[1:]])])

    def settings(self) -> list[str]:
        """The overrides that the launches of one run share: all but the file of metrics."""
        return [word for word in self.overrides if not word.startswith(f"+{METRICS_KEY}=")]

    def record(self, digest: str) -> None:
        """Append this launch to the folder's record. digest: of its configuration (`compose.digest`)."""
        when = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"
        self._append({"when": when, "metrics": self.metrics.name, "config": digest, "overrides": self.settings()})

    def record_end(self, digest: str) -> None:
        """Append that this launch has reached the end of its training."""
        self._append({"finished": digest})

    def has_finished(self, digest: str) -> bool:
        """Whether a launch with this configuration has reached its end, also one that saved no checkpoints."""
        return any(entry.get("finished") == digest for entry in self.entries())

    def other_settings(self, digest: str) -> str | None:
        """How the folder's last launch differs from this one, or None: verl would go on from its checkpoint."""
        before = [entry for entry in self.entries() if "config" in entry]
        if not before or before[-1]["config"] == digest:
            return None
        lost = [word for word in before[-1]["overrides"] if word not in self.settings()]
        new = [word for word in self.settings() if word not in before[-1]["overrides"]]
        if not lost and not new:
            return "the files of the recipe, or verl's, have changed"
        return " ".join(lost) or f"without {' '.join(new)}"

    def _append(self, entry: dict[str, Any]) -> None:
        path = self.folder / RECORD
        cut = path.is_file() and not path.read_bytes().endswith(b"\n")  # by a full disk or a kill
        with path.open("a") as file:
            file.write("\n" * cut + json.dumps(entry) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        """The folder's record of launches and of ends, without damaged lines."""
        path = self.folder / RECORD
        entries = []
        for line in path.read_text().splitlines() if path.is_file() else []:
            with suppress(json.JSONDecodeError):  # cut short by a full disk or a kill
                entries.append(json.loads(line))
        return entries


def launch(selection: Selection, data: Path, toy: Path, runs: Path, number: int = 1) -> Launch:
    """The next launch of a recipe.

    data: where `verl-cov data prepare` wrote; toy: the folder of what is made on this machine; runs: the folder of
    runs; number: 2 for the second run of this name (NAME-2), and so on.
    """
    suffix = f"-{number}" if number > 1 else ""
    first, *rest = selection.folder.parts
    folder = Path(runs, first + suffix, *rest).absolute()
    metrics = next_metrics_file(folder)
    environment = {
        "HYDRA_FULL_ERROR": "1",  # or Hydra drops the traceback that a failure is explained with
        "PYTHONUNBUFFERED": "1",  # or the log comes in blocks, and progress looks like a hang
    }
    if selection.choices["scale"] == "cpu":
        environment |= {"VERL_PLATFORM": "cpu", "TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0"}
        # Its own Ray: the logical GPUs and CPUs of +verl_cov=cpu cannot be given to a cluster that runs already.
        environment["RAY_ADDRESS"] = "local"
        environment["RAY_DEDUP_LOGS"] = "0"  # Ray would hold lines back, and drop repeated ones: worst in a failure
    if selection.choices["model"] in MADE:
        environment["HF_HUB_OFFLINE"] = "1"  # made on this machine
    words = _overrides(selection, selection.name + suffix, data, toy, folder, metrics)
    return Launch(str(Path(first + suffix, *rest)), words, environment, folder, metrics)


def _overrides(selection: Selection, name: str, data: Path, toy: Path, folder: Path, metrics: Path) -> list[str]:
    """verl's command line. Paths are absolute: Ray's workers have working folders of their own."""
    own = [f"recipe.name={quote(Path(name))}"]
    if selection.uses_toy:
        own.append(f"recipe.toy={quote(toy.absolute())}")
    if selection.choices["task"] not in TOYS:
        own.append(f"recipe.data={quote(data.absolute())}")
    own.append(f"trainer.default_local_dir={quote(folder / 'checkpoints')}")
    own.append(f"hydra.run.dir={quote(folder / 'hydra')}")
    # Through Ray, not our environment: the trainer that logs is an actor, on a cluster maybe on another node, and verl
    # forwards a fixed list of variables (verl/trainer/constants_ppo.py).
    own.append(f"+{METRICS_KEY}={quote(metrics)}")
    # The user's last, so that they win; the recipe's own groups and runs before ours, which name them.
    users = [word for word in selection.overrides if not word.lstrip("+").startswith("recipe.name=")]
    return [*selection.groups(), *own, *users]


def quote(path: Path) -> str:
    """A path as a value in Hydra's override grammar, in quotes only where it needs them.

    Inside quotes a backslash is a plain character, except before a quote, where it escapes and so has to be doubled.
    """
    if re.fullmatch(r"[\w./-]+", str(path)):
        return str(path)
    inner = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), str(path))
    return f"'{inner}'"


def next_metrics_file(folder: Path) -> Path:
    """The first of 001.jsonl, 002.jsonl, ... after those that are in `folder`."""
    taken = (int(path.stem) for path in folder.glob("[0-9]*.jsonl") if path.stem.isdigit())
    return folder / f"{max(taken, default=0) + 1:03d}.jsonl"


def finished(checkpoints: Path, steps: int | None) -> bool:
    """Whether `checkpoints` holds the checkpoint of step `steps`; verl saves the last step of every run."""
    latest = checkpoints / "latest_checkpointed_iteration.txt"  # verl/utils/checkpoint
    saved = latest.read_text().strip() if latest.is_file() else ""
    return steps is not None and saved.isdigit() and int(saved) >= steps
