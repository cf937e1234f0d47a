from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from verl_cov.recipes import launch

STAND_IN = [sys.executable, str(Path(__file__).with_name("stand_in.py"))]


@pytest.fixture(autouse=True)
def _fast_compositions(verl_yaml_parsed_once):
    """These tests compose hundreds of configurations."""


@pytest.fixture
def stand_in(monkeypatch):
    """A script in the place of verl's trainer; stand_in(**do): what it does from now on."""
    monkeypatch.setattr(launch, "TRAINER", STAND_IN)

    def behave(**do):
        monkeypatch.setenv("STAND_IN", json.dumps(do))

    behave()
    return behave
