"""The wheel a user installs holds what verl and Hydra look for."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_has_the_configs_the_search_path_plugin_and_the_entry_point(tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("verl_cov-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    for name in ("clip_cov", "kl_cov", "metrics", "cpu"):
        assert f"verl_cov/conf/verl_cov/{name}.yaml" in names
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "verl_cov" / "conf").rglob("*.yaml")}
    assert len(recipes) > 60
    assert recipes <= names
    assert "hydra_plugins/verl_cov_searchpath.py" in names
    assert "verl_cov/law/data/qwen2.5-math.csv" in names
    assert "verl_cov/tasks/samples/gsm8k.jsonl" in names
    # With it, this wheel would own the namespace and hide every other Hydra plugin of the environment.
    assert "hydra_plugins/__init__.py" not in names
    assert "[verl.plugins]\nverl_cov = verl_cov.plugin" in entry_points
    assert not [name for name in names if name.startswith(("tests/", "requirements/", "recipes/"))]


def test_importing_the_package_is_free():
    code = "import sys, verl_cov; sys.exit(any(name in sys.modules for name in ('torch', 'verl', 'ray', 'vllm')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
