"""The self-test as a whole: every level on every rank, then the result from the first rank."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path

from verl_cov.selftest import DEFAULT_LEVELS, LEVELS, core, hook, ranks, result, speed, train


def selftest(
    device: str = "auto",
    full: bool = False,
    output: Path | None = None,
    levels: tuple[str, ...] = tuple(DEFAULT_LEVELS.split(",")),
    verbose: bool = False,
) -> int:
    """Runs the levels, prints the table, writes ``output``; returns the exit code: 0, or 1 if a check failed.

    full: the level train besides ``levels``, and more rounds of what is timed.

    Raises ValueError for a device that is not there, a level of another name, and a file that cannot be written.
    """
    if unknown := set(levels) - set(LEVELS):
        raise ValueError(f"--levels {','.join(sorted(unknown))}: there are {','.join(LEVELS)}")
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise ValueError(f"-o {output}: give a file in a folder that exists")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    started = time.monotonic()
    here = ranks.start(device)

    def core_level() -> None:
        core.run(here)
        here.measure("core", "timings", speed.measure_core, here)

    runs: dict[str, Callable[[], None]] = {
        "core": core_level,
        "hook": lambda: hook.run(here, full),
        "train": lambda: train.run(here),
    }
    found = {}
    for level in [level for level in LEVELS if level in levels or (full and level == "train")]:
        with ExitStack() as stack:
            if not verbose:  # what verl and torch print is no part of the result
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            runs[level]()
        found = result.of(here, time.monotonic() - started)
        if here.rank == 0 and output is not None:  # after each level: who is killed in the next one keeps it
            output.write_text(json.dumps(found, indent=1) + "\n")
    if here.rank == 0:
        result.show(found)
        if output is not None:
            print(f"written: {output}; to send it, see verl-cov docs selftest")
    ranks.leave(here)
    return 1 if here.failed else 0
