"""What a test can see of a figure: that it is written whatever the runs hold, its size, and the words in it."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from verl_cov.law import Run, plots

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


def test_entropy_falls_from_left_to_right(tmp_path, drawn):
    for case in ("three runs", "narrow entropies", "one point"):
        plots.plot_law(CASES[case], tmp_path / "law.png")
    assert all(figure.axes[0].xaxis_inverted() for figure in drawn)
    assert [figure.axes[0].get_xscale() for figure in drawn] == ["log", "linear", "linear"]


def test_scores_below_zero_are_not_cut_off(tmp_path, drawn):
    plots.plot_score(CASES["scores below zero"], tmp_path / "score.png")
    assert drawn[0].axes[0].get_ylim()[0] < -1.5


def test_a_run_keeps_its_colour_without_the_others(tmp_path, drawn):
    plots.plot_demo(CASES["three runs"], tmp_path / "a.png")
    plots.plot_demo({"kl_cov": run()}, tmp_path / "b.png")
    three, one = ([line for line in figure.axes[0].lines if line.get_label() == "kl_cov"] for figure in drawn)
    assert three[0].get_color() == one[0].get_color()


def test_all_files_of_a_set_without_pyplot(tmp_path):
    """pyplot has global state and would replace the user's interactive backend."""
    code = "import sys; from verl_cov.law import plots; plots.plot_all({}, sys.argv[1]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "new"], capture_output=True, text=True, check=True)
    assert "matplotlib.pyplot" not in done.stdout.split()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"entropy.png", "score.png", "law.png", "demo.png"}
