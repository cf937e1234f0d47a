"""Make .venv from requirements/cpu.lock: the CPU stack that `make demo`, `make test` and CI run on.

    python3.11 requirements/setup.py [--venv .venv] [--lock requirements/cpu.lock] [--pin NAME==VERSION ...]

Needs only the standard library. Run again it does nothing, or brings the folder up to date when the lock has changed;
an installation that was interrupted is finished. Says what it does while it does it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "cpu.lock"
PYTHONS = ("3.11", "3.12")  # numpy and vLLM of the lock need 3.11; verl-cov itself runs on 3.10 too


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--lock", type=Path, default=LOCK)
    parser.add_argument("--pin", action="append", default=[], help="NAME==VERSION, in place of the lock's or besides")
    arguments = parser.parse_args()
    venv, lock = arguments.venv.resolve(), arguments.lock.resolve()
    wanted_packages = packages(lock, arguments.pin)
    started = time.monotonic()
    stamp = venv / "verl-cov.stamp"
    state = "\n".join([*wanted_packages, (ROOT / "pyproject.toml").read_text(), str(ROOT)])
    wanted = hashlib.sha256(state.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        print(f"setup: {venv.name} is up to date")
        return 0
    stamp.unlink(missing_ok=True)

    python = venv / "bin" / "python"
    if not (works(python, "pip") and version_of(str(python)).startswith(PYTHONS)):
        base = find_python()
        say(f"1/4 new virtual environment {venv.name} with Python {version_of(base)}")
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([base, "-m", "venv", str(venv)], check=True)
    else:
        say(f"1/4 virtual environment {venv.name} with Python {version_of(str(python))} is there")

    torch = next(line for line in wanted_packages if line.startswith("torch=="))
    say(f"2/4 {torch}")
    if pip(python, ["install", "--no-deps", torch]) != 0:
        return fail(
            f"pip does not find {torch}, PyTorch's build for CPUs; PyPI has only the CUDA build for Linux. Let pip see "
            "PyTorch's CPU wheels (pytorch.org, Get Started, CPU) by PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS; try again"
        )
    pins = [line for line in wanted_packages if line != torch]
    say(f"3/4 {len(pins)} packages from {lock.name} (about 1 GB, one to two minutes)")
    # Two at a time: pip spends its time on unpacking, with one core. Nothing is resolved, so the halves do not meet.
    if pip(python, *(["install", "--no-deps", *pins[half::2]] for half in range(2)), total=len(pins)) != 0:
        return fail("pip failed, its last lines stand above; run the same command again to go on")
    say("4/4 verl-cov itself, from this folder")
    if pip(python, ["install", "--no-deps", "--no-build-isolation", "-e", str(ROOT)]) != 0:
        return fail("pip failed, its last lines stand above")
    stamp.write_text(wanted)
    say(f"done in {time.monotonic() - started:.0f} s; next: {venv.name}/bin/verl-cov doctor, or make demo")
    return 0


def packages(lock: Path, pins: list[str]) -> list[str]:
    """NAME==VERSION of all that is to be installed."""
    found = dict(line.split("==") for line in lock.read_text().splitlines() if re.match(r"[A-Za-z]", line))
    found.update(pin.split("==") for pin in pins)
    return [f"{name}=={version}" for name, version in found.items()]


def find_python() -> str:
    """A Python that the lock's wheels exist for: this one, or one on the PATH."""
    for candidate in (sys.executable, *(f"python{version}" for version in PYTHONS)):
        path = shutil.which(candidate)
        if path and works(Path(path)) and ".".join(version_of(path).split(".")[:2]) in PYTHONS:
            return path
    sys.exit(
        f"setup: no Python {' or '.join(PYTHONS)} with venv found on the PATH, which the CPU stack needs: install one"
    )


def works(python: Path, module: str = "ensurepip") -> bool:
    """True if this interpreter runs and has ``module`` (Debian's python3 lacks ensurepip without python3-venv)."""
    command = [str(python), "-c", f"import {module}"]
    return python.exists() and subprocess.run(command, capture_output=True).returncode == 0


def version_of(python: str) -> str:
    code = "import platform; print(platform.python_version())"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def pip(python: Path, *commands: list[str], total: int = 0, every_s: float = 10) -> int:
    """Run pip once for each of ``commands``, side by side. Says how many of ``total`` packages are fetched, when that
    has changed; on failure pip's last lines."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    fixed = ["--progress-bar", "off", "--no-warn-script-location"]
    lines: list[list[str]] = [[] for _ in commands]

    def run(index: int) -> int:
        command = [str(python), "-m", "pip", *commands[index], *fixed]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        assert process.stdout is not None
        lines[index].extend(line.rstrip() for line in process.stdout)
        return process.wait()

    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run, index) for index in range(len(commands))]
        said = ""
        while wait(runs, timeout=every_s).not_done:
            if total:
                fetched = sum(line.startswith(("Collecting ", "Processing ")) for part in lines for line in part)
                news = f"    {fetched} of {total}" + (", installing: a minute without news" if fetched == total else "")
                if news != said:
                    say(news)
                said = news
    for run_, part in zip(runs, lines):  # noqa: B905 (strict= is newer than some python3)
        if run_.result() != 0:
            print("\n".join(part[-15:]), file=sys.stderr)
    return max(run_.result() for run_ in runs)


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def fail(text: str) -> int:
    print(f"setup: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
