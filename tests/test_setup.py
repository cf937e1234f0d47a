"""What `make setup` says while pip works; a stand-in for pip."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SETUP = Path(__file__).parents[1] / "requirements" / "setup.py"


def test_a_count_that_has_not_changed_is_not_said_again(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("setup_script", SETUP)
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    python = tmp_path / "python"
    # `python -m pip ...`: one package, a while, the other one, then a long while of installing
    python.write_text("#!/bin/sh\necho Collecting a\nsleep 0.5\necho Collecting b\nsleep 1\n")
    python.chmod(0o755)
    assert setup.pip(python, ["install"], total=2, every_s=0.05) == 0
    said = [line.strip() for line in capsys.readouterr().out.replace("setup: ", "").splitlines()]
    assert [line for line in said if not line.startswith("0 of")] == [
        "1 of 2",
        "2 of 2, installing: a minute without news",
    ]
