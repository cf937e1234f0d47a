"""The GPU kit: what is left out of a wheel leaves one that pip installs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks import gpu_kit

ROOT = Path(__file__).parents[2]


def wheel(folder: Path) -> Path:
    files = {
        "ray/__init__.py": "from ray._private import kept",
        "ray/_private/__init__.py": "",
        "ray/_private/kept.py": "",
        "ray/rllib/large.py": "",
        "ray/data/tests/x.py": "",
        "ray/data.py": "",
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
    gpu_kit.trim(path, gpu_kit.LEFT_OUT["ray"])
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


def test_what_torch_and_transformers_bring_is_not_carried():
    there = gpu_kit.closure(gpu_kit.THERE)
    assert {"torch", "numpy", "tokenizers", "safetensors", "jinja2"} <= there
    assert not there & {"verl", "ray", "tensordict", "hydra-core", "pandas"}


def test_the_script_is_bash_and_names_only_what_exists():
    script = ROOT / "benchmarks" / "gpu.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "verl_cov.selftest" in script.read_text()
