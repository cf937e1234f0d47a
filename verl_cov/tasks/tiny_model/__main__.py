"""Builds the tiny model in a folder: `python -m verl_cov.tasks.tiny_model DIR [--level medium] [--seed 0]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from verl_cov.tasks import countdown
from verl_cov.tasks.tiny_model import REPORT, Settings, build


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m verl_cov.tasks.tiny_model", description="Build the tiny model.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--level", choices=countdown.LEVELS, default="medium")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    directory = build(options.directory, settings=Settings(task=countdown.LEVELS[options.level], seed=options.seed))
    measured = json.loads((directory / REPORT).read_text())["measured"]
    print(f"{directory}: " + ", ".join(f"{name} {value:.3g}" for name, value in measured.items()))


if __name__ == "__main__":
    main()
