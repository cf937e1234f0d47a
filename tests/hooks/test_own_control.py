"""docs/write-a-control.md as it is written: its function from a file, its command, and an entry point."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.core.controls.batches import mini_batch, share_of
from tests.hooks.test_start import LOSS, RUN, refused, validate
from verl_cov.core.controls import catalogue
from verl_cov.core.controls.weight import weigh
from verl_cov.hooks.checks import start

PAGE = (Path(__file__).parents[2] / "docs" / "write-a-control.md").read_text()


@pytest.fixture(autouse=True)
def _no_watch(monkeypatch):
    monkeypatch.setattr(start, "watch", lambda own_cluster: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return found


@pytest.fixture
def words(tmp_path) -> list[str]:
    """The command's words of the page, with the page's file in a folder that is there."""
    (tmp_path / "sure.py").write_text(block("python"))
    words = shlex.split(block("bash").replace("\\\n", "").replace("/home/me", str(tmp_path)))
    return words[words.index("YOUR_OPTIONS") + 1 :]


def test_the_pages_command_starts_a_run_with_the_pages_control(words, capsys):
    validate("+verl_cov=[metrics,cpu]", *RUN[1:], *words[1:])
    assert words[0] == "+verl_cov=metrics"
    assert "weighed by sure (share=0.1)" in capsys.readouterr().out


def test_the_pages_control_does_what_the_page_says(tmp_path):
    (tmp_path / "sure.py").write_text(block("python"))
    control = catalogue.make("sure", {"path": f"{tmp_path}/sure.py:sure", "share": 0.1})
    columns = mini_batch(0)
    weights, _ = weigh({"sure": control}, share_of(columns, 0, 1))
    good = columns["valid"] & (columns["advantage"] > 0) & (np.abs(columns["advantage"]) < 1e9)
    assert set(weights.tolist()) == {0.5, 1.0}
    halved = weights.numpy() == 0.5
    assert halved.sum() == int(0.1 * good.sum())
    assert columns["log_prob"][halved].min() >= np.sort(columns["log_prob"][good])[::-1][halved.sum() - 1]


def test_an_entry_point_is_found_by_its_name(monkeypatch):
    def double(tokens, factor):
        return torch.full_like(tokens.advantage, factor)

    point = SimpleNamespace(load=lambda: double)
    found = type("Points", (dict,), {"names": property(lambda self: set(self))})(double=point)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found if group == "verl_cov.controls" else {})
    weights, _ = weigh({"double": catalogue.make("double", {"factor": 2.0})}, share_of(mini_batch(0), 0, 1))
    assert weights.unique().tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="factor is missing"):
        catalogue.make("double", {})
    with pytest.raises(ValueError, match="factors is unknown: did you mean factor"):
        catalogue.make("double", {"factors": 2})


def test_a_file_that_is_wrong_is_named(tmp_path):
    run = ("+verl_cov=[metrics,cpu]", *RUN[1:])
    (tmp_path / "bad.py").write_text("import nothing_like_this")

    def message(path: str) -> str:
        return refused(*run, f'+{LOSS}cov_weights.own={{path: "{path}"}}')

    assert "cov_weights.own.path='nowhere.py:f' must be FILE.py:FUNCTION" in message("nowhere.py:f")
    assert "cannot be imported: ModuleNotFoundError: No module named" in message(f"{tmp_path}/bad.py:f")
    (tmp_path / "bad.py").write_text("x = 1")
    assert "has no function 'f'" in message(f"{tmp_path}/bad.py:f")
