"""`make compat`: the tests that apply, with each verl release, in an environment of its own.

    python -m tests.compat [RELEASE ...] [--no-write] [--fresh]

For each release a virtual environment (.compat/RELEASE, made once), the groups of tests that :data:`GROUPS` has for it,
its self-test, and a line. What the groups found goes to docs/compatibility.json and the self-test's results to
docs/selftests, so that one release, group or self-test (``--groups selftest``) can be run again without the others; and
from there to docs/compatibility.md (tests/compat_page.py).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from tests import compat_page
from verl_cov import patch
from verl_cov.hooks.versions import NEWEST, RELEASES, Release, release_of

ROOT = Path(__file__).resolve().parents[1]
VENVS = ROOT / ".compat"

CORE = ("covariance", "selection", "rollout", "losses", "metrics", "entropy_change", "advice")
UNIT = " ".join(["tests/law tests/test_patch.py", *(f"tests/core/test_{name}.py" for name in CORE)])
HOOKS = ("contract", "versions", "imports")
CONTRACT = " ".join(["tests/test_doctor.py", *(f"tests/hooks/test_{name}.py" for name in HOOKS)])
INVARIANCE = "tests/hooks/test_invariance.py tests/hooks/test_metrics.py"
PATCHED = "tests/hooks/test_patched.py"
SELFTEST = "selftest"  # named beside the groups; no pytest runs it
WHOLE = "not (e2e or release)"  # also what only `make nightly` runs


@dataclass(frozen=True)
class Group:
    """Tests that one pytest runs. what: for the table. patch: only where there is a patch for verl."""

    name: str
    what: str
    paths: str
    engine: bool = False
    v1: bool = False
    patch: bool = False
    marker: str = "not (e2e or nightly or release)"

    def applies(self, release: Release) -> bool:
        patched = not self.patch or release.version in patch.patches()
        return (release.engine or not self.engine) and (release.v1 or not self.v1) and patched


GROUPS = (
    Group("unit", "mathematics, selection on gloo ranks, losses against verl's own, law, patch tool", UNIT),
    Group("contract", "loading, configuration, main_ppo's refusals, doctor", CONTRACT),
    Group("patched", "the patch: its own test, same tokens and gradient", PATCHED, patch=True, marker=WHOLE),
    Group(
        "engine",
        "the contract of invariance, and exact metrics, on verl's FSDP2 engine, on 1 and 2 ranks",
        INVARIANCE,
        engine=True,
        marker=WHOLE,
    ),
    Group(
        "hooks",
        "every other test of the hooks in worker and trainer, PRIME, recipes",
        "tests/hooks tests/core/prime tests/recipes",
        engine=True,
        v1=True,
    ),
    Group(
        "training",
        "whole trainings with the real trainers and vLLM: Clip-Cov, KL-Cov, PRIME, metrics, a kill and a resumption",
        "tests/e2e/test_training.py",
        engine=True,
        v1=True,
        marker="e2e",
    ),
)


@dataclass
class Outcome:
    """Of one group. error: its last lines if pytest did not come to an end. date: on which it ran."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    error: str = ""
    date: str = field(default_factory=partial(time.strftime, "%Y-%m-%d"))

    def __str__(self) -> str:
        if self.error:
            return "did not run"
        counts = [f"{self.passed} passed"]
        counts += [f"{self.failed} failed"] if self.failed else []
        return ", ".join(counts + ([f"{self.skipped} skipped"] if self.skipped else []))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("releases", nargs="*", metavar="RELEASE", help="verl releases; all if none is named")
    parser.add_argument("--groups", help="only these, separated by commas; selftest is one")
    parser.add_argument("--no-write", action="store_true", help="leave what is in docs as it is")
    parser.add_argument("--fresh", action="store_true", help="make the environments in .compat anew")
    arguments = parser.parse_args()
    known = [release.version for release in RELEASES]
    for name in arguments.releases:
        if name not in known:
            parser.error(f"there is no release {name}: there are {', '.join(known)}")
    names = [*(group.name for group in GROUPS), SELFTEST]
    wanted = names if arguments.groups is None else arguments.groups.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"there is no group {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    lines, good = [], True
    for version in arguments.releases or known:
        release = release_of(version)
        python = environment(version, arguments.fresh)
        outcomes = {}
        for group in GROUPS:
            if group.name in wanted and group.applies(release):
                say(version, f"{group.name}: {group.what}")
                outcomes[group.name] = run(python, version, group)
                say(version, f"{group.name}: {outcomes[group.name]} in {outcomes[group.name].seconds:.0f} s")
        fine = all(not outcome.failed and not outcome.error and outcome.passed for outcome in outcomes.values())
        said = [f"{name} {outcome}" for name, outcome in outcomes.items()]
        if SELFTEST in wanted:
            say(version, SELFTEST)
            holds = selftest(python, version, write=not arguments.no_write)
            said, fine = [*said, f"{SELFTEST} {'passed' if holds else 'failed'}"], fine and holds
        if not arguments.no_write:
            compat_page.record(version, stack(python), {name: asdict(one) for name, one in outcomes.items()})
        good &= fine
        lines.append(f"verl {version}: {'ok' if fine else 'NOT ok'}; {'; '.join(said)}")
    print("\n" + "\n".join(lines), flush=True)
    return 0 if good else 1


# --- environments -----------------------------------------------------------------------------------------------------


def environment(version: str, fresh: bool) -> Path:
    """The Python of .compat/VERSION, which is made or brought up to date; of .venv for the release that it has."""
    requirements = ROOT / "requirements"
    if f"verl=={version}" in (requirements / "cpu.lock").read_text().splitlines():
        return ROOT / ".venv" / "bin" / "python"
    folder = VENVS / version
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    lock = requirements / ("cpu.lock" if release_of(version).v1 else "older.lock")
    command = [sys.executable, str(requirements / "setup.py"), "--venv", str(folder)]
    command += ["--lock", str(lock), "--pin", f"verl=={version}"]
    say(version, "its environment")
    if subprocess.run(command).returncode:
        sys.exit(f"{version}: its environment was not made, the reason stands above")
    return folder / "bin" / "python"


# --- tests ------------------------------------------------------------------------------------------------------------


def run(python: Path, version: str, group: Group) -> Outcome:
    VENVS.mkdir(exist_ok=True)
    report = VENVS / f"{version}-{group.name}.xml"
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2"]
    command += ["--dist", "loadfile", "--no-loadscope-reorder"]  # as the Makefile
    command += ["-m", group.marker, f"--junit-xml={report}", *group.paths.split()]
    if group.name == "engine":
        command += ["-k", "not 4"]  # ranks, on two cores: `make test` has them, with the pinned release
    if group.name == "hooks":
        others = {path for other in GROUPS if other is not group for path in other.paths.split()}
        command += [f"--ignore={path}" for path in sorted(others) if path.startswith("tests/hooks/")]
    variables = {**os.environ, "VERL_USE_EXTERNAL_MODULES": "verl_cov.plugin"}
    started = time.monotonic()
    log = VENVS / f"{version}-{group.name}.log"
    with log.open("w") as output:
        code = subprocess.run(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT).returncode
    seconds = time.monotonic() - started
    if not report.exists() or code not in (0, 1):  # 1: tests failed; else pytest did not come to an end
        lines = "\n".join(log.read_text().splitlines()[-15:])
        print(lines, flush=True)
        return Outcome(seconds=seconds, error=lines)
    cases = list(ElementTree.parse(report).iter("testcase"))
    kinds = [{child.tag for child in case} for case in cases]
    failed = [case for case, kind in zip(cases, kinds, strict=True) if kind & {"failure", "error"}]
    for case in failed:
        print(f"    {case.get('classname')}::{case.get('name')}", flush=True)
    skipped = sum("skipped" in kind for kind in kinds)
    return Outcome(len(cases) - len(failed) - skipped, len(failed), skipped, seconds)


def selftest(python: Path, version: str, write: bool) -> bool:
    """Runs the release's self-test, of the newest one on two ranks too; False if a check failed.

    write: this machine's results to docs/selftests. A run that broke off leaves none.
    """
    forms = {"cpu": ["-m", "verl_cov.selftest"]}
    if version == NEWEST.version:
        forms["cpu-two-ranks"] = ["-m", "torch.distributed.run", "--nproc-per-node", "2", *forms["cpu"]]
    variables = {**os.environ, "VERL_USE_EXTERNAL_MODULES": "verl_cov.plugin"}
    good = True
    for name, form in forms.items():
        command = [str(python), *form, "--device", "cpu"]
        if write:
            file = compat_page.SELFTESTS / f"{name}-verl-{version}.json"
            file.unlink(missing_ok=True)
            command += ["-o", str(file)]
        good &= subprocess.run(command, cwd=ROOT, env=variables).returncode == 0
    return good


def stack(python: Path) -> dict[str, str]:
    """The versions that the page names."""
    code = "import importlib.metadata as m, sys\n"
    code += "for d in m.distributions(): print(d.metadata['Name'].lower(), d.version)"
    listed = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout
    found = dict(line.split() for line in listed.splitlines())
    return {name: found[name] for name in compat_page.STACK if name in found}


def say(version: str, text: str) -> None:
    print(f"compat {version}: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
