"""The GPU kit: what is left out of a wheel leaves one that pip installs."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks import gpu_kit

ROOT = Path(__file__).parents[2]


def wheel(folder: Path) -> Path:
    files = {
        "ray/__init__.py": "from ray._private import kept",
        "ray/_private/__init__.py": "",
        "ray/_private/kept.py": "",
        "ray/rllib/large.py": "",
        "ray/data/tests/x.py": "",
        "ray/_private/runtime_env/agent/large.py": "",
        "ray-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "ray-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: ray\nVersion: 1.0\n",
    }
    files["ray-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in [*files, "ray-1.0.dist-info/RECORD"])
    path = folder / "ray-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_a_trimmed_wheel_installs_and_imports(tmp_path):
    path = wheel(tmp_path)
    gpu_kit.trim(path, "ray")
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--target",
        str(site),
        str(path),
    ]
    subprocess.run(command, check=True, timeout=600)
    assert {file.name for file in (site / "ray").iterdir()} - {"__pycache__"} == {"__init__.py", "_private"}
    subprocess.run([sys.executable, "-c", "import ray"], check=True, cwd=site)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("pyarrow/lib.cpython-311-x86_64-linux-gnu.so", True),
        ("pyarrow/libarrow.so.2600", True),
        ("pyarrow/libarrow_substrait.so.2600", True),  # every module of pyarrow is linked with it
        ("pyarrow/libarrow_python.so", False),
        ("pyarrow/libarrow_python.so.2600", True),
        ("pyarrow/libarrow_python.so.2600.1.0", False),
        ("pyarrow/libarrow_flight.so.2600", False),
        ("pyarrow/_parquet.cpython-311-x86_64-linux-gnu.so", True),
        ("pyarrow/_parquet_encryption.cpython-311-x86_64-linux-gnu.so", False),
    ],
)
def test_what_modules_are_linked_with_stays(tmp_path, name, kept):
    path = tmp_path / "pyarrow-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "")
    gpu_kit.trim(path, "pyarrow")
    assert (name in zipfile.ZipFile(path).namelist()) is kept


@pytest.mark.nightly
def test_nothing_of_ray_and_pandas_that_an_update_imports_is_left_out():
    say = """
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
print(json.dumps([file.partition("site-packages/")[2] for file in files if "site-packages/" in file]))
"""
    done = subprocess.run(
        [sys.executable, "-c", gpu_kit.IMPORTED + say], capture_output=True, text=True, check=True, cwd=ROOT
    )
    below = [file.partition("/") for file in json.loads(done.stdout.splitlines()[-1])]
    assert len(below) > 1000
    for package in ("ray", "pandas"):  # pyarrow's modules for file systems are optional to it
        left_out = [file for name, _, file in below if name == package and not gpu_kit.kept(file, package)]
        assert not left_out


def test_what_torch_and_transformers_bring_is_not_carried():
    there = gpu_kit.closure(gpu_kit.THERE)
    assert {"torch", "numpy", "tokenizers", "safetensors", "jinja2"} <= there
    assert not there & {"verl", "ray", "tensordict", "hydra-core", "pandas", "jaxtyping", "psutil"}


def test_the_script_is_bash_and_names_only_what_exists():
    script = ROOT / "benchmarks" / "gpu.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "verl_cov.selftest" in script.read_text()
