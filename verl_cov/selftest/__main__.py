"""``python -m verl_cov.selftest``, also under torchrun: the command without typer, which a bare machine may lack."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from verl_cov.selftest import DEFAULT_LEVELS, FULL_HELP, LEVELS_HELP
from verl_cov.selftest.whole import selftest


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m verl_cov.selftest", description="What verl-cov promises, shown here."
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--full", action="store_true", help=FULL_HELP)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the result as JSON, to be sent")
    parser.add_argument("--levels", default=DEFAULT_LEVELS, help=LEVELS_HELP)
    parser.add_argument("--verbose", action="store_true", help="show what verl and torch print")
    asked = parser.parse_args()
    try:
        return selftest(asked.device, asked.full, asked.output, tuple(asked.levels.split(",")), asked.verbose)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    sys.exit(main())
