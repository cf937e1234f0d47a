"""The self-test fails and names the cause where something is broken, and passes on two gloo ranks where nothing is."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.selftest.faulty import FAULTS

ROOT = Path(__file__).parents[2]
# Fault: words of the cause, in every layout.
CAUSES = {
    "hook_disabled": ("verl-cov's hook is not in it", "verl-cov's hook did not fire"),
    "verls_own_loss": ("acts on other tokens than verl-cov selected over the mini-batch", "within its micro-batch"),
    "mask_flipped_in_the_batch": ("the mask of selected tokens is wrong", "rank 1 "),
    "engine_that_swaps_rows": ("this engine re-shards the mini-batch", "the loss on rank 0 saw "),
}
MORE = {
    "hook_that_sees_no_run": ("verl-cov's hook is not in it", "verl-cov's hook did not fire"),
    "loss_by_micro_batch": ("acts on other tokens than verl-cov selected over the mini-batch",),
    "mask_flipped_in_the_selection": ("rank 1: KL-Cov with 0.002 selects other tokens than the numpy oracle",),
    "engine_that_loses_the_selection": ("re-shards the mini-batch", "do not have their own selection"),
    "engine_that_cuts_sequences": ("this engine re-shards the mini-batch after train_batch saw it",),
}


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)


@functools.cache
def checks(names: tuple[str, ...], file: Path) -> dict[str, list[dict[str, str]]]:
    done = torchrun("-m", "tests.selftest.faulty", str(file), *names)
    assert done.returncode == 0, done.stderr[-20000:]
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults")


def failing(found: list[dict[str, str]], words: tuple[str, ...]) -> None:
    """Every layout's check of the broken control failed, and all the words are in causes."""
    causes = " ".join(check["cause"] for check in found if check["outcome"] == "failed")
    assert all(word in causes for word in words), causes


def test_two_gloo_ranks_pass_and_each_fault_is_named(file):
    found = checks(("nothing", *CAUSES), file / "few.json")
    assert {check["outcome"] for check in found["nothing"]} == {"passed", "not possible"}
    assert sum(check["outcome"] == "passed" for check in found["nothing"]) > 10
    for fault, words in CAUSES.items():
        failing(found[fault], words)
        layouts = [check for check in found[fault] if check["name"].startswith(("KL-Cov", "high_entropy"))]
        assert layouts
        assert {check["outcome"] for check in layouts} == {"failed"}, fault


@pytest.mark.nightly
@pytest.mark.parametrize("fault", MORE)
def test_other_forms_of_the_faults_are_named_too(file, fault):
    assert {*CAUSES, *MORE, "nothing"} == set(FAULTS)
    failing(checks(tuple(MORE), file / "more.json")[fault], MORE[fault])


@pytest.mark.nightly
def test_the_command_on_two_gloo_ranks(tmp_path):
    done = torchrun("-m", "verl_cov.selftest", "--device", "cpu", "-o", str(tmp_path / "result.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All that is possible here holds on the CPU" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["hardware"]["ranks"] == 2
    outcomes = {check["name"]: check["outcome"] for check in result["checks"]}
    assert outcomes["selection, a rank without tokens, 100,000 tokens"] == "passed"
    assert (
        outcomes["Clip-Cov, packed (remove_padding)"] == outcomes["verl-cov's hook fired in every update"] == "passed"
    )
