"""How fast a console log is read, and in how much memory.

    python -m benchmarks.readers [--megabytes 100] [--dense | --dictionaries]

The log is made up on the fly: a record of 130 metrics (4.6 kB) in every 120 kB, as a real one has them, and around it
what Ray's processes and progress bars print. Reading happens in a process of its own, whose peak of resident memory is
the one that counts; importing numpy alone takes some 35 MB of it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from verl_cov.law import read_metrics

_RAY = "\x1b[36m(TaskRunnerV1 pid=2091)\x1b[0m "
_OTHERS = "\x1b[36m(WorkerDict pid=2{n:03d})\x1b[0m INFO 11-23 13:22:59 [loader.py:{n}] Loading took {n}.5 s\n"
_BAR = "\rTraining Progress:  {n:3d}%|####      | {n}/100 [00:04<01:40,  4.2s/it]"


def write(path: Path, size: int, noise: int = 115_000) -> int:
    """Write a log of about `size` bytes; returns the number of records."""
    other = "".join(_OTHERS.format(n=n % 1000) + _BAR.format(n=n % 100) for n in range(noise // 150))
    step = done = 0
    with path.open("w") as file:
        while done < size:
            items = [f"actor/metric_number_{n}:{1.0 / (step * 131 + n + 1)}" for n in range(128)]
            items += [f"actor/entropy:{1.0 / (step + 1)}", f"val-core/x/acc/mean@1:np.float64({step / 1e6})"]
            done += file.write(other) + file.write(f"{_RAY}step:{step} - " + " - ".join(items) + "\n")
            step += 1
    return step


def write_dictionaries(path: Path, size: int) -> int:
    """Write a log as transformers prints it, with a progress bar before each record of 44 values."""
    rewards = "".join(f", 'rewards/function_{n}/mean': '0.12{n}'" for n in range(40))
    step = done = 0
    with path.open("w") as file:
        while done < size:
            step += 1
            bar = f"\r {step % 100:3d}%|####      | {step}/1000000 [00:04<01:40,  4.2s/it]\r"
            values = f"'reward': '0.5', 'entropy': '{1 / step:.4g}', 'epoch': '{step / 10}'"
            done += file.write(f"{bar}{{'loss': '0.01'{rewards}, {values}}}\n")
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--dense", action="store_true", help="nothing but records")
    parser.add_argument("--dictionaries", action="store_true", help="TRL's instead of verl's")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read is not None:
        start = time.perf_counter()
        run = read_metrics(options.read)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{len(run.steps)} records, {run.damaged} damaged, {seconds:.2f} s, peak {peak:.0f} MB")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.log"
        if options.dictionaries:
            steps = write_dictionaries(path, options.megabytes << 20)
        else:
            steps = write(path, options.megabytes << 20, 0 if options.dense else 115_000)
        print(f"{path.stat().st_size / 1e6:.0f} MB, {steps} records: ", end="", flush=True)
        subprocess.run([sys.executable, "-m", "benchmarks.readers", "--read", str(path)], check=True)


if __name__ == "__main__":
    main()
