from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from verl_cov.law.readers import Run, merge
from verl_cov.study import protocol, results
from verl_cov.study.protocol import Cell, Protocol

CONTENT = {
    "version": 3,
    "about": "A study of tests.",
    "tried": ["nothing"],
    "settings": {"model": "none"},
    "recipe": "tiny/{algorithm}/{control}/{task}",
    "base": ["recipe.seed={start}", "trainer.total_training_steps=12"],
    "factors": {
        "task": ["toy"],
        "algorithm": ["grpo", "rloo"],
        "control": {"none": [], "kl_cov": ["recipe.ppo_kl_coef=2"]},
        "start": [0, 1, 2],
    },
    "usual": {"control": "none"},
    "replicate": "start",
    "runs": [{"start": [0, 1, 2], "control": ["none", "kl_cov"]}, {"start": [0], "algorithm": ["grpo", "rloo"]}],
    "claims": {
        "collapse": {
            "paper": "Fig. 1",
            "predicts": "entropy falls",
            "statistic": "entropy_left",
            "runs": {"control": "none"},
            "holds": "< 0.05",
        },
        "kept": {
            "paper": "Fig. 11",
            "predicts": "KL-Cov keeps what can be found",
            "statistic": "pass@64",
            "runs": {"control": "kl_cov"},
            "minus": {"control": "none"},
            "holds": "> 0",
        },
    },
    "figures": {
        "fig11": {"kind": "curves", "by": "control", "says": "Three curves.", "runs": {"control": ["none", "kl_cov"]}}
    },
    "tables": {
        "both": {
            "by": "control",
            "says": "Both.",
            "runs": {"control": ["none", "kl_cov"]},
            "statistics": {"pass@64": "found", "target_error": "distance"},
        }
    },
}


@pytest.fixture
def make(tmp_path):
    """make(**changes): the study of tests with other fields, as its file."""

    def made(name: str = "test", **changes) -> Path:
        folder = tmp_path / "studies"
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**CONTENT, **changes}, sort_keys=False))
        return path

    return made


@pytest.fixture
def study(make) -> Protocol:
    return protocol.read(make())


def trained(cell: Cell, steps: int = 12) -> Run:
    """What a run might have logged: a law with a = 0.2, b = 0.9, entropy that falls to a hundredth; KL-Cov's falls
    less and finds 0.1 more."""
    start, kept = int(cell.levels["start"]), cell.levels["control"] == "kl_cov"
    records = []
    for step in range(steps + 1):
        entropy = math.exp(-(0.2 if kept else 0.5) * step) + 0.001 * start
        data: dict[str, object] = {
            "val-cov/acc/sample_weighted": 0.9 - 0.2 * math.exp(math.exp(-(0.2 if kept else 0.5) * (step + 1))),
            "val-cov/pass@64": 0.8 + 0.1 * kept + 0.01 * start * kept,
        }
        if step:
            data |= {"actor/entropy": entropy, "actor/cov/mean": 0.1, "timing_s/step": 2.0, "not/kept": 1.0}
        records.append((step, data))
    return merge(records)


def keep(folder: Path, study: Protocol, cell: Cell, seconds: float = 60.0) -> Path:
    return results.write(folder, study, cell, trained(cell), seconds=seconds, parameters=1000)
