"""What a test can see of a figure: that it is written whatever the runs hold, its size, and the words in it."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from verl_cov.law import Run, commands, compare, plots, points
from verl_cov.law.display import shortened
from verl_cov.law.plots import covariance, fits, laws, style
from verl_cov.law.points import Curve
from verl_cov.law.watch import figure as watch

VAL = "val-core/verl_cov/countdown/acc/mean@4"


def run(first=0, last=20, every=5, a=0.25, b=1.1, low=0.1, validate=True):
    """As verl logs it: at step n the entropy before the update, and the validation of the policy after it."""
    entropy = [low + (1.2 - low) * np.exp(-step / 6) for step in range(last + 2)]
    records = []
    for step in range(first, last + 1):
        record = {plots.ENTROPY_KEY: entropy[step]} if step else {}
        if validate and step % every == 0:
            record[VAL] = b - a * np.exp(entropy[step + 1])
        records.append(record)
    return Run(np.arange(first, last + 1), tuple(records))


EMPTY = Run(np.array([], dtype=np.int64), ())
CASES = {
    "three runs": {"vanilla": run(), "clip_cov": run(low=0.4), "kl_cov": run(low=0.6)},
    "narrow entropies": {"vanilla": run(low=0.9)},
    "one run, not vanilla": {"kl_cov": run()},
    "one point": {"vanilla": run(1, 2, every=1)},
    "no training step": {"vanilla": run(0, 0)},
    "no validation": {"vanilla": run(validate=False), "clip_cov": run(last=2, validate=False)},
    "a run without records": {"vanilla": EMPTY, "clip_cov": run()},
    "more runs than colours": {f"run{number}": run() for number in range(9)},
    "scores below zero": {"vanilla": run(b=-1.0)},
    "nothing": {},
}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to read their words."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


def words(figure):
    legends = [axes.get_legend() for axes in figure.axes] + figure.legends
    texts = [text.get_text() for legend in legends if legend is not None for text in legend.get_texts()]
    return "\n".join(texts + [text.get_text() for axes in figure.axes for text in axes.texts])


@pytest.mark.parametrize("case", CASES)
def test_demo_figure_is_written_whatever_the_runs_hold(tmp_path, case):
    path = plots.plot_demo(CASES[case], tmp_path / "demo.png")
    header = path.read_bytes()[:24]
    assert header[:4] == b"\x89PNG"
    assert (int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")) == (1800, 675)


def test_the_law_in_the_legend(tmp_path, drawn):
    plots.plot_law(CASES["three runs"], tmp_path / "law.png")
    text = words(drawn[0])
    assert "fit to vanilla" in text
    assert "0.250" in text
    assert "1.100" in text
    assert "$R^2$ = 1.00" in text
    assert "ceiling at H = 0: 0.850" in text


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("one point", "no fit to vanilla: the law needs at least 3 points of distinct entropy, got 1"),
        ("one run, not vanilla", "no fit to vanilla: there is no such run"),
        ("no validation", "no step with both entropy and validation yet"),
    ],
)
def test_the_figure_says_why_there_is_no_fit(tmp_path, drawn, case, message):
    plots.plot_law(CASES[case], tmp_path / "law.png")
    assert message in words(drawn[0]).replace("\n", " ")


def test_a_target_is_drawn_with_its_band_in_the_demo_the_watch_and_the_report(tmp_path, drawn):
    held = run()
    for record in held.records[1:]:
        record["actor/cov/target"] = 0.6
    runs = {"target": held, "vanilla": run()}
    plots.plot_demo(runs, tmp_path / "demo.png")
    watch.plot(runs, tmp_path / "watch.png")
    report = fits.training(fitted(runs), style.looks(runs))
    panels = [drawn[0].axes[0], drawn[1].subfigs[0].axes[1], report.axes[1]]
    for axes in panels:
        (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert set(line.get_ydata()) == {0.6}
        assert line.get_color() == style.looks(runs)["target"]["color"]
        (band,) = axes.collections
        ends = band.get_paths()[0].vertices[:, 1]
        assert (ends.min(), ends.max()) == pytest.approx((0.54, 0.66))


def test_entropy_falls_from_left_to_right(tmp_path, drawn):
    for case in ("three runs", "narrow entropies", "one point"):
        plots.plot_law(CASES[case], tmp_path / "law.png")
    assert all(figure.axes[0].xaxis_inverted() for figure in drawn)
    assert [figure.axes[0].get_xscale() for figure in drawn] == ["log", "linear", "linear"]


def test_scores_below_zero_are_not_cut_off(tmp_path, drawn):
    plots.plot_score(CASES["scores below zero"], tmp_path / "score.png")
    assert drawn[0].axes[0].get_ylim()[0] < -1.5


def colours(figure, name):
    """The colours of what the legends of a figure call `name`."""
    legends = [axes.get_legend() for axes in figure.axes] + figure.legends
    found = [
        line.get_color()
        for legend in legends
        if legend is not None
        for line, text in zip(legend.legend_handles, legend.get_texts(), strict=True)
        if text.get_text().split(":")[0] == name
    ]
    return set(found)


def fitted(runs):
    return commands.fit_each([points(log, name) for name, log in runs.items()])


def test_a_run_has_one_colour_in_the_demo_the_plot_the_report_and_the_watch(tmp_path, drawn):
    """In whatever order, and with whatever others."""
    runs = CASES["three runs"]
    backwards = dict(reversed(runs.items())) | {"another": run()}
    plots.plot_demo(runs, tmp_path / "demo.png")
    watch.plot(backwards, tmp_path / "watch.png")
    figures = [*drawn, fits.laws(fitted(backwards)), fits.training(fitted({"kl_cov": run()}), style.looks(["kl_cov"]))]
    figures += figures[1].subfigs + figures[2].subfigs
    for name, colour in zip(runs, style.PALETTE, strict=False):
        assert set().union(*(colours(figure, name) for figure in figures)) == {colour}
    assert style.looks(["run7"])["run7"] == style.looks([*runs, "run7"])["run7"]


def test_no_two_runs_look_the_same():
    for count in (8, 12, 104):
        looks = style.looks(f"run{number}" for number in range(count))
        assert len({tuple(look.items()) for look in looks.values()}) == count
        assert len({look["color"] for look in looks.values()}) == min(count, len(style.PALETTE))


@pytest.mark.parametrize(("name", "count"), [("a" * 40 + "b" * 20, 1), ("short", 3), ("a" * 40 + "b" * 20, 12)])
def test_no_legend_lies_over_data_and_nothing_is_cut_off(name, count):
    runs = {f"{name}{number:02d}": run(low=0.1 + 0.05 * number, b=1 + 0.01 * number) for number in range(count)}
    pairs = fitted(runs)
    known = style.looks(runs)
    forecast = commands.forecast_each([pairs[0][0]], 0.5)[0]
    comparison = [laws.comparison(commands.compare_runs([points for points, _ in pairs]))] if count > 1 else []
    figures = [fits.laws(pairs), fits.training(pairs, known), laws.forecast(*forecast[:2]), *comparison]
    for figure in figures:
        style.picture(figure)
        renderer = figure.canvas.get_renderer()
        boxes = [axes.get_window_extent(renderer) for axes in figure.axes]
        legends = [*figure.legends, *(legend for part in figure.subfigs for legend in part.legends)]
        for box in (legend.get_window_extent(renderer) for legend in legends):
            assert not any(box.overlaps(axes) for axes in boxes)
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y0 >= 0
        assert all(box.width > 20 for box in boxes)
        assert all(box.height > 100 for box in boxes)


def test_long_names_are_short_and_still_differ():
    first = [f"{'a' * 30}{number}{'b' * 30}" for number in range(3)]
    last = [f"{'a' * 60}{number}" for number in range(3)]
    far = [f"{'x' * 20}{one}{'y' * 20}{two}{'z' * 20}" for one in "12" for two in "12"]
    for names in (first, last, far, ["short", "names"], ["same", "same"]):
        short = shortened(names, 20)
        assert max(map(len, short)) <= 20
        assert len(set(short)) == len(set(names))
    assert shortened(["short", "names"], 20) == ["short", "names"]


def test_scores_of_different_units_share_no_axis():
    runs = {"percent": run(), "fraction": run()}
    pairs = fitted(runs)
    hundred = dataclasses.replace(
        pairs[0][0],
        score=100 * pairs[0][0].score,
        scores=Curve(pairs[0][0].scores.steps, 100 * pairs[0][0].scores.values),
    )
    figure = fits.laws([*commands.fit_each([hundred]), pairs[1]])
    tops = sorted(axes.get_ylim()[1] for axes in figure.axes if axes.get_title(loc="left") == "Score against entropy")
    assert len(tops) == 2
    assert tops[0] < 1.2 < 80 < tops[1]


def test_ceilings_are_drawn_with_their_intervals():
    ((points_, _),) = commands.fit_each([points(run(every=2), "one")])
    noisy = dataclasses.replace(points_, score=points_.score + 0.02 * (-1) ** np.arange(points_.score.size))
    pair = commands.fit_each([noisy])[0]
    strip = fits.laws([pair]).axes[1]
    (band,) = [patch.get_paths()[0].get_extents() for patch in strip.collections]
    assert (band.y0, band.y1) == pytest.approx((pair[1].ceiling.low, pair[1].ceiling.high))


def test_a_comparison_shows_whole_intervals_also_where_the_runs_hardly_differ():
    entropy = np.exp(-np.arange(20) / 10)
    score = 0.8 - 0.2 * np.exp(entropy) + 0.05 * np.random.default_rng(0).normal(size=20)
    result = compare({f"run{at}": (entropy, (1 + 0.001 * at) * score) for at in range(3)})
    for axes, intervals in zip(laws.comparison(result).axes, (result.a, result.b, result.ceiling), strict=True):
        low, high = axes.get_xlim()
        assert all(low < interval.low and interval.high < high for interval in intervals)


def test_the_largest_covariances_are_told_apart_where_they_are_equal():
    """A mini-batch of few tokens has the same largest ones at 0.02, 0.2 and 2 %."""
    record = {f"actor/cov/top_{share:g}": 5.0 for share in (0.0002, 0.002, 0.02)}
    log = Run(np.arange(1, 9), tuple(dict(record) for _ in range(8)))
    lines = [line for line in covariance.covariance(log).axes[0].lines if str(line.get_label()).startswith("top")]
    assert len({line.get_color() for line in lines}) == len({line.get_linestyle() for line in lines}) == 3
    assert [line.get_linewidth() for line in lines] == sorted((line.get_linewidth() for line in lines), reverse=True)


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_pictures_are_the_same_bytes_each_time(ending):
    first, again = (style.picture(fits.laws(fitted({"one": run()})), f".{ending}") for _ in range(2))
    assert first == again
    assert first.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending])


def test_all_files_of_a_set_without_pyplot(tmp_path):
    """pyplot has global state and would replace the user's interactive backend."""
    code = "import sys; from verl_cov.law import plots; plots.plot_all({}, sys.argv[1]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "new"], capture_output=True, text=True, check=True)
    assert "matplotlib.pyplot" not in done.stdout.split()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"entropy.png", "score.png", "law.png", "demo.png"}
