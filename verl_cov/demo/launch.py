"""Start one training as a process of its own, follow it, and end it whatever happens. Knows verl's command line.

Signals go only to the process started here, its group and its session (where Ray's and vLLM's processes live).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from verl_cov.demo.folder import DemoError, Metrics, RunFolder, Segment, say_who
from verl_cov.demo.log import LogTail, first_error
from verl_cov.demo.progress import State, View

QUIET_LIMIT_S = 300.0  # a training that neither logs nor reports for so long hangs
GRACE_S = 20.0  # between SIGINT and SIGTERM, and between SIGTERM and SIGKILL; Ray's teardown takes 5 to 10 s
Command = Callable[[str, Sequence[str]], list[str]]  # (run's name, Hydra overrides) -> argv


@dataclass(frozen=True)
class Assets:
    """What the trainings read. fingerprint: names the model and the data, whatever folder they are in."""

    model: Path
    train: Path
    validation: Path
    fingerprint: str


_PREPARE = """
import json, sys
from pathlib import Path
from verl_cov.tasks import countdown, tiny_model
cache, settings = Path(sys.argv[1]), tiny_model.Settings()
train, validation = countdown.write_parquet(cache / "countdown", settings.task)
model = tiny_model.build(cache / "model", settings=settings)
made = dict(model=model, train=train, validation=validation, fingerprint=tiny_model.fingerprint(settings))
Path(sys.argv[2]).write_text(json.dumps(made, default=str))
"""


def prepare(cache_dir: Path) -> Assets:
    """Make the tiny model and the task's data in `cache_dir`; what is there already is kept (its makers check that).

    In a process of its own: torch stays out of the runner, which has to be small beside the training.
    """
    cache_dir = cache_dir.absolute()
    cache_dir.mkdir(parents=True, exist_ok=True)
    answer = cache_dir / f".prepared-{os.getpid()}.json"
    try:
        argv = [sys.executable, "-c", _PREPARE, str(cache_dir), str(answer)]
        if subprocess.run(argv, env=environment(os.environ)).returncode != 0:
            raise DemoError(f"could not make the tiny model and its data in {cache_dir}: the error stands above")
        made = json.loads(answer.read_text())
    finally:
        answer.unlink(missing_ok=True)
    return Assets(Path(made["model"]), Path(made["train"]), Path(made["validation"]), made["fingerprint"])


def trainer_command(name: str, overrides: Sequence[str]) -> list[str]:
    """verl's trainer with the demo's config group `verl_cov_demo`, and what is particular to this run after it."""
    return [sys.executable, "-m", "verl.trainer.main_ppo", f"+verl_cov_demo={name}", *overrides]


def seed_overrides(name: str, seed: int) -> list[str]:
    """Every seed of verl 0.9.1 that matters here; the cov losses have one more. (vLLM's timing still varies a run.)"""
    keys = [
        "data.seed",
        "actor_rollout_ref.rollout.seed",
        "actor_rollout_ref.actor.data_loader_seed",
        "actor_rollout_ref.actor.fsdp_config.seed",
    ]
    if name != "vanilla":
        keys.append("++actor_rollout_ref.actor.policy_loss.cov_seed")
    return [f"{key}={seed}" for key in keys]


def path_overrides(run: RunFolder, assets: Assets) -> list[str]:
    """Where this run reads and writes. Absolute: Ray's workers have working folders of their own."""
    paths = {
        "actor_rollout_ref.model.path": assets.model,
        "data.train_files": assets.train,
        "data.val_files": assets.validation,
        "trainer.default_local_dir": run.checkpoints,
        "hydra.run.dir": run.path / "hydra",
    }
    return [f"{key}={quote(path.absolute())}" for key, path in paths.items()] + ["trainer.resume_mode=auto"]


def quote(path: Path) -> str:
    """A path as a value in Hydra's override grammar, which would take `,`, `=`, spaces or brackets in it for syntax.

    Inside quotes a backslash is one, except before a quote: there they escape, so there they are doubled.
    """
    inner = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), str(path))
    return f"'{inner}'"


def environment(base: Mapping[str, str], segment: Path | None = None) -> dict[str, str]:
    """The training's environment: `base`, with what a run on this CPU, offline, needs."""
    added = {
        "VERL_PLATFORM": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HYDRA_FULL_ERROR": "1",  # otherwise Hydra drops the traceback that we want to show
        "PYTHONUNBUFFERED": "1",  # a log in time, or progress looks like a hang
        "RAY_DEDUP_LOGS": "0",  # Ray would hold lines back, and drop repeated ones: worst just when it fails
        "RAY_ADDRESS": "local",  # its own Ray, never a cluster that happens to run on this machine
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if segment is not None:
        added["VERL_FILE_LOGGER_PATH"] = str(segment.absolute())
    return {**base, **added}


def digest(parts: Sequence[str]) -> str:
    """Twelve hex digits that name these settings."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:12]


def train(
    run: RunFolder,
    argv: Sequence[str],
    view: View,
    *,
    lock: int,
    total: int | None = None,
    quiet_limit_s: float = QUIET_LIMIT_S,
    grace_s: float = GRACE_S,
    poll_s: float = 0.5,
) -> None:
    """Run `argv` to its end, copying its metrics and showing its progress. Returns when it has finished well.

    lock: descriptor of the folder's lock, which the training inherits. total: steps planned, if known beforehand.
    Raises DemoError if the training fails or goes quiet, KeyboardInterrupt if the user stops it; it is ended by then.
    """
    metrics = Metrics(run)
    path = run.next_segment()
    segment = Segment(path, metrics)
    before = float((run.status() or {}).get("seconds", 0.0))
    started = time.monotonic()
    when = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"
    with (run.path / "command.txt").open("a") as commands:
        commands.write(f"# launch {path.stem}, {when}\n{shlex.join(argv)}\n")
    with run.log.open("ab") as file:
        file.write(f"==== launch {path.stem}, {when}, metrics in {path} ====\n".encode())
        file.flush()
        start = file.tell()
        # The log is a file and no pipe: a training whose runner was killed does not die of SIGPIPE in mid-checkpoint.
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(os.environ, path),
            start_new_session=True,
            pass_fds=(lock,),
        )
    log = LogTail(run.log, start)
    state = State(run.name, total=total, step=max(metrics.steps, default=None))
    heard = started
    outcome = "stopped"

    def record(state_name: str) -> None:
        seconds = round(before + time.monotonic() - started, 1)
        run.write_status(state=state_name, steps=max(metrics.steps, default=0), seconds=seconds, total=state.total)

    try:
        say_who(lock, f"runner {os.getpid()}, training {process.pid}")
        record("running")
        while True:
            code = process.poll()  # before reading: what it said before it ended is then read below
            talked = log.poll()
            records = segment.poll()
            now = time.monotonic()
            state.take(records, log, now)
            if records:
                record("running")
            if talked or records:
                heard = now
            view.update(state)
            if code is not None:
                break
            if now - heard > quiet_limit_s:
                raise DemoError(
                    f"{run.name}: no log output and no metrics for {quiet_limit_s / 60:g} minutes, so the training was"
                    f" ended. Its log: {run.log}. The same command resumes it."
                )
            time.sleep(poll_s)
        if code != 0:
            raise DemoError(_failure(run, start, f"failed ({_exit(code)})", state.step))
        if not metrics.steps:
            why = "ended without one line of metrics (does trainer.logger hold 'file'?)"
            raise DemoError(_failure(run, start, why, None))
        outcome = "finished"
    except DemoError:
        outcome = "failed"
        raise
    finally:
        end(process, grace_s, view.note)
        segment.poll()  # what it wrote while it ended
        record(outcome)


def _exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}" + (", out of memory?" if code == -signal.SIGKILL else "")
    except ValueError:
        return f"killed by signal {-code}"


def _failure(run: RunFolder, start: int, what: str, step: int | None) -> str:
    with run.log.open("rb") as file:
        earlier = file.read(start).count(b"\n")
        log = file.read().decode(errors="replace")
    found = first_error(log)
    if found is not None:
        where, shown = f"The error that began it, {run.log}:{earlier + found[0]}:", found[1]
    else:
        where, shown = "The log has no traceback. Its end:", log.rstrip().splitlines()[-15:] or ["(it is empty)"]
    after = "before its first step" if not step else f"after step {step}"
    indented = "\n".join(f"    {line}" for line in shown)
    told = f"{run.name} {what} {after}. {where}\n{indented}\nThe whole log: {run.log}\n"
    return told + "Once the cause is mended, the same command resumes."


def end(process: subprocess.Popen[bytes], grace_s: float, note: Callable[[str], None]) -> None:
    """End the training and what is left of its session: SIGINT (Ray shuts down by itself), SIGTERM, SIGKILL.

    A second Ctrl-C meanwhile goes on to the next signal at once.
    """
    ends = ((signal.SIGINT, grace_s), (signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0))
    for number, wait_s in ends:
        if process.poll() is not None:
            break
        note(f"ending the training ({number.name})")
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(wait_s)
    # Ray's and vLLM's processes have groups of their own but share the session. Left over, they hold memory and ports
    # that the next run needs. Ray ends its own within seconds of its driver: let it.
    patience: tuple[tuple[signal.Signals | None, float], ...]
    patience = ((None, grace_s / 2), (signal.SIGTERM, grace_s / 4), (signal.SIGKILL, 5.0))
    for sweep, wait_s in patience:
        left = session_members(process.pid)
        if sweep is not None:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, sweep)
        deadline = time.monotonic() + wait_s
        while left and time.monotonic() < deadline:
            try:
                time.sleep(0.1)
            except KeyboardInterrupt:
                break
            left = session_members(process.pid)
        if not left:
            return


def session_members(session: int) -> list[int]:
    """Living processes of a session (its id: the pid of the process that began it). Empty where there is no /proc.

    The kernel gives a pid to nobody else while a session or a group of that number has members.
    """
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # After the command's name in parentheses, which may hold anything: state, parent, group, session.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX" and int(fields[3]) == session:
            members.append(int(entry.name))
    return members
