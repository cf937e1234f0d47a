"""Builds the tiny model in a folder: `python -m verl_cov.tasks.tiny_model DIR [--start pointer-small-0]`.

`--level` and `--seed` say otherwise how hard the countdown task is and which start of it is made.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from verl_cov.tasks import countdown
from verl_cov.tasks.tiny_model import REPORT, Settings, build, starts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m verl_cov.tasks.tiny_model", description="Build the tiny model.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--start", help="TASK-SIZE-SEED, in place of the two that follow")
    parser.add_argument("--level", choices=countdown.LEVELS, default="medium")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    settings = Settings(task=countdown.LEVELS[options.level], seed=options.seed)
    try:
        settings = settings if options.start is None else starts.settings_of(options.start)
    except ValueError as error:
        parser.error(str(error))
    directory = build(options.directory, settings=settings)
    measured = json.loads((directory / REPORT).read_text())["measured"]
    print(f"{directory}: " + ", ".join(f"{name} {value:.3g}" for name, value in measured.items()))


if __name__ == "__main__":
    main()
