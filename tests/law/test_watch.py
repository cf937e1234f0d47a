"""`verl-cov watch`: finding runs, what the board says of them, and the picture."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console
from typer.testing import CliRunner

from verl_cov import cli
from verl_cov.core.metric_table import LADDER, PREFIX
from verl_cov.core.update_kinds import UPDATE_KINDS
from verl_cov.law.plots import covariance
from verl_cov.law.readers import Run, read_metrics
from verl_cov.law.watch import board, figure, sources


def records(steps=20, control=True, metrics=True):
    """A run as verl logs it: entropy falls, the score follows the law, and our metrics beside it."""
    random = np.random.default_rng(3)
    lines = [{"step": 0, "data": {"val-core/task/acc/mean@1": 0.8 - 0.2 * math.exp(1.0)}}]
    entropy = [math.exp(-step / 8) for step in range(steps + 1)]
    for step in range(1, steps + 1):
        data = {"actor/entropy": entropy[step - 1], "critic/score/mean": 0.5}
        if step % 4 == 0:
            data["val-core/task/acc/mean@1"] = 0.8 - 0.2 * math.exp(entropy[step])
        if metrics:
            ours = {"entropy_error": 0.02, "mean": 0.1 / step, "tokens": 100.0}
            ours |= {f"top_{share:g}": 5 - 4 * share for share in LADDER}
            shares = random.dirichlet(np.ones(4))
            ours |= {f"{kind}_cov_frac": share for kind, share in zip(UPDATE_KINDS, shares, strict=True)}
            ours |= {f"{kind}_frac": 0.25 for kind in UPDATE_KINDS}
            ours |= {f"prompt_cov_{name}": value for name, value in (("hard", -0.1), ("medium", 0.1), ("easy", 0.2))}
            if step > 1:
                ours["entropy_change"] = entropy[step - 1] - entropy[step - 2]
            if step > 5:
                for n in (1, 2):
                    ours |= {f"theorem{n}_predicted": entropy[step] - entropy[step - 1], f"theorem{n}_correlation": 0.9}
            if control:
                ours |= {"selected_tokens": 2.0, "selected_frac": 0.02}
            data |= {PREFIX + key: value for key, value in ours.items()}
        lines.append({"step": step, "data": data})
    return lines


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def shown(runs, width=120):
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(board.board(runs, width))
    return console.export_text()


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_console_log_is_watched_like_the_file_loggers(tmp_path):
    path = tmp_path / "job.out"
    for line in records(3):
        with path.open("a") as file:
            file.write(" - ".join([f"step:{line['step']}", *(f"{k}:{v!r}" for k, v in line["data"].items())]) + "\n")
    (source,) = sources.find([tmp_path])
    assert source.poll()
    assert not source.poll()
    assert (source.name, source.run.steps.tolist()) == ("job", [0, 1, 2, 3])
    result = CliRunner().invoke(cli.app, ["watch", str(path), "--once"])
    assert result.exit_code == 0
    assert "job" in result.output


def test_a_file_is_read_again_when_it_has_grown_or_was_truncated(tmp_path):
    path = write(tmp_path / "metrics.jsonl", records(3))
    (source,) = sources.find([path])
    assert source.poll()
    assert not source.poll()
    assert source.run is not None
    assert source.run.steps[-1] == 3
    with path.open("a") as file:
        file.write(json.dumps({"step": 4, "data": {}}) + "\n" + '{"step": 5, "da')
    assert source.poll()
    assert source.run.steps[-1] == 4
    assert source.run.damaged == 1
    write(path, records(1))
    assert source.poll()
    assert source.run.steps[-1] == 1


# --- the board --------------------------------------------------------------------------------------------------------


def test_sparklines():
    assert board.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert board.sparkline([1.0, 1.0], 8) == "▁▁"
    assert board.sparkline([0, math.nan, 1], 8) == "▁ █"
    assert board.sparkline(range(100), 4) == "▁▃▆█"
    assert board.sparkline([5, -5], 4, low=0, high=1) == "█▁"
    assert board.sparkline([], 4) == board.sparkline([1], 0) == ""
    assert board.sparkline([math.nan], 4) == " "


def test_the_board_says_what_a_run_measured(tmp_path):
    run = read_metrics(write(tmp_path / "metrics.jsonl", records()))
    text = shown({"kl": run})
    law = 0.8 - 0.2
    for part in (
        f"{law:.3f} (R² 1.00, 5 points)",
        "±0.020",
        "top 0.02 %",
        "exploitation",
        "by 25 % of tokens",
        "hard -0.10 mid +0.10 easy +0.20",
        "2 tokens (2 %)",
        "corr 0.90",
    ):
        assert part in text, text
    change = math.exp(-19 / 8) - math.exp(-18 / 8)
    assert f"{change:+.3f}" in text
    assert f"next {math.exp(-20 / 8) - math.exp(-19 / 8):+.3f}" in text


def test_prediction_and_change_stand_one_under_the_other():
    """One prediction stands out; it must stand under the change it predicted, a step after it was made."""
    lines = records()
    spike = 12
    for line in lines[1:]:
        data = line["data"]
        data[PREFIX + "entropy_change"] = 1.0 if line["step"] == spike + 1 else 0.0
        if line["step"] > 5:
            data[PREFIX + "theorem2_predicted"] = 1.0 if line["step"] == spike else 0.0
    run = Run(np.array([line["step"] for line in lines]), tuple(line["data"] for line in lines))
    rows = {line[:14].strip(): line[16:] for line in shown({"kl": run}, width=160).splitlines()}
    assert rows["change"].count("█") == rows["theorem 2"].count("█") == 1
    assert rows["change"].index("█") == rows["theorem 2"].index("█")
    axes = Figure().subplots()
    covariance._changes(axes, run)
    at = {line.get_label().split(",")[0]: line.get_xdata()[np.argmax(line.get_ydata())] for line in axes.lines[1:]}
    assert at["measured"] == at["Theorem 2"] == spike + 1


@pytest.mark.parametrize(
    "missing", ["entropy_change", "selected_frac", "exploitation_frac", "theorem1_correlation", "mean"]
)
def test_a_metric_that_is_missing_takes_only_its_own_cell_away(missing):
    lines = records()
    for line in lines:
        line["data"].pop(PREFIX + missing, None)
    run = Run(np.array([line["step"] for line in lines]), tuple(line["data"] for line in lines))
    assert "±0.020" in shown({"kl": run})


def test_names_are_shown_as_they_are(tmp_path):
    run = read_metrics(write(tmp_path / "metrics.jsonl", records()))
    name = "x$^$ kl[lr=1e-6] [bold]"
    assert name in shown({name: run})
    figure.plot({name: run}, tmp_path / "board.png")


@pytest.mark.parametrize("width", [80, 120, 200])
def test_no_line_is_wider_than_the_terminal(tmp_path, width):
    run = read_metrics(write(tmp_path / "metrics.jsonl", records()))
    text = shown({f"run {number}": run for number in range(4)}, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    assert text.count("acted on") == -(-4 // max(1, (width - 16) // 36))


def test_runs_without_our_metrics_or_without_a_step_say_so(tmp_path):
    plain = read_metrics(write(tmp_path / "metrics.jsonl", records(metrics=False)))
    text = shown({"plain": plain, "new": None})
    assert "+verl_cov=metrics" in text
    assert "new: waiting for its first step" in text
    assert "theorem" not in text
    assert "0.600 (R² 1.00" in text


def test_the_command_prints_once_where_nobody_watches(tmp_path):
    write(tmp_path / "a" / "metrics.jsonl", records())
    result = CliRunner().invoke(cli.app, ["watch", str(tmp_path), "--png", str(tmp_path / "board.png")])
    assert result.exit_code == 0, result.output
    assert "ceiling" in result.output
    picture = imread(tmp_path / "board.png")
    assert picture[..., :3].std() > 0.05
    bad = CliRunner().invoke(cli.app, ["watch", str(tmp_path), "--once", "--png", str(tmp_path / "none" / "x.png")])
    assert bad.exit_code == 2
    assert "a folder that exists" in bad.output


def test_live_it_follows_a_run_and_ends_with_ctrl_c(tmp_path):
    path = write(tmp_path / "first" / "metrics.jsonl", records(7))
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-c",
        "from verl_cov.cli import main; main()",
        "watch",
        str(tmp_path),
        "--interval",
        "0.1",
    ]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "50"}
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        # Tests that run in the background inherit an ignored SIGINT, and would hand it on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    seen = ""

    def wait_for(text):
        nonlocal seen
        deadline = time.monotonic() + 60
        while not re.search(text, seen):
            assert time.monotonic() < deadline, seen
            assert process.poll() is None, seen
            if select.select([ours], [], [], 0.2)[0]:
                seen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(ours, 65536).decode(errors="ignore"))

    try:
        wait_for(r"step +7\s")
        write(path, records(8))
        wait_for(r"step +8\s")
        write(tmp_path / "later" / "metrics.jsonl", records(9))
        wait_for(r"step +8 +9\s")
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 30
        while process.poll() is None:  # it prints the board once more: somebody has to read it
            assert time.monotonic() < deadline
            if select.select([ours], [], [], 0.2)[0]:
                with suppress(OSError):
                    os.read(ours, 65536)
        assert process.returncode == 0
    finally:
        process.kill()
        os.close(ours)


# --- the picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [records(), records(control=False), records(metrics=False), records(1), [], [{"step": 0, "data": {}}]],
    ids=["all", "no control", "verl's own metrics", "one step", "empty", "no values"],
)
def test_every_kind_of_run_has_a_picture(tmp_path, lines, recwarn):
    run = read_metrics(write(tmp_path / "metrics.jsonl", lines))
    path = figure.plot({"run": run}, tmp_path / "board.png")
    assert imread(path)[..., :3].std() > 0.01
    assert not [str(warning.message) for warning in recwarn if "glyph" in str(warning.message).lower()]
