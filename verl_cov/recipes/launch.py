"""The command, environment and folder of a run: `runs/NAME/` holds its checkpoints and metrics, 001.jsonl, 002.jsonl...

verl's file logger empties the file it is given (verl/utils/tracking.py opens it with "wb"), so that each launch gets a
file of its own; `verl-cov watch`, `fit` and `report` read them as one run.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from verl_cov.demo.folder import next_segment
from verl_cov.demo.launch import quote
from verl_cov.recipes.catalogue import Selection

LOG = "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"
COMMANDS = "commands.jsonl"  # in a run's folder: the arguments of each launch


@dataclass(frozen=True)
class Launch:
    """argv and what is added to the environment; folder: of the run."""

    argv: list[str]
    environment: Mapping[str, str]
    folder: Path

    def settings(self) -> list[str]:
        """What makes this launch go on with an earlier one: its arguments, but for the log's name."""
        return [word for word in self.argv[1:] if not word.startswith(LOG)]

    def shell(self) -> str:
        """As a line for a shell."""
        added = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return " ".join([*added, shlex.join(["python", *self.argv[1:]])])


def launch(selection: Selection, data: Path, toy: Path, runs: Path) -> Launch:
    """data: where `verl-cov data prepare` wrote; toy: the tiny model's folder; runs: the folder of runs."""
    folder = (runs / selection.name).absolute()
    argv = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides(selection, data, toy, folder)]
    environment: dict[str, str] = {}
    if selection.choices["scale"] == "cpu":
        environment |= {"VERL_PLATFORM": "cpu", "TOKENIZERS_PARALLELISM": "false"}
        # Its own Ray: the logical GPUs and CPUs of +verl_cov=cpu cannot be given to a cluster that runs already.
        environment["RAY_ADDRESS"] = "local"
    return Launch(argv, environment, folder)


def overrides(selection: Selection, data: Path, toy: Path, folder: Path) -> list[str]:
    """What stands on verl's command line. Paths are absolute: Ray's workers have working folders of their own."""
    own = [f"recipe.name={_value(Path(selection.name))}"]
    if selection.uses_toy:
        own.append(f"recipe.toy={_value(toy.absolute())}")
    if selection.choices["task"] != "toy":
        own.append(f"recipe.data={_value(data.absolute())}")
    own.append(f"trainer.default_local_dir={_value(folder / 'checkpoints')}")
    own.append(f"hydra.run.dir={_value(folder / 'hydra')}")
    # Through Ray, not our environment: the trainer that logs is an actor, on a cluster maybe on another node, and verl
    # forwards a fixed list of variables (verl/trainer/constants_ppo.py).
    own.append(f"{LOG}={_value(next_segment(folder))}")
    # The user's last, so that they win; the recipe's own groups and runs before ours, which name them.
    users = [word for word in selection.overrides if not word.lstrip("+").startswith("recipe.name=")]
    return [*selection.groups(), *own, *users]


def _value(path: Path) -> str:
    """A path in Hydra's override grammar, in quotes only where it needs them."""
    return str(path) if re.fullmatch(r"[\w./-]+", str(path)) else quote(path)


def started_before(launch: Launch) -> list[str] | None:
    """The arguments of the folder's last launch, if they were others: verl would go on from its checkpoint just so."""
    record = launch.folder / COMMANDS
    for line in reversed(record.read_text().splitlines() if record.is_file() else []):
        try:
            before = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short by a full disk or a kill: the launch before it counts
        return None if before == launch.settings() else before
    return None


def finished(checkpoints: Path, steps: int | None) -> bool:
    """Whether the folder holds the checkpoint of the last of so many steps, which verl saves at every end."""
    latest = checkpoints / "latest_checkpointed_iteration.txt"  # verl/utils/checkpoint
    saved = latest.read_text().strip() if latest.is_file() else ""
    return steps is not None and saved.isdigit() and int(saved) >= steps


def start(launch: Launch) -> None:
    """Become the training: signals and the exit code are its own. Raises ValueError if the folder is in use."""
    launch.folder.mkdir(parents=True, exist_ok=True)
    # Held until the training ends, whatever ends it: two at once would write one log and one set of checkpoints.
    lock = os.open(launch.folder / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{launch.folder} is being trained in by another process") from None
    os.set_inheritable(lock, True)
    with (launch.folder / COMMANDS).open("a") as file:
        file.write(json.dumps(launch.settings()) + "\n")
    sys.stdout.flush()
    os.execvpe(launch.argv[0], launch.argv, {**os.environ, **launch.environment})
