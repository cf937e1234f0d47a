"""Train vanilla GRPO, Clip-Cov and KL-Cov one after the other on a toy task, on a CPU, and compare them.

    python -m verl_cov.demo.run [--runs-dir runs/demo] [--only vanilla,clip_cov,kl_cov] [--steps N] [--seed S]
                                [--extra key=value ...]

Stopped or killed, the same command resumes it from verl's checkpoints. Finished, it starts a new set in runs/demo-2 and
leaves the old one as it is. Exit code: 0 all finished, 1 a training failed, 2 bad arguments, 130 stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console

from verl_cov import terminal
from verl_cov.demo import launch
from verl_cov.demo.folder import NAMES, DemoError, RunFolder, choose, lock
from verl_cov.demo.launch import Assets, Command
from verl_cov.demo.progress import LiveView, PlainView, State
from verl_cov.hooks import versions

CONF = Path(__file__).parent.parent / "conf"
# The runner's own: an --extra would break resuming, or write over another run.
RESERVED = ("trainer.default_local_dir", "trainer.resume_mode", "hydra.run.dir")


def main(
    arguments: Sequence[str] | None = None,
    *,
    command: Command = launch.trainer_command,
    prepare: Callable[[Path], Assets] = launch.prepare,
    quiet_limit_s: float = launch.QUIET_LIMIT_S,
    grace_s: float = launch.GRACE_S,
    poll_s: float = 0.5,
) -> int:
    """The demo; returns its exit code. The keyword arguments are for tests."""
    options = parse(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)  # rich would fold a log's tables to 80 columns
    try:
        with _signals_as_interrupt():
            _demo(options, console, command, prepare, quiet_limit_s=quiet_limit_s, grace_s=grace_s, poll_s=poll_s)
    except DemoError as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped. Nothing is lost: the same command resumes.", markup=False)
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends the program with code 2 and one line on a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m verl_cov.demo.run", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/demo"), help="folder of this set of runs")
    parser.add_argument(
        "--cache-dir", type=Path, default=Path("runs/cache"), help="where the tiny model and data are kept"
    )
    parser.add_argument("--only", default=",".join(NAMES), help="comma-separated runs (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="training steps of each run (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data order, sampling and selection")
    parser.add_argument(
        "--extra", nargs="+", default=[], metavar="key=value", action="extend", help="overrides for verl"
    )
    options = parser.parse_args(arguments)
    wanted = [name.strip() for name in options.only.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in NAMES]
    if unknown or not wanted:
        parser.error(f"--only: {', '.join(unknown) or 'nothing'} is not a run; the runs are {', '.join(NAMES)}")
    options.only = [name for name in NAMES if name in wanted]
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps must be 1 or more, got {options.steps}")
    if not 0 <= options.seed < 2**31:
        parser.error(f"--seed must be 0 to 2147483647, got {options.seed}")
    for extra in options.extra:
        key = extra.partition("=")[0].lstrip("+~")
        if "=" not in extra and not extra.startswith("~"):
            parser.error(f"--extra: {extra!r} is not key=value")
        if key in RESERVED:
            parser.error(f"--extra: {key} is the runner's own; use --runs-dir for another folder")
    return options


def _demo(
    options: argparse.Namespace,
    console: Console,
    command: Command,
    prepare: Callable[[Path], Assets],
    *,
    quiet_limit_s: float,
    grace_s: float,
    poll_s: float,
) -> None:
    try:
        versions.require_v1("the demo")
    except ValueError as error:
        raise DemoError(str(error)) from None
    if importlib.util.find_spec("matplotlib") is None:  # the plots are drawn at the very end
        raise DemoError(str(terminal.missing("matplotlib")))
    console.print(f"Model and data in {options.cache_dir}: making what is missing", markup=False)
    assets = prepare(options.cache_dir)
    settings = _settings(options, assets)
    fingerprint = launch.digest(settings)
    choice = choose(options.runs_dir, options.only, fingerprint, settings)
    console.print(choice.note, markup=False, soft_wrap=True)

    with lock(choice.path) as descriptor:
        runs = [RunFolder(choice.path / name) for name in options.only]
        finished = [run.name for run in runs if run.finished()]
        live = LiveView(console, options.only, finished) if console.is_terminal else None
        view = live or PlainView(console)
        with live or nullcontext():
            for run in runs:
                if run.name in finished:
                    continue
                run.write_status(state="running", fingerprint=fingerprint, settings=settings)
                argv = command(run.name, _overrides(run, options, assets))
                outcome = "stopped"
                try:
                    launch.train(
                        run,
                        argv,
                        view,
                        lock=descriptor,
                        total=options.steps,
                        quiet_limit_s=quiet_limit_s,
                        grace_s=grace_s,
                        poll_s=poll_s,
                    )
                    outcome = "finished"
                except DemoError:
                    outcome = "failed"
                    raise
                finally:
                    view.finish(_of(view.last, run.name), outcome)
        from verl_cov.demo.summary import report  # matplotlib: a second that nobody should wait for at the start

        report(choice.path, console)


def _of(state: State | None, name: str) -> State | None:
    return state if state is not None and state.name == name else None


def _settings(options: argparse.Namespace, assets: Assets) -> list[str]:
    """What two runs must share to stand in one comparison, in words. Paths do not belong to it."""
    # Each file the three runs are composed of: a recipe edited after a kill makes another run.
    ours = [CONF / "verl_cov" / f"{name}.yaml" for name in ("cpu", "metrics", *NAMES)]
    files = [*CONF.glob("verl_cov_demo/*.yaml"), *ours]
    recipes = [f"{path.relative_to(CONF)}: {path.read_text()}" for path in sorted(files) if path.is_file()]
    return [
        f"steps={options.steps if options.steps is not None else 'the recipe'}",
        f"seed={options.seed}",
        *options.extra,
        f"model and data {assets.fingerprint}",
        f"recipes {launch.digest(recipes)}",
    ]


def _overrides(run: RunFolder, options: argparse.Namespace, assets: Assets) -> list[str]:
    """All overrides of one run. The user's come last, so that they win."""
    steps = [] if options.steps is None else [f"trainer.total_training_steps={options.steps}"]
    return [*launch.path_overrides(run, assets), *steps, *launch.seed_overrides(run.name, options.seed), *options.extra]


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal stop the demo as Ctrl-C does: a training without its runner is of no use.

    A signal that is ignored (nohup) stays ignored.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, handler in before.items():
            if handler is signal.SIG_DFL:
                signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
