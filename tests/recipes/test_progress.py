"""Progress and results as they are printed."""

from __future__ import annotations

import io
import json

import numpy as np
from rich.console import Console

from verl_cov.law.readers import Run
from verl_cov.recipes import launch, results
from verl_cov.recipes.catalogue import parse
from verl_cov.recipes.progress import Progress, duration

VALIDATION = "val-core/x/acc/mean@4"


class Clock:
    """now: seconds."""

    now = 100.0

    def console(self, **options) -> Console:
        return Console(file=io.StringIO(), get_time=lambda: self.now, **options)


def test_without_a_terminal_a_line_a_step_and_a_sign_of_life_before():
    clock = Clock()
    console = clock.console(width=40)
    with Progress(console) as shown:
        shown.begin("vanilla", 10)
        for seconds in (0, 1, 20):  # the second is no news
            clock.now = 100.0 + seconds
            shown.update("importing verl", None, [])
        shown.update("validating", None, [(0, {VALIDATION: 0.25})])
        clock.now = 130.0
        shown.update("training", None, [(1, {"actor/entropy": 1.0, "critic/score/mean": 0.5})])
        shown.update("training", None, [])
        clock.now = 140.0
        shown.update("training", 20, [(2, {"actor/entropy": None, "critic/score/mean": 0.6})])
        clock.now = 150.0
        shown.update("training", 20, [(3, {"critic/score/mean": 0.7}), (4, {"critic/score/mean": 0.8})])
        clock.now = 160.0
        shown.update("training", 20, [(6, {"critic/score/mean": 0.8, VALIDATION: 0.5})])
        shown.end("failed")
    assert console.file.getvalue().splitlines() == [
        "vanilla: importing verl, 0s",
        "vanilla: importing verl, 20s",
        "vanilla: validating, 20s  val 0.250",
        "vanilla 1/10  entropy 1.000  score 0.500  val 0.250",
        "vanilla 2/20  entropy 1.000  score 0.600  val 0.250",
        "vanilla 4/20  entropy 1.000  score 0.800  val 0.250  5.0 s/step  ETA 1m20s",
        "vanilla 6/20  entropy 1.000  score 0.800  val 0.500  5.0 s/step  ETA 1m10s",
        "vanilla: failed, 1m00s",
    ]


def test_on_a_terminal_all_trainings_in_80_columns():
    clock = Clock()
    console = clock.console(width=80, force_terminal=True)
    with Progress(console) as shown:
        for name, outcome in (("vanilla", "finished"), ("clip_cov", "stopped")):
            shown.begin(name, 10)
            for step in (8, 9, 10):
                clock.now += 444.0
                record = {"actor/entropy": 1.0, "critic/score/mean": 0.5, VALIDATION: 0.1}
                shown.update("training", None, [(step, record)])
                shown._bars.refresh()
            shown.end(outcome)
    text = console.file.getvalue()
    assert "clip_cov 9/10  entropy 1.000  score 0.500  val 0.100  444.0 s/step  ETA 7m24s" in text
    assert "vanilla 10/10  entropy 1.000  score 0.500  val 0.100  finished, 22m12s" in text
    assert "clip_cov 10/10  entropy 1.000  score 0.500  val 0.100  stopped, 22m12s" in text
    assert "…" not in text


def three_runs(shown, clock):
    """Each starts in 60 s and then takes 10 s a step."""
    for name in ("vanilla", "clip_cov"):
        shown.begin(name, 10)
        shown.update("importing verl", None, [])
        clock.now += 60.0
        for step in (1, 2, 3):
            shown.update("training", None, [(step, {"actor/entropy": 1.0})])
            shown._bars.refresh()
            clock.now += 10.0
        shown.update("training", None, [(10, {"actor/entropy": 1.0})])
        shown.end("finished")


def test_of_several_runs_the_number_and_the_time_that_all_need_without_a_terminal():
    clock = Clock()
    console = clock.console(width=40)
    with Progress(console, [10, 10, 20]) as shown:
        three_runs(shown, clock)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "run 1 of 3: vanilla"
    assert "vanilla 1/10  entropy 1.000  run 1 of 3" in lines
    # 8 steps, then two runs of 60 s and 10 and 20 steps
    assert "vanilla 2/10  entropy 1.000  10.0 s/step  ETA 1m20s  run 1 of 3, all in 8m20s" in lines
    (second,) = (line for line in lines if line.endswith(": clip_cov"))
    assert second.startswith("run 2 of 3, all in ")
    with Progress(clock.console(), [10, None]) as shown:  # only verl knows how long the second is
        three_runs(shown, clock)
    assert "run 1 of 2, all in" not in shown._console.file.getvalue()


def test_of_several_runs_the_number_and_the_time_that_all_need_on_a_terminal():
    clock = Clock()
    console = clock.console(width=80, force_terminal=True)
    with Progress(console, [10, 10, 20]) as shown:
        three_runs(shown, clock)
    text = console.file.getvalue()
    assert "run 1 of 3, all in 8m20s" in text
    assert "run 2 of 3, all in " in text
    assert "vanilla 2/10  entropy 1.000  10.0 s/step  ETA 1m20s" in text


def test_durations():
    assert [duration(seconds) for seconds in (None, 5, 65, 7500)] == ["-", "5s", "1m05s", "2h05m"]


def test_the_table_of_results_fits_a_terminal():
    record = {"actor/entropy": 1.123, VALIDATION: 0.123, results.SELECTED_KEY: 1234.5, results.STEP_TIME_KEY: 123.4}
    runs = {name: Run(np.array([1234]), (record,)) for name in ("vanilla", "clip_cov", "kl_cov")}
    runs["none"] = Run(np.array([], dtype=np.int64), ())
    console = Console(width=80, file=io.StringIO())
    console.print(results.table(runs))
    text = console.file.getvalue()
    assert "…" not in text
    assert "0.123 → 0.123 → 0.123" in text
    assert "1234.5" in text


def test_the_report_says_what_it_cannot_make(tmp_path):
    launches = [
        launch.launch(parse([f"demo/{name}"]), tmp_path, tmp_path, tmp_path) for name in ("vanilla", "clip_cov")
    ]
    for made, points in zip(launches, (2, 0), strict=True):
        made.folder.mkdir(parents=True)
        lines = [{"step": step, "data": {"actor/entropy": 1.0 / step}} for step in range(1, points + 1)]
        made.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    console = Console(file=io.StringIO(), width=200)
    results.write_report(launches, console)
    assert "No report: " in console.file.getvalue()
    assert {path.name for path in (tmp_path / "demo" / "plots").iterdir()} >= {"demo.png", "law.png"}
