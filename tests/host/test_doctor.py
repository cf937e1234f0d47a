"""``verl-cov doctor``: exit code and fix, in an environment that is well and in ones broken on purpose."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def doctor(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from verl_cov.cli import main; main()", "doctor", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def test_all_is_well_here_and_in_a_ray_worker(tmp_path):
    done = doctor(cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert "plugin in Ray worker" in done.stdout


def test_a_broken_plugin_is_named_with_its_cause(tmp_path):
    shutil.copytree(ROOT / "verl_cov", tmp_path / "verl_cov", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "hydra_plugins", tmp_path / "hydra_plugins", ignore=shutil.ignore_patterns("__pycache__"))
    broken = tmp_path / "verl_cov" / "host" / "train_batch.py"
    broken.write_text(broken.read_text() + "\nimport a_module_that_is_not_there\n")
    done = doctor("--no-ray", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "FAIL  plugin in verl" in done.stdout
    assert "a_module_that_is_not_there" in done.stdout


def test_plugins_switched_off_are_named(tmp_path):
    done = doctor("--no-ray", cwd=tmp_path, VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.returncode == 1
    assert "VERL_USE_EXTERNAL_PLUGINS=none" in done.stdout
