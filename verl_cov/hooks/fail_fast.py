"""Ends a run that would otherwise hang because one of verl's actors died, or because Ray cannot place one.

verl's trainers wait for rollouts in a polling loop; when an agent loop, a reward worker, a storage unit or a vLLM
server dies, nothing arrives and nothing fails. A daemon thread in the driver reads Ray's actor and placement-group
tables and ends the program with one line. Only verl's own actors end the run; any other dead actor is reported once,
because the user's code may tolerate it. The thread runs only if the configuration asks for verl-cov, and not with
``VERL_COV_FAIL_FAST=0``. Leans on ``ray._private.state.state.actor_table`` (the public API needs the dashboard).

A vLLM engine is a child of its server's actor and can die alone: in a watched run the server then ends itself, so that
Ray sees it. Leans on ``vLLMHttpServer.run_server`` leaving an ``AsyncLLM`` in ``self.engine``, whose ``errored`` turns
true. A server learns that its run is watched from Ray's key-value store, where the watching driver leaves a mark for
its job.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from verl_cov.hooks.seams import Seam

if TYPE_CHECKING:
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)
seam = Seam()

SWITCH = "VERL_COV_FAIL_FAST"
# The classes of the actors that verl's trainers cannot go on without: workers, agent loops, reward loops, rollout
# servers and their load balancer, TransferQueue's storage, and what runs the training.
VERL_ACTORS = frozenset(
    (
        "ActorRolloutRefWorker",
        "AgentLoopWorker",
        "AgentLoopWorkerTQ",
        "CheckpointEngineWorker",
        "DetachActorWorker",
        "FullyAsyncRollouter",
        "FullyAsyncTaskRunner",
        "FullyAsyncTrainer",
        "GlobalRequestLoadBalancer",
        "MessageQueue",
        "OneStepTaskRunner",
        "RewardLoopWorker",
        "SGLangHttpServer",
        "SimpleStorageUnit",
        "TaskRunner",
        "TaskRunnerV1",
        "TrainingWorker",
        "TransferQueueController",
        "TRTLLMHttpServer",
        "vLLMHttpServer",
        "WorkerDict",
    )
)

CONNECT_SECONDS = 0.2
POLL_SECONDS = 5.0
# Time for verl to report a dead worker itself: its own error says more than ours.
GRACE_SECONDS = 20.0
# Ray needs seconds to place a group. Imports come later and do not count.
PLACEMENT_SECONDS = 90.0


def install() -> None:
    # The driver's part starts later: the start-up check calls :func:`watch` when the configuration has passed.
    seam.when_imported("verl.workers.rollout.vllm_rollout.vllm_async_server", _end_server_with_its_engine)


def _end_server_with_its_engine(module: ModuleType) -> None:
    seam.wrap(module.vLLMHttpServer, "run_server", _run_server)


async def _run_server(original: Callable, server: vLLMHttpServer, *args: Any, **kwargs: Any) -> None:
    await original(server, *args, **kwargs)
    if is_watched():
        server._verl_cov_engine_watch = asyncio.create_task(_end_with(server.engine))  # kept, or it is collected


async def _end_with(engine: AsyncLLM) -> None:
    while not engine.errored:
        await asyncio.sleep(POLL_SECONDS)
    print("verl-cov: the vLLM engine of this server died, so the server ends too", file=sys.stderr, flush=True)
    os._exit(1)


def is_watched() -> bool:
    """Tells, in an actor of a run, whether that run's driver watches it."""
    from ray.experimental.internal_kv import _internal_kv_get

    return _internal_kv_get(_mark()) is not None


def _mark() -> bytes:
    import ray

    return f"verl_cov:watched:{ray.get_runtime_context().get_job_id()}".encode()


@functools.cache
def watch(own_cluster: bool) -> None:
    """Starts to watch this process's Ray job, once; does nothing with ``VERL_COV_FAIL_FAST=0``.

    Args:
        own_cluster: True if this program starts its Ray cluster. Only then is placement judged: in a shared cluster,
            groups of other jobs wait too, and a busy cluster is not a lost run.
    """
    if os.environ.get(SWITCH, "").strip() == "0":
        return
    threading.Thread(target=_loop, args=(own_cluster,), name="verl-cov-fail-fast", daemon=True).start()


@dataclass
class Watch:
    """Decides from one reading of Ray's tables whether the run is lost. Time is an argument, for tests."""

    since: dict[str, float] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)

    def verdict(
        self, actors: dict[str, dict], groups: dict[str, dict], job: str, cpus: float, now: float
    ) -> str | None:
        """Returns one line that names the cause, or None if the run may still go on."""
        troubles: dict[str, tuple[float, str]] = {}
        for actor_id, actor in actors.items():
            if actor["JobID"] != job or actor["State"] != "DEAD" or not _died_by_itself(str(actor["DeathCause"])):
                continue
            name, reason = f"{actor['ActorClassName']} (pid {actor['Pid']})", _reason(str(actor["DeathCause"]))
            if is_verls(actor["ActorClassName"]):
                message = f"worker {name} died and the run cannot go on without it: {reason} ({SWITCH}=0: no watch)"
                troubles[actor_id] = (GRACE_SECONDS, message)
            elif actor_id not in self.warned:
                self.warned.add(actor_id)
                logger.warning("verl-cov: actor %s died. It is not one of verl's, so the run goes on. %s", name, reason)
        for group_id, group in groups.items():
            if group["state"] == "PENDING":
                wants = [dict(bundle) for bundle in group["bundles"].values()]
                troubles[group_id] = (
                    PLACEMENT_SECONDS,
                    f"Ray could not place {wants} for {PLACEMENT_SECONDS:g} s, it has {cpus:g} CPUs in all: raise "
                    "ray_kwargs.ray_init.num_cpus (or num_gpus), or free the cluster",
                )
        self.since = {key: self.since.get(key, now) for key in troubles}
        for key, (patience, message) in troubles.items():
            if now - self.since[key] >= patience:
                return message
        return None


def is_verls(actor_class: str) -> bool:
    """True for the class name of an actor that verl's trainers cannot go on without."""
    name = actor_class.rpartition(".")[2]
    return name in VERL_ACTORS or name.startswith("FusedWorker")


def _died_by_itself(cause: str) -> bool:
    # Ray's other reasons (RAY_KILL, OUT_OF_SCOPE, REF_DELETED ...) are how verl takes workers down, and an actor that
    # calls exit_actor() is reported as WORKER_DIED with the exit type INTENDED_USER_EXIT.
    if "INTENDED" in cause:
        return False
    return "WORKER_DIED" in cause or "NODE_DIED" in cause or "creation_task_failure" in cause


def _reason(cause: str) -> str:
    for line in cause.splitlines():
        if "error_message" in line:
            return line.split(":", 1)[1].strip().strip('"').split("Some common causes")[0].strip()
    return "no reason given by Ray"


def _loop(own_cluster: bool) -> None:
    import ray
    from ray.experimental.internal_kv import _internal_kv_put

    while not ray.is_initialized():
        time.sleep(CONNECT_SECONDS)
    try:
        _internal_kv_put(_mark(), b"1")
    except Exception:  # Ray has gone down again: there is nothing to watch
        return
    watch_state = Watch()
    while True:
        time.sleep(POLL_SECONDS)
        try:
            verdict = _check_ray(watch_state, own_cluster)
        except Exception:
            # Ray is going down, or has not come up: neither is ours to report.
            continue
        if verdict:
            _end(verdict)


def _check_ray(watch_state: Watch, own_cluster: bool) -> str | None:
    import ray

    if not ray.is_initialized():
        return None
    from ray._private.state import state

    job = ray.get_runtime_context().get_job_id()
    actors: dict[str, Any] = state.actor_table(None, None, None)
    groups = ray.util.placement_group_table() if own_cluster else {}
    return watch_state.verdict(actors, groups, job, ray.cluster_resources().get("CPU", 0), time.monotonic())


def _end(message: str) -> None:
    print(f"verl-cov: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # The main thread sits in ray.get, where no exception reaches it, and ray.shutdown() from here may end the process
    # with exit code 0. When the driver is gone, Ray ends the workers, and with them the cluster if the driver started
    # it.
    os._exit(1)
