"""pass@k out of logs: which keys count, which are never mixed, and that every picture and table has them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from tests.law.test_plots import EMPTY, drawn, words  # noqa: F401  the fixture
from verl_cov import cli
from verl_cov.law import Run, plots
from verl_cov.law.passes import BEST, PASS, passes, together
from verl_cov.law.plots import style
from verl_cov.law.plots.passes import draw_passes

OURS = {"val-cov/pass@1": 0.4, "val-cov/pass@4": 0.7, "val-cov/pass@16": 0.9, "val-cov/greedy": 0.5}
OF_SETS = {f"{key}/{name}": 0.1 for key in OURS for name in ("aime", "16")}
VERLS = {"val-core/math/acc/mean@8": 0.4, "val-core/math/acc/best@8/mean": 0.8, "val-aux/math/acc/best@4/mean": 0.6}
VERLS |= {"val-aux/math/reward/mean@8": 0.1, "val-aux/math/reward/best@8/mean": 0.2, "val-aux/math/acc/std@8": 0.3}


def log(last: dict[str, float], steps=(0, 4, 8)) -> Run:
    """A run whose values at step n are `last` times 1 + n / 100."""
    data = tuple({key: value * (1 + step / 100) for key, value in last.items()} for step in steps)
    return Run(np.array(steps), data)


def values(run: Run) -> dict[int, float]:
    found = passes(run)
    return {k: curve.values[0] for k, curve in found.curves.items()}


@pytest.mark.parametrize(
    ("keys", "kind", "expected"),
    [
        (OURS | OF_SETS | VERLS, PASS, {1: 0.4, 4: 0.7, 16: 0.9}),
        (VERLS, BEST, {1: 0.4, 4: 0.6, 8: 0.8}),  # of acc, not of reward
        ({key: value for key, value in VERLS.items() if "reward" in key}, BEST, {1: 0.1, 8: 0.2}),
        ({"eval/all/pass_at_8": 0.6, "eval/aime/pass_at_8": 0.2}, PASS, {8: 0.6}),  # SkyRL
        ({"eval/aime/pass@1": 0.1, "eval/aime/pass@8": 0.2}, PASS, {1: 0.1, 8: 0.2}),  # prime-rl
        ({"val-core/a/b/acc/mean@2": 0.1, "val-core/a/b/acc/best@2/mean": 0.2}, BEST, {1: 0.1, 2: 0.2}),
    ],
)
def test_each_trainers_keys_are_read_as_what_they_are(keys, kind, expected):
    run = log(keys)
    assert passes(run).kind == kind
    assert values(run) == expected
    assert (passes(run).greedy.values.size > 0) == ("val-cov/greedy" in keys)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"val-cov/pass@1": 0.4},  # no more than the score says
        VERLS | {"val-core/code/acc/best@8/mean": 0.5},  # which of the sets?
        {"eval/aime/pass@8": 0.1, "eval/amc/pass@8": 0.2},
        {"val-core/math/acc/mean@1": 0.5, "val-cov/greedy": 0.5},
        {
            "val-core/math/acc/best@8/std": 0.1,
            "val-aux/math/acc/worst@8/mean": 0.1,
            "val-core/math/acc/maj@8/mean": 0.1,
        },
    ],
)
def test_what_is_ambiguous_or_something_else_is_not_read(keys):
    assert passes(log(keys)) is None
    assert passes(EMPTY) is None


def test_pass_at_k_and_best_at_k_never_share_a_panel():
    runs = {"a": log(VERLS), "b": log(OURS), "c": log({}), "d": EMPTY}
    assert set(together(runs)) == {"b"}
    assert set(together({"a": runs["a"], "c": runs["c"]})) == {"a"}


def test_the_panel_has_one_sample_solid_and_the_most_that_all_runs_have_dashed():
    runs = {"vanilla": log(OURS), "kl_cov": log({key: value for key, value in OURS.items() if "16" not in key})}
    axes = Figure().subplots()
    draw_passes(axes, runs)
    lines = [(line.get_linestyle(), line.get_color(), float(line.get_ydata()[0])) for line in axes.lines]
    colours = [look["color"] for look in (style.looks(runs)[name] for name in runs)]
    assert lines == [
        (dash, colour, value) for dash, value in (("-", 0.4), ("--", 0.7), (":", 0.5)) for colour in colours
    ]
    assert axes.get_ylabel() == "pass@1 solid, pass@4 dashed,\ngreedy dotted"
    assert axes.get_title(loc="left") == "pass@k"
    axes = Figure().subplots()
    draw_passes(axes, {"vanilla": log(VERLS)})
    assert axes.get_ylabel() == "best@1 solid, best@8 dashed"
    assert "bootstrap" in axes.get_title(loc="left")
    axes = Figure().subplots()
    draw_passes(axes, {"vanilla": log({})})
    assert "no pass@k" in axes.texts[0].get_text()


def write(folder, name, last):
    lines = []
    for step in range(25):
        entropy = float(np.exp(-step / 8))
        data = {"actor/entropy": float(np.exp(-(step - 1) / 8))} if step else {}
        if step % 4 == 0:
            data |= {"val-core/math/acc/mean@16": 0.8 - 0.2 * np.exp(entropy)} | last
        lines.append(json.dumps({"step": step, "data": data}))
    (folder / name).mkdir(parents=True)
    (folder / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_watch_and_report_have_them_and_runs_without_them_look_as_before(tmp_path, drawn):  # noqa: F811
    write(tmp_path / "with", "vanilla", OURS)
    write(tmp_path / "without", "vanilla", {})
    panels = {}
    for name in ("with", "without"):
        picture, page = tmp_path / f"{name}.png", tmp_path / f"{name}.html"
        done = CliRunner().invoke(cli.app, ["watch", "--once", str(tmp_path / name), "-o", str(picture)])
        assert done.exit_code == 0, done.output
        assert ("pass@16 0.900, @1 0.400" in done.output) == (name == "with")
        assert ("greedy" in done.output) == (name == "with")
        assert "no actor/cov/ metrics in these runs" in done.output
        assert CliRunner().invoke(cli.app, ["report", str(tmp_path / name), "-o", str(page)]).exit_code == 0
        said = "From the first validation to the last: pass@1 0.400 → 0.400, pass@4 0.700 → 0.700, pass@16"
        assert (said in page.read_text()) == (name == "with")
        panels[name] = [[axes.get_title(loc="left") for axes in figure.axes] for figure in drawn]
        panels[name] += [
            axes.get_title(loc="left") for figure in drawn for part in figure.subfigs for axes in part.axes
        ]
        drawn.clear()
    assert [str(panels[name]).count("'pass@k'") for name in ("with", "without")] == [3, 0]


def test_the_demos_figures_show_pass_at_k_in_place_of_the_score(tmp_path, drawn):  # noqa: F811
    runs = {"vanilla": log(OURS), "kl_cov": log(OURS)}
    paths = plots.plot_all(runs, tmp_path)
    assert [path.name for path in paths] == ["entropy.png", "score.png", "pass.png", "law.png", "demo.png"]
    assert [axes.get_title(loc="left") for axes in drawn[-1].axes][1] == "pass@k"
    header = paths[-1].read_bytes()[:24]
    assert (int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")) == (1800, 675)
    assert [path.name for path in plots.plot_all({"vanilla": log({})}, tmp_path)].count("pass.png") == 0


def test_pass_at_k_is_a_score_that_can_be_asked_for_and_is_never_taken_unasked(tmp_path):
    write(tmp_path, "run", {"val-cov/pass@16": 0.9})
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"val-cov/pass@16": 0.9', '"val-cov/pass@16": 0.STEP'))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.replace("0.STEP", f"0.{90 - at}") for at, line in enumerate(lines)) + "\n")
    taken = json.loads(CliRunner().invoke(cli.app, ["fit", str(path), "--json"]).stdout)["runs"][0]
    assert taken["score_key"] == "val-core/math/acc/mean@16"
    done = CliRunner().invoke(cli.app, ["fit", str(path), "--json", "--score-key", "val-cov/pass@16"])
    (asked,) = json.loads(done.stdout)["runs"]
    assert asked["score_key"] == "val-cov/pass@16"
    assert not any("guess" in note for note in asked["notes"])
    assert any("at step n + 1" in note for note in asked["notes"])
