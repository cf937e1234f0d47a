"""Fixtures shared by all tests. Nothing here is downloaded: models are made from a configuration and a seed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  the hook does not import a submodule itself

# The shapes in the signatures of verl_cov.core are checked at each call, in this process (not in verl's workers).
install_import_hook("verl_cov.core", "tests.typechecker.check")

# No deadline: the machine may be busy with a training. The same examples in every run: a red CI must be repeatable.
settings.register_profile("verl_cov", deadline=None, derandomize=True)
settings.load_profile("verl_cov")

# Before verl is imported by any test: this suite is for a machine without an accelerator.
os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def verl_yaml_parsed_once() -> Iterator[None]:
    """Hydra parses each of verl's YAML files once, not anew for each composition: that takes most of its time.

    The composition stays Hydra's. Plain data is kept, because Hydra changes the configurations it composes from.
    """
    from omegaconf import OmegaConf

    load = OmegaConf.load
    parsed: dict[str, object] = {}

    def load_once(file):
        if not hasattr(file, "read"):  # Hydra gives open files
            return load(file)
        text = file.read()
        if text not in parsed:
            parsed[text] = OmegaConf.to_container(load(io.StringIO(text)))
        return OmegaConf.create(parsed[text])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", load_once)
        yield


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of 0.1 M parameters with random weights and the byte tokenizer."""
    from verl_cov.selftest.batches import save_untrained_model

    return save_untrained_model(tmp_path_factory.mktemp("untrained"))
