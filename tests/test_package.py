"""The wheel a user installs holds what verl and Hydra look for, and asks for nothing that is the user's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from verl_cov import terminal
from verl_cov.cli import app
from verl_cov.tasks.math import MATH_VERIFY

ROOT = Path(__file__).parents[1]
LOG = ROOT / "tests" / "law" / "data" / "file.jsonl"
VERLS = {"verl", "torch", "ray", "vllm", "transformers", "tensordict", "hydra-core", "omegaconf"}


def wheel_of(source: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True, timeout=1200)
    (wheel,) = folder.glob("verl_cov-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return wheel_of(ROOT, tmp_path_factory.mktemp("wheel"))


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def file_of(wheel: Path, end: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(end)))


def test_the_wheel_has_the_configs_the_search_path_plugin_and_the_entry_point(wheel):
    names = names_in(wheel)
    for name in ("clip_cov", "kl_cov", "metrics", "cpu"):
        assert f"verl_cov/conf/verl_cov/{name}.yaml" in names
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "verl_cov" / "conf").rglob("*.yaml")}
    assert len(recipes) > 60
    assert recipes <= names
    assert "hydra_plugins/verl_cov_searchpath.py" in names
    assert "verl_cov/law/data/qwen2.5-math.csv" in names
    assert "verl_cov/tasks/data/samples/gsm8k.jsonl" in names
    # With it, this wheel would own the namespace and hide every other Hydra plugin of the environment.
    assert "hydra_plugins/__init__.py" not in names
    assert "[verl.plugins]\nverl_cov = verl_cov.plugin" in file_of(wheel, "entry_points.txt").decode()
    assert not [name for name in names if name.startswith(("tests/", "requirements/", "recipes/", "patches/"))]


def test_the_wheel_has_the_patches_and_says_that_it_is_typed(wheel):
    names = names_in(wheel)
    patches = [path for path in (ROOT / "patches").rglob("*") if path.is_file()]
    assert patches
    assert {f"verl_cov/{path.relative_to(ROOT)}" for path in patches} <= names
    assert "verl_cov/py.typed" in names
    assert "Typing :: Typed" in message_from_bytes(file_of(wheel, "METADATA")).get_all("Classifier")


def test_the_wheel_has_the_pages_and_shows_them(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert {path.name for path in (tmp_path / "verl_cov" / "docs").iterdir()} == pages
    for page, start in (("metrics", "# Metrics"), ("recipes", "# Recipes"), ("patches", "# Patches")):
        command = [sys.executable, "-c", "from verl_cov.cli import main; main()", "docs", page]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        for words, expected in (([], start), (["--path"], str(tmp_path))):
            done = subprocess.run([*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.stdout.startswith(expected), done.stderr


def required(wheel: Path) -> list[Requirement]:
    return [Requirement(line) for line in message_from_bytes(file_of(wheel, "METADATA")).get_all("Requires-Dist")]


def extra(wheel: Path, name: str) -> dict[str, Requirement]:
    """What an extra adds, by name; "": what every installation has."""
    asked = [one for one in required(wheel) if (one.marker is None) == (name == "")]
    return {one.name: one for one in asked if one.marker is None or one.marker.evaluate({"extra": name})}


def test_verl_and_what_it_stands_on_are_the_users_own(wheel):
    """pip would change an installed torch or verl to what a requirement of ours says."""
    for name in ("", "law", "tasks", "all"):
        asked = extra(wheel, name)
        assert asked, name
        assert not VERLS & asked.keys(), name
    # An upper bound would take a newer version away from the user. NumPy: verl 0.8 needs 1, verl 0.9 needs 2.
    assert not [one for one in extra(wheel, "").values() if any(spec.operator != ">=" for spec in one.specifier)]
    for version in ("1.26.4", "2.0.0", "2.4.0"):
        assert extra(wheel, "")["numpy"].specifier.contains(version)
    both = extra(wheel, "law").keys() | extra(wheel, "tasks").keys()
    assert extra(wheel, "all").keys() == both
    assert set(extra(wheel, "verl")) == {"verl"}


def test_the_tables_of_extras_in_the_code_are_those_of_the_wheel(wheel):
    for name, modules in terminal.EXTRAS.items():
        assert {one.replace("-", "_") for one in extra(wheel, name)} <= set(modules)
    assert str(extra(wheel, "tasks")["math-verify"].specifier) == str(Requirement(f"x{MATH_VERIFY}").specifier)


def test_a_source_archive_builds_the_same_wheel_and_has_the_tests(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=1200,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert names_in(wheel_of(source, tmp_path / "again")) == names_in(wheel)
    for path in ("tests/conftest.py", "tests/law/data/file.jsonl", "requirements/cpu.lock", "requirements/setup.py"):
        assert (source / path).is_file(), path
    for path in ("Makefile", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "recipes/run.sh", "benchmarks"):
        assert (source / path).exists(), path


def test_an_editable_install_puts_no_file_beside_the_folder(tmp_path):
    """A copy of the patches in site-packages would outlive the ones that are edited."""
    code = "import sys; from hatchling.build import build_editable; print(build_editable(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, capture_output=True, timeout=1200)
    (made,) = tmp_path.glob("*.whl")
    assert {name.partition("/")[0] for name in names_in(made) if ".dist-info/" not in name} == {"_verl_cov.pth"}


# --- without the extras -----------------------------------------------------------------------------------------------

# Runs the command line where nothing but what the wheel itself asks for can be imported.
_BARE = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
absent = set(json.loads(sys.argv[1]))
assert not absent & set(sys.modules)
sys.meta_path.insert(0, Absent())
sys.argv = ["verl-cov", *sys.argv[2:]]
from verl_cov.cli import main
main()
"""
LAW, TASKS = (list(terminal.EXTRAS[name]) for name in ("law", "tasks"))
OTHERS = [*terminal.VERLS, "vllm", "psutil"]


def bare(*words: object, absent: list[str], folder: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", _BARE, json.dumps(absent), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["fit", "--help"],
        ["watch", str(LOG), "--once"],
        ["data", "prepare", "--help"],
        ["recipes", "run", "--help"],
        ["recipes", "list"],
        ["recipes", "commands", "fig12-kl_cov"],
    ],
    ids=" ".join,
)
def test_what_needs_no_extra(words):
    done = bare(*words, absent=[*LAW, *TASKS, *OTHERS])
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["fit", LOG, "--robust"],
        ["scale", "--example"],
        ["plot", LOG, "-o", "law.png"],
        ["report", LOG, "-o", "report.html"],
        ["watch", LOG, "--once", "--png", "board.png"],
    ],
    ids=lambda words: words[0],
)
def test_what_needs_the_extra_law_alone(words, tmp_path):
    done = bare(*words, absent=[*TASKS, *OTHERS], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_packages_of_the_law_and_of_the_metrics_load_without_an_extra():
    """The runner of recipes reads logs with the first; `watch` reads the second's table of keys."""
    code = _BARE.partition("sys.argv = ")[0] + "import verl_cov.law, verl_cov.core.metric_table"
    code += "\nimport verl_cov.recipes.launch, verl_cov.recipes.results"
    command = [sys.executable, "-c", code, json.dumps([*LAW, *TASKS, *OTHERS])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "absent", "fix"),
    [
        *(([word, LOG], LAW, "law") for word in ("fit", "forecast", "compare", "plot", "report")),
        (["watch", LOG, "--once", "--png", "board.png"], LAW, "law"),
        (["scale", "--example"], LAW, "law"),
        (["data", "list"], TASKS, "tasks"),
        (["data", "prepare", "amc"], TASKS, "tasks"),
        (["data", "check", LOG], TASKS, "tasks"),
        (["recipes", "show", "sec4-7b"], OTHERS, "verl"),
        (["recipes", "show", "sec4-7b"], ["verl"], "verl"),  # Hydra alone knows no configuration of verl's
        (["recipes", "check", "tiny", "prime", "kl_cov", "toy"], OTHERS, "verl"),
        (["recipes", "run", "tiny", "grpo", "kl_cov", "toy", "--dry-run"], OTHERS, "verl"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_missing_extra_is_one_line_that_names_the_fix(words, absent, fix, tmp_path):
    done = bare(*words, absent=absent)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("verl-cov: this needs ")
    assert f"pip install 'verl-cov[{fix}]'" in line


def test_a_part_of_an_extra_that_is_missed_late_is_one_line_too():
    done = bare("fit", LOG, "--robust", absent=["statsmodels"])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("statsmodels, which is not installed: pip install 'verl-cov[law]'")
    assert "Traceback" not in done.stderr


def test_a_module_of_ours_that_is_missing_is_no_extra():
    with pytest.raises(ModuleNotFoundError, match="a mistake"), terminal.installed():
        raise ModuleNotFoundError("a mistake", name="verl_cov.mistake")


# --- in verl's processes ----------------------------------------------------------------------------------------------


def test_the_plugin_loads_without_the_extras():
    code = _BARE.partition("sys.argv = ")[0] + "from verl_cov import plugin\nprint(plugin.status)"
    absent = [*LAW, "math_verify", "latex2sympy2_extended"]
    absent.remove("pandas")  # verl's own
    command = [sys.executable, "-c", code, json.dumps(absent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert "error=None" in done.stdout, done.stdout + done.stderr
    assert "fail_fast" in done.stdout


def test_importing_the_package_is_free():
    code = "import sys, verl_cov; sys.exit(any(name in sys.modules for name in ('torch', 'verl', 'ray', 'vllm')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0


@pytest.mark.parametrize(
    "words", [[], ["recipes"], ["recipes", "run"], ["data", "prepare"], ["fit"], ["patch", "check"]]
)
def test_every_command_knows_h(words):
    short, long = (
        CliRunner().invoke(app, [*words, option], prog_name="verl-cov", env={"COLUMNS": "100"})
        for option in ("-h", "--help")
    )
    assert short.exit_code == 0
    assert short.stdout == long.stdout
    assert " ".join(["Usage: verl-cov", *words]) in short.stdout
