"""The start-up check: runs in the driver before any worker starts, and prints the line that says verl-cov is active.

Leans on ``verl.utils.config.validate_config(config, ...)``, which ``main_ppo`` calls first: from 0.9 on in the driver,
before that in the TaskRunner, a Ray actor. And on ``verl.trainer.main_ppo.run_ppo(config, task_runner_class)``, which
the entry points of verl's other trainers import (the one-step-off trainer validates in its task runner, the fully
asynchronous one not at all). What is refused ends the program with one line that names the field and the fix. A run
that does not ask for verl-cov is verl's business alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from verl_cov import __version__
from verl_cov.hooks import cpu
from verl_cov.hooks.asks import asks_for_verl_cov
from verl_cov.hooks.checks import command_line, configuration, machine
from verl_cov.hooks.cpu import refusals as cpu_refusals
from verl_cov.hooks.fail_fast import watch
from verl_cov.hooks.reporting import reporting
from verl_cov.hooks.seams import Seam
from verl_cov.hooks.status import status
from verl_cov.hooks.trainers import other_trainer, starts_own_ray
from verl_cov.hooks.versions import installed_release

logger = logging.getLogger(__name__)

seam = Seam()


def install() -> None:
    _end_if_refused(command_line.refuse, command_line.of_this_program())
    seam.when_imported("verl.utils.config", lambda module: seam.wrap(module, "validate_config", _validate_config))
    # Only who imports verl.trainer.main_ppo gets this run_ppo: with `python -m verl.trainer.main_ppo` it is __main__'s.
    seam.when_imported("verl.trainer.main_ppo", lambda module: seam.wrap(module, "run_ppo", _run_ppo))


def _validate_config(original: Callable, config: DictConfig, *args: Any, **kwargs: Any) -> None:
    if not asks_for_verl_cov(config):
        logger.debug("verl-cov %s is installed, and this run does not ask for it", __version__)
        if cpu.is_selected() and not (status.error or _in_ray_worker()):
            _end_if_refused(_refuse_on_cpu, config)
        return original(config, *args, **kwargs)
    in_worker = _in_ray_worker()
    if in_worker and (status.error or _has_v1()):
        # Some trainers check once more inside their task runner: the driver has done all this.
        return original(config, *args, **kwargs)
    _end_if_refused(_refuse, config, in_worker)
    original(config, *args, **kwargs)
    return _start(config)


def _run_ppo(original: Callable, config: DictConfig, *args: Any, **kwargs: Any) -> None:
    if asks_for_verl_cov(config) and other_trainer(config) is not None and not _in_ray_worker():
        _end_if_refused(_refuse, config)
        _start(config)
    return original(config, *args, **kwargs)


def _refuse(config: DictConfig) -> None:
    configuration.refuse(config)
    if _has_v1():
        configuration.refuse_here(config)


def _refuse_on_cpu(config: DictConfig) -> None:
    """Makes the only checks in a run that asks for the CPU platform and nothing else."""
    cpu_refusals.refuse_here(config)
    machine.refuse_too_few_ray_cpus(config)


def _end_if_refused(refuse: Callable[[Any], None], what: DictConfig | list[str], in_worker: bool = False) -> None:
    try:
        refuse(what)
    except ValueError as error:
        if in_worker:  # an actor that exits leaves no message; what it raises, Ray hands to the driver
            raise RuntimeError(f"verl-cov: {error}") from None
        # SystemExit, because Hydra would bury any other exception under its own message.
        raise SystemExit(f"verl-cov: {error}") from None


def _start(config: DictConfig) -> None:
    with reporting("the notices at start"):
        for notice in configuration.notices(config):
            print(f"verl-cov: {notice}", flush=True)
    print(configuration.start_up_line(config), flush=True)
    if _has_v1():
        watch(starts_own_ray(config))


def _has_v1() -> bool:
    return not status.error and installed_release().v1


def _in_ray_worker() -> bool:
    from ray._private.worker import WORKER_MODE, global_worker

    return global_worker.mode == WORKER_MODE
