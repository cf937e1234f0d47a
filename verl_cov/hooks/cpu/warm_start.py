"""Ray's workers are forked from one process that has imported verl and vLLM, instead of each importing them itself.

A run has ten workers, which import the same packages one after the other: most of the minute and a half before its
first step. With a Ray that the trainer starts itself, a fork server (:mod:`.fork_server`) imports them once, while Ray
starts. Ray's raylet then starts :mod:`.fork_worker` in the place of its own ``setup_worker.py``, which asks for a fork;
a worker that would differ from one that Ray starts (another language, another environment) is started by Ray's own.
``VERL_COV_WARM_START=0`` turns it off.

Leans on ``verl.trainer.constants_ppo.get_ppo_ray_runtime_env(config)``, which a trainer calls right before
``ray.init``, and on ``ray._private.ray_constants.SETUP_WORKER_FILENAME``, joined to Ray's own folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cov.hooks.cpu import fork_worker
from verl_cov.hooks.seams import Seam
from verl_cov.hooks.trainers import starts_own_ray

SWITCH = "VERL_COV_WARM_START"

# Ray gives up a worker that has not registered by then, and its driver waits for the first ones for ever. One of these
# waits for the fork server's imports, which take longer than Ray's 60 s on a busy machine.
REGISTRATION_SECONDS = "1800"

seam = Seam()


def install() -> None:
    if os.environ.get(SWITCH, "").strip() != "0":
        seam.when_imported("verl.trainer.constants_ppo", _wrap)


def _wrap(constants_ppo: ModuleType) -> None:
    seam.wrap(constants_ppo, "get_ppo_ray_runtime_env", _runtime_env)


def _runtime_env(original: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
    runtime_env = original(*args, **kwargs)
    config = args[0] if args else kwargs.get("config")  # verl 0.9.0 gives none: its workers start as ever
    if config is not None and sys.platform == "linux" and starts_own_ray(config):
        start_server({**runtime_env.get("env_vars", {}), **_env_vars(config)})
    return runtime_env


def _env_vars(config: DictConfig) -> dict[str, str]:
    """What verl and the user's configuration add to the environment of the run's workers."""
    queue = {"TRANSFER_QUEUE_ENABLE": "1"} if OmegaConf.select(config, "transfer_queue.enable", default=False) else {}
    users = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars", default=None) or {}
    return {**queue, **{str(key): str(value) for key, value in users.items()}}


def start_server(env_vars: dict[str, str], *modules: str) -> None:
    """Starts a fork server for workers with these variables, and has the Ray that is started next use it.

    modules: what it imports; without any, what verl's workers import.
    """
    from ray._private import ray_constants

    os.environ.setdefault("RAY_worker_register_timeout_seconds", REGISTRATION_SECONDS)
    folder = Path(tempfile.mkdtemp(prefix="verl_cov_"))
    os.environ[fork_worker.SOCKET] = str(folder / "fork-server")
    # It ends when this process does, which holds the other end of its standard input. In a process group of its own:
    # Ctrl-C in the terminal is the driver's to handle.
    seam.server = subprocess.Popen(  # type: ignore[attr-defined]  # kept: closing the pipe would end it
        [sys.executable, "-m", "verl_cov.hooks.cpu.fork_server", os.environ[fork_worker.SOCKET], *modules],
        stdin=subprocess.PIPE,
        env={**os.environ, **env_vars},
        preexec_fn=os.setpgrp,
    )
    seam.replace(ray_constants, "SETUP_WORKER_FILENAME", str(Path(fork_worker.__file__).resolve()))
