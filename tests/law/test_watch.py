"""`verl-cov watch`: finding runs, what the board says of them, and the picture."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
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
from verl_cov.law.inputs import Inputs
from verl_cov.law.plots import covariance
from verl_cov.law.readers import Run, read_metrics
from verl_cov.law.watch import board, figure, overview, pace, sources
from verl_cov.law.watch.sparks import sparkline, sparkline_by_step


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


def watched(runs):
    """Sources that have read the runs, {name: run}, now."""
    found = []
    for name, run in runs.items():
        source = sources.Source(name, [])
        if run is not None:
            source.take(run, time.time())
        found.append(source)
    return found


def printed(content, width):
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(content)
    return console.export_text()


def shown(runs, width=120):
    return printed(board.board(watched(runs), width, time.time()), width)


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_console_log_is_watched_like_the_file_loggers(tmp_path):
    path = tmp_path / "job.out"
    for line in records(3):
        with path.open("a") as file:
            file.write(" - ".join([f"step:{line['step']}", *(f"{k}:{v!r}" for k, v in line["data"].items())]) + "\n")
    (source,), _ = sources.find(Inputs([tmp_path]))
    assert source.poll()
    assert not source.poll()
    assert (source.name, source.run.steps.tolist()) == ("job", [0, 1, 2, 3])
    result = CliRunner().invoke(cli.app, ["watch", str(path), "--once"])
    assert result.exit_code == 0
    assert "job" in result.output


def test_a_file_is_read_again_when_it_has_grown_or_was_truncated(tmp_path):
    path = write(tmp_path / "metrics.jsonl", records(3))
    (source,), _ = sources.find(Inputs([path]))
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
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0], 8) == "▁▁"
    assert sparkline([0, math.nan, 1], 8) == "▁ █"
    assert sparkline(range(100), 4) == "▁▃▆█"
    assert sparkline([5, -5], 4, low=0, high=1) == "█▁"
    assert sparkline([], 4) == sparkline([1], 0) == ""
    assert sparkline([math.nan], 4) == " "


def test_the_board_says_what_a_run_measured(tmp_path):
    run = read_metrics(write(tmp_path / "metrics.jsonl", records()))
    text = shown({"kl": run})
    law = 0.8 - 0.2
    for part in (
        f"{law:.2f} [{law:.2f}, {law:.2f}]",
        "standard error 0.020",
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


def test_the_board_says_target_and_knob_of_a_run_that_has_one(tmp_path):
    lines = records()
    for line in lines[1:]:
        held = {"target": 0.6, "target_error": 0.02, "target_held": 0.82, "knob": 12.5, "knob_clamped": 1.0}
        line["data"] |= {PREFIX + key: value for key, value in held.items()}
    text = shown({"held": read_metrics(write(tmp_path / "metrics.jsonl", lines))})
    assert "0.6, held 82 %, clamped" in text
    assert "12.5" in text
    assert "held 82" not in shown({"free": read_metrics(write(tmp_path / "free.jsonl", records()))})


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
    assert "standard error 0.020" in shown({"kl": run})


def test_names_are_shown_as_they_are(tmp_path):
    run = read_metrics(write(tmp_path / "metrics.jsonl", records()))
    name = "x$^$ kl[lr=1e-6] [bold]"
    assert name in shown({name: run})
    figure.plot({name: run}, tmp_path / "board.png")


@pytest.mark.parametrize("width", [80, 120, 200])
def test_no_line_is_wider_than_the_terminal(tmp_path, width):
    run = read_metrics(write(tmp_path / "metrics.jsonl", records()))
    text = shown({f"run {number}": run for number in range(4)} | {"x" * 60 + str(n): None for n in range(3)}, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert text.count("acted on") == -(-4 // max(1, (width - 16) // 36))


def test_runs_without_our_metrics_or_without_a_step_say_so(tmp_path):
    plain = read_metrics(write(tmp_path / "metrics.jsonl", records(metrics=False)))
    text = shown({"plain": plain, "new": None})
    assert "+verl_cov=metrics" in text
    assert re.search(r"new +- +waiting", text)
    assert "theorem" not in text
    assert "0.60 [0.60, 0.60]" in text


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


class Terminal:
    """`verl-cov watch` on a terminal of 80 x 24; `screen` is what stands on it."""

    def __init__(self, *arguments):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        code = "from verl_cov.cli import main; main()"
        command = [sys.executable, "-c", code, "watch", "--interval", "0.1", *map(str, arguments)]
        environment = {**os.environ, "TERM": "xterm"}
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)
        # Tests that run in the background inherit an ignored SIGINT, and would hand it on. On a terminal of its own.
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(theirs)
        self.written = ""

    @property
    def screen(self):
        """rich draws the whole screen at once, after the cursor has gone home."""
        screens = [part for part in self.written.split("\x1b[H") if "q quit" in part] or [""]
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screens[-1]).replace("\r", "")

    def wait_for(self, text):
        deadline = time.monotonic() + 60
        while not re.search(text, self.screen):
            assert time.monotonic() < deadline, self.screen
            assert self.process.poll() is None, self.written
            self._read()

    def _read(self):
        if select.select([self.ours], [], [], 0.2)[0]:
            with suppress(OSError):
                self.written += os.read(self.ours, 1 << 16).decode(errors="ignore")

    def type(self, keys):
        os.write(self.ours, keys)

    def end(self):
        """It prints the board once more: somebody has to read it."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            self._read()
        self._read()
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


def test_live_it_follows_runs_and_ends_with_ctrl_c(tmp_path):
    path = write(tmp_path / "first" / "metrics.jsonl", records(7))
    with Terminal(tmp_path) as terminal:
        terminal.wait_for(r"first +7 ")
        write(path, records(8))
        terminal.wait_for(r"first +8 ")
        write(tmp_path / "later" / "metrics.jsonl", records(9))
        terminal.wait_for(r"later +9 ")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0


def test_on_80_x_24_all_runs_are_seen_and_q_ends(tmp_path):
    for number in range(12):
        name = "a" * 50 + f"-seed{number:04d}"
        write(tmp_path / "runs" / name / "metrics.jsonl", records(10 + number, control=number == 11))
    with Terminal(tmp_path / "runs", "--steps", "100") as terminal:
        terminal.wait_for("q quit")
        lines = terminal.screen.splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        for number in range(12):
            assert sum(f"seed{number:04d}"[-4:] + " " in line and f" {10 + number}/100 " in line for line in lines) == 1
        assert "acted on" not in terminal.screen
        terminal.wait_for("a{50}-seed0000")  # the details of the first
        terminal.type(b"\x1b[B")
        terminal.wait_for("a{50}-seed0001")
        terminal.type(b"j")
        terminal.wait_for("a{50}-seed0002")
        terminal.type(b"q")
        assert terminal.end() == 0
        assert terminal.written.count("seed0011") >= 1  # what stays on the terminal


def test_more_runs_than_lines_scroll(tmp_path):
    run = read_metrics(write(tmp_path / "metrics.jsonl", records()))
    found = watched({f"run{number:02d}": run for number in range(40)})
    for selected in range(40):
        text = printed(board.screen(found, 80, 24, selected, time.time()), 80)
        assert len(text.splitlines()) <= 24
        assert f"run{selected:02d} " in text
        assert "18 more runs" in text


def test_the_state_of_a_run(tmp_path):
    assert pace.state(None, None, None, 5) == "waiting"
    assert pace.state(100, 100, 10, 1e6) == "done"
    assert pace.state(40, 100, 60, 0) == "1h00m left"
    assert pace.state(40, 100, 60, 120) == "58m left"
    assert pace.state(40, None, 60, 1) == "running"
    assert pace.state(40, 100, None, 1) == "running"
    assert pace.state(40, 100, 60, 3 * 3600) == "quiet 3h00m"
    assert pace.state(40, 100, 2 * 3600, 3 * 3600) == "5d left"
    assert [pace.duration(s) for s in (5, 60, 3599, 11 * 3600, 50 * 3600)] == ["5s", "1m", "1h00m", "11h", "2d"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.log", "x\nTotal training steps: 435\nTraining Progress:   3%|x| 12/435 [00:10]\n"),
        ("train.log", "\rTraining Progress:   3%|x   | 12/435 [00:10<01:00]\r"),
        ("launches.jsonl", json.dumps({"overrides": ["a=1", "trainer.total_training_steps=435"]})),
        (".hydra/overrides.yaml", "- trainer.total_training_steps=435\n"),
        ("files/config.yaml", "trainer:\n  value:\n    total_training_steps: 435\n"),
        ("trainer_state.json", json.dumps({"log_history": [], "max_steps": 435})),
    ],
)
def test_the_number_of_steps_is_found_where_trainers_leave_it(tmp_path, name, text):
    path = write(tmp_path / "metrics.jsonl", records(3))
    assert pace.total_steps([path]) is None
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert pace.total_steps([path]) == 435
    assert re.search(r"3/435 ", CliRunner().invoke(cli.app, ["watch", str(path), "--once"]).output)


def test_a_run_resumed_for_longer_is_not_done_at_the_number_of_steps_of_its_first_start(tmp_path):
    path = write(tmp_path / "metrics.jsonl", records(3))
    (tmp_path / "train.log").write_text("Total training steps: 2\n")
    shown = CliRunner().invoke(cli.app, ["watch", str(path), "--once"]).output
    assert "3/2" not in shown
    assert "done" not in shown


def test_the_sparklines_of_all_runs_have_one_scale(tmp_path):
    slow = Run(np.arange(1, 21), tuple({"actor/entropy": 1 - step / 40} for step in range(20)))
    fast = Run(np.arange(1, 41), tuple({"actor/entropy": 1 - step / 40} for step in range(40)))
    lines = [line.plain for line in overview.overview(watched({"slow": slow, "fast": fast}), 100, time.time())]
    bars = [re.findall("[▁▂▃▄▅▆▇█]+", line)[0] for line in lines[1:]]
    assert bars[1].startswith(bars[0][:-1])  # the same entropies at the same steps
    assert len(bars[0]) == pytest.approx(len(bars[1]) / 2, abs=1)
    assert sparkline_by_step([0, 30], [0.0, 1.0], 4, 39, 0, 1) == "▁▁▁█"


def test_a_ceiling_is_never_shown_without_its_interval(tmp_path):
    lines = records(20)
    scored = [line for line in lines if any(key.startswith("val-core") for key in line["data"])]
    for at, line in enumerate(scored):
        line["data"]["val-core/task/acc/mean@1"] += 0.05 * (-1) ** at
    run = Run(np.array([line["step"] for line in lines[:10]]), tuple(line["data"] for line in lines[:10]))  # 3 points
    text = shown({"few": run})
    assert re.search(r"0\.\d\d (\[-?\d+\.\d\d, \d+\.\d\d\]|\[wide\])", text)


def test_scores_in_other_units_have_panels_of_their_own(tmp_path, monkeypatch):
    run = read_metrics(write(tmp_path / "metrics.jsonl", records(metrics=False)))
    key = "val-core/task/acc/mean@1"
    percent = Run(run.steps, tuple({k: 100 * v if k == key else v for k, v in r.items()} for r in run.records))
    drawn = []
    monkeypatch.setattr(figure, "save", lambda figure, *args, **kwargs: drawn.append(figure))
    figure.plot({"one": run, "two": percent}, tmp_path / "board.png")
    tops = [axes.get_ylim()[1] for axes in drawn[0].axes if axes.get_title(loc="left") == "Validation score"]
    assert len(tops) == 2
    assert tops[0] < 1 < 50 < tops[1]


def test_the_terminal_needs_no_package_of_an_extra(tmp_path):
    path = write(tmp_path / "run" / "metrics.jsonl", records())
    code = """if True:
        import sys
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("scipy", "statsmodels", "pandas", "matplotlib"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Missing())
        from verl_cov.cli import main
        main()
    """
    command = [sys.executable, "-c", code, "watch", "--once", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"run +20 .* needs scipy", done.stdout)


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
