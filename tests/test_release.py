"""The wheel in environments as users have them: empty ones, and beside a verl of their own. `make release-test`.

These tests install from pip's package index. No torch: it is large, and nothing here needs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.release

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "law" / "data"


class Environment:
    """A virtual environment, with nothing of the one that runs the tests."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.bin = folder / "bin"

    def run(self, name: str, *words: object, fails: bool = False) -> subprocess.CompletedProcess:
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VERL_"))}
        done = subprocess.run(
            [str(self.bin / name), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=4000,
            cwd=self.bin.parent,
            env={**variables, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "COLUMNS": "200"},
        )
        assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-2000:]
        return done

    def pip(self, *words: object) -> None:
        self.run("python", "-m", "pip", "install", "-q", "--no-compile", *words)

    def packages(self) -> dict[str, str]:
        """name -> version of everything that is installed."""
        listed = self.run("python", "-m", "pip", "list", "--format", "json").stdout
        return {one["name"].lower().replace("_", "-"): one["version"] for one in json.loads(listed)}

    def verl_cov(self, *words: object, fails: bool = False) -> str:
        done = self.run("verl-cov", *words, fails=fails)
        assert "Traceback" not in done.stderr
        return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, timeout=1200)
    (made,) = folder.glob("verl_cov-*.whl")
    return made


def write_run(path: Path, seed: int, a: float = 0.2, b: float = 0.8) -> Path:
    """A log of verl's file logger: 24 validations of a run that follows the law."""
    rng = np.random.default_rng(seed)
    entropy = 1.2 * np.exp(-np.arange(25) / 9)
    score = b - a * np.exp(entropy) + rng.normal(0, 0.002, entropy.size)
    # verl validates after a step and logs the entropy that the next one's rollouts had: both are of the same policy.
    rows = [
        {"actor/entropy": float(entropy[step - 1]), "val-core/math/acc/mean@1": float(score[step])}
        for step in range(1, entropy.size)
    ]
    path.write_text("".join(json.dumps({"step": 1 + at, "data": row}) + "\n" for at, row in enumerate(rows)))
    return path


def test_the_law_works_from_the_wheel_alone(wheel, tmp_path):
    home = Environment(tmp_path / "venv")
    home.pip(f"{wheel}[law]")
    absent = {"torch", "verl", "hydra-core", "omegaconf", "ray", "transformers", "tensordict", "pyarrow", "math-verify"}
    assert not absent & home.packages().keys()
    one, other = (write_run(tmp_path / f"{name}.jsonl", seed) for seed, name in enumerate(("one", "other")))

    (found,) = json.loads(home.verl_cov("fit", one, "--json"))["runs"]
    assert found["a"] == pytest.approx(0.2, abs=0.02)
    assert found["ceiling"] == pytest.approx(0.6, abs=0.02)
    for log in ("file.jsonl", "console.log"):  # of a real run
        assert json.loads(home.verl_cov("fit", DATA / log, "--json"))["runs"][0]["n"] == 3
    home.verl_cov("fit", one, other, "--pool")
    assert json.loads(home.verl_cov("forecast", one, "--json"))["runs"][0]["fraction"] == 0.15
    assert json.loads(home.verl_cov("compare", one, other, "--json"))["wald_p"] > 0.001
    assert "it falls short of the line" in home.verl_cov("scale", "--example")
    home.verl_cov("plot", one, "-o", tmp_path / "law.png")
    home.verl_cov("report", one, other, "-o", tmp_path / "report.html")
    board = home.verl_cov("watch", one, "--once", "--png", tmp_path / "board.png")
    assert "ceiling" in board
    for picture in ("law.png", "board.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert "</html>" in (tmp_path / "report.html").read_text()

    assert "0.9.1" in home.verl_cov("patch", "list")
    report = json.loads(home.run("verl-cov", "doctor", "--json").stdout)  # nothing is wrong with it
    (verl,) = (check for check in report["verl"] if check["name"] == "verl")
    assert verl["level"] == "note"
    assert verl["text"].startswith("not installed")
    for words, extra in ((("data", "list"), "tasks"), (("recipes", "show", "sec4-7b"), "verl")):
        (line,) = home.verl_cov(*words, fails=True).splitlines()
        assert f"pip install 'verl-cov[{extra}]'" in line


# What somebody has whose verl was installed a while ago. pip keeps what is there as long as a requirement allows it.
SINCE = [
    "hydra-core==1.3.2",
    "omegaconf==2.3.0",
    "packaging==23.2",
    "PyYAML==6.0.2",
    "psutil==5.9.8",
    "rich==13.9.4",
    "pydantic==2.9.2",
    "typing-extensions==4.12.2",
    "filelock==3.13.1",
    "pyarrow==19.0.0",
    "datasets==3.6.0",
]


@pytest.mark.parametrize(
    "users",
    [
        ["verl==0.7.1", "numpy==1.26.4", "pandas==2.2.2"],
        ["verl==0.9.1", "numpy==2.0.2", "pandas==2.2.3", "scipy==1.13.1"],
    ],
    ids=lambda users: users[0],
)
def test_nothing_of_a_users_own_changes_its_version(wheel, tmp_path, users):
    home = Environment(tmp_path / "venv")
    home.pip("--no-deps", users[0])  # and not its torch, vLLM, Ray: gigabytes
    home.pip(*users[1:], *SINCE)
    before = home.packages()
    home.pip(f"{wheel}[all]")
    after = home.packages()
    assert {name: version for name, version in after.items() if name in before} == before
    new = after.keys() - before.keys()
    assert {"verl-cov", "statsmodels", "matplotlib", "math-verify"} <= new
    assert not new & {"torch", "ray", "vllm", "transformers", "tensordict"}
    run = write_run(tmp_path / "run.jsonl", 0)
    assert json.loads(home.verl_cov("fit", run, "--json"))["a"] == pytest.approx(0.2, abs=0.02)
    assert "aime24" in home.verl_cov("data", "list")
    home.verl_cov("data", "prepare", "amc", "--from", "sample", "-o", tmp_path / "data")
    # By rule 5 of the verifier: math-verify and sympy, in a child.
    judge = r"from verl_cov.tasks.math import verify; print(verify(r'\boxed{x + y}', 'y + x'))"
    assert home.run("python", "-c", judge).stdout.strip() == "True"

    # The wheel brings the patches; the user's verl is as it was afterwards.
    package = next(home.bin.parent.glob("lib/python*/site-packages/verl"))
    files = {path: path.read_bytes() for path in package.rglob("*.py")}
    home.verl_cov("patch", "check")
    home.verl_cov("patch", "apply")
    assert (package / "utils" / "mini_batch_hook.py").exists()
    home.verl_cov("patch", "revert")
    assert {path: path.read_bytes() for path in package.rglob("*.py")} == files
