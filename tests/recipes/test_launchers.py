"""Containers and launchers, each checked by its own tool where there is one; all call `verl-cov recipes run`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_release import Environment
from verl_cov.recipes import catalogue

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes"
SHELL = [*sorted(FOLDER.glob("*.sh")), *sorted((ROOT / "docs" / "upstream").glob("*/run.sh"))]
SKY = yaml.safe_load((FOLDER / "sky.yaml").read_text())
JOB = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())


def stub(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def tool(name: str) -> str:
    """A checker's program, of this Python's environment (the extra dev) or of the system."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return shutil.which(name, path=places) or pytest.skip(f"no {name}: pip install -e '.[dev]'")


@pytest.fixture
def stubs(tmp_path, monkeypatch) -> Path:
    for name in ("verl-cov", "ray"):
        stub(tmp_path, name, f'printf \'%s \' {name} "$@"; echo "address=$RAY_ADDRESS"')
    # srun runs the command in place; scontrol knows two nodes.
    stub(tmp_path, "srun", 'while [[ $1 == --* ]]; do [[ $1 == --overlap ]] && shift || shift 2; done; exec "$@"')
    stub(tmp_path, "scontrol", "printf 'first\\n'; sleep 0.3; printf 'second\\n'")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def run(script: Path | str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", str(script), *words] if isinstance(script, Path) else ["bash", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


@pytest.mark.parametrize("script", SHELL, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_is_right_by_bash_and_by_shellcheck(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK) == script.read_text().startswith("#!")  # common.sh is read by the others
    subprocess.run([tool("shellcheck"), "-s", "bash", "-S", "warning", str(script)], check=True)


def test_slurm_on_one_node_runs_the_recipe(stubs):
    done = run(FOLDER / "slurm.sh", "sec4-7b/kl_cov", "a=1 2", SLURM_JOB_NODELIST="first", SLURM_JOB_NUM_NODES="1")
    assert done.stdout.splitlines() == ["verl-cov recipes run sec4-7b/kl_cov a=1 2 address="]


def test_slurm_on_several_nodes_starts_a_ray_cluster_first(stubs):
    environment = {"SLURM_JOB_NODELIST": "first,second", "SLURM_JOB_NUM_NODES": "2", "HEAD_SECONDS": "0.3"}
    done = run(FOLDER / "slurm.sh", "sec4-32b/kl_cov", **environment)
    assert done.returncode == 0, done.stderr
    # Sorted: on a busy machine the stand-ins overtake each other.
    assert sorted(done.stdout.splitlines()) == [
        "ray start --address first:6379 --block address=",
        "ray start --head --port 6379 --block address=",
        "verl-cov recipes run sec4-32b/kl_cov address=first:6379",
    ]


def test_slurm_passes_on_its_signal_and_the_runs_exit_code(stubs, tmp_path):
    stub(stubs, "verl-cov", 'trap "sleep 0.3; echo stopped; exit 7" TERM; echo started; while true; do sleep 0.1; done')
    environment = {**os.environ, "SLURM_JOB_NODELIST": "first", "SLURM_JOB_NUM_NODES": "1"}
    command = ["bash", str(FOLDER / "slurm.sh"), "e"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 7
    assert process.stdout.read() == "stopped\n"


def test_slurm_outside_of_a_job_is_one_line(stubs, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    done = run(FOLDER / "slurm.sh", "e")
    assert (done.returncode, done.stdout) == (2, "")
    assert "sbatch --nodes N recipes/slurm.sh e" in done.stderr
    assert "recipes/slurm.sh sec4-7b/kl_cov" in run(FOLDER / "slurm.sh", "--help").stdout


@pytest.mark.parametrize("size", ["7b", "32b"])
@pytest.mark.parametrize("control", ["none", "clip_higher", "clip_cov", "kl_cov"])
def test_the_replacement_of_entropy_starts_a_recipe_that_there_is(stubs, size, control):
    done = run(ROOT / "docs" / "upstream" / "entropy" / "run.sh", size, control, "--dry-run")
    program, *words = done.stdout.split(" address")[0].split()
    assert (program, words[:2], words[3:]) == ("verl-cov", ["recipes", "run"], ["--dry-run"])
    assert catalogue.parse(words[2:3])
    assert run(ROOT / "docs" / "upstream" / "entropy" / "run.sh", size, "other").returncode == 2


@pytest.mark.parametrize("control", ["none", "kl_cov"])
def test_the_replacement_of_prime_starts_a_recipe_that_there_is(stubs, control):
    done = run(ROOT / "docs" / "upstream" / "prime" / "run.sh", "--dry-run", CONTROL=control)
    words = done.stdout.split(" address")[0].split()
    assert words == ["verl-cov", "recipes", "run", "qwen2.5-7b", "prime", control, "eurus_math", "--dry-run"]
    assert catalogue.parse(words[3:7])


def test_the_dockerfile_is_right_by_hadolint():
    text = (FOLDER / "Dockerfile").read_text()
    assert re.search(r"^ARG IMAGE=verlai/verl:\S+\nFROM \$\{IMAGE\}$", text, flags=re.MULTILINE)
    subprocess.run([tool("hadolint"), str(FOLDER / "Dockerfile")], check=True)


def test_sky_runs_the_recipe_alone_or_on_a_cluster(stubs):
    assert set(SKY) <= {"name", "resources", "num_nodes", "workdir", "envs", "setup", "run"}
    subprocess.run(["bash", "-n"], input=SKY["setup"] + SKY["run"], text=True, check=True)
    one = {"SKYPILOT_NODE_IPS": "10.0.0.1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"}
    recipe = SKY["envs"]["RECIPE"]
    assert catalogue.parse([recipe])
    assert run(SKY["run"], RECIPE=recipe, **one).stdout == f"verl-cov recipes run {recipe} address=\n"
    several = {**one, "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    assert run(SKY["run"], RECIPE="e/b", **several).stdout.endswith("verl-cov recipes run e/b address=10.0.0.1:6380\n")
    worker = run(SKY["run"], RECIPE="e/b", **{**several, "SKYPILOT_NODE_RANK": "1"})
    assert worker.stdout == "ray start --address 10.0.0.1:6380 --block address=\n"


def groups() -> list[tuple[int, Any]]:
    cluster = JOB["spec"]["rayClusterSpec"]
    workers = [(group["replicas"], group["template"]["spec"]) for group in cluster["workerGroupSpecs"]]
    return [(1, cluster["headGroupSpec"]["template"]["spec"]), *workers]


def test_the_rayjob_has_the_nodes_and_gpus_that_its_recipe_asks_for():
    program, *words = JOB["spec"]["entrypoint"].split()
    assert [program, *words[:2]] == ["verl-cov", "recipes", "run"]
    assert catalogue.parse(words[2:3])
    scale = yaml.safe_load((ROOT / "verl_cov" / "conf" / "recipe" / "scale" / "nodes4x8.yaml").read_text())
    trainer = scale["trainer"]
    assert sum(count for count, _ in groups()) == trainer["nnodes"]
    for _, spec in groups():
        (container,) = spec["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == str(trainer.get("n_gpus_per_node", 8))
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in spec["volumes"]}


# By KubeRay's Go types of ray.io/v1 (RayJobSpec, RayClusterSpec, HeadGroupSpec, WorkerGroupSpec): its schema is in no
# package.
def test_the_rayjob_has_the_fields_of_kuberay():
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert set(JOB["spec"]) == {"entrypoint", "runtimeEnvYAML", "shutdownAfterJobFinishes", "rayClusterSpec"}
    cluster = JOB["spec"]["rayClusterSpec"]
    assert set(cluster) == {"headGroupSpec", "workerGroupSpecs"}
    assert set(cluster["headGroupSpec"]) == {"rayStartParams", "template"}
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    assert isinstance(yaml.safe_load(JOB["spec"]["runtimeEnvYAML"])["env_vars"], dict)


_SKY = """
import sys, sky, yaml
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
print(task.name, task.num_nodes, resources.accelerators)
text = yaml.safe_load(open(sys.argv[1]))
text["resources"]["accelarators"] = "H100:8"
try:
    sky.Task.from_yaml_config(text)
except ValueError as error:
    print(error)
"""


@pytest.mark.release
def test_skypilot_and_kubernetes_schema_take_the_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    tools = Environment(tmp_path / "tools")
    tools.run("pip", "install", "--quiet", "skypilot==0.14.1", "kubernetes-validate==1.37.0")
    said = tools.run("python", "-c", _SKY, FOLDER / "sky.yaml").stdout
    assert "verl-cov 1 {'H100': 8}" in said
    assert "accelarators" in said  # a word that it does not know is refused
    for number, (_, spec) in enumerate(groups()):
        file = tmp_path / f"{number}.yaml"
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, "spec": spec}
        file.write_text(yaml.safe_dump(pod))
        tools.run("kubernetes-validate", "--strict", "-k", "1.32", file)
        file.write_text(yaml.safe_dump({**pod, "spec": {**spec, "container": []}}))
        tools.run("kubernetes-validate", "--strict", "-k", "1.32", file, fails=True)
