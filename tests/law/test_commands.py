"""The commands of the law: what they print, their JSON, their files, and one line for what is wrong."""

from __future__ import annotations

import io
import json
import math
import re

import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from verl_cov import cli
from verl_cov.law.examples import qwen25_math

A, B = 0.2, 0.8


def write(path, a=A, b=B, steps=60, noise=0.004, seed=0, percent=1, control=False):
    """A log of verl's `file` logger whose score follows the law, validated every second step."""
    random = np.random.default_rng(seed)
    entropy = np.exp(-np.arange(steps + 2) / 25)
    lines = []
    for step in range(steps + 2):
        data = {} if step == 0 else {"actor/entropy": entropy[step - 1]}
        if step % 2 == 0 and step <= steps:
            score = b - a * math.exp(entropy[step]) + noise * random.normal()
            data["val-core/task/acc/mean@1"] = percent * score
        if control and step:
            data |= {"actor/cov/selected_tokens": 3.0, "actor/cov/threshold": 2.0}
        lines.append(json.dumps({"step": step, "data": data}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def parsed(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    runs = answer["runs"] if arguments[0] in ("fit", "forecast") else []
    return runs[0] if len(runs) == 1 else answer


def test_fit_finds_the_law_with_its_interval(tmp_path):
    log = write(tmp_path / "run" / "metrics.jsonl")
    answer = parsed("fit", log)
    assert answer["a"] == pytest.approx(A, abs=0.01)
    assert answer["b"] == pytest.approx(B, abs=0.02)
    assert answer["ceiling"] == pytest.approx(answer["b"] - answer["a"])
    for key, truth in (("a", A), ("b", B), ("ceiling", B - A)):
        low, high = answer[f"{key}_interval"]
        assert low < truth < high
    # Step 0 with step 1, ..., step 60 with step 61.
    assert (answer["n"], answer["unit"], answer["warnings"]) == (31, "fraction", [])
    assert (answer["entropy_key"], answer["score_key"]) == ("actor/entropy", "val-core/task/acc/mean@1")
    text = run("fit", log).output
    assert f"{answer['a']:.3f} [{answer['a_interval'][0]:.3f}, {answer['a_interval'][1]:.3f}]" in text
    assert "the remaining entropy buys" in text
    other = parsed("fit", write(tmp_path / "kl.jsonl", percent=100, control=True))
    assert other["unit"] == "percent"
    assert "not expected to follow" in " ".join(other["warnings"])


def test_a_score_above_the_laws_ceiling_is_not_promised_more(tmp_path):
    lines = write(tmp_path / "run.jsonl").read_text().splitlines()
    at = max(at for at, line in enumerate(lines) if "val-core" in line)
    record = json.loads(lines[at])
    record["data"]["val-core/task/acc/mean@1"] = 0.7  # the ceiling is 0.6
    lines[at] = json.dumps(record)
    (tmp_path / "run.jsonl").write_text("\n".join(lines))
    text = " ".join(run("fit", tmp_path / "run.jsonl").output.split())
    assert "the score is 0.7 at step 60, above the law's ceiling already, 0.6" in text
    assert "more (" not in text


def test_several_runs_are_fitted_each_or_together(tmp_path):
    for seed in range(3):
        write(tmp_path / "seeds" / f"seed{seed}" / "metrics.jsonl", seed=seed)
    each = parsed("fit", tmp_path / "seeds")["runs"]
    assert [one["name"] for one in each] == ["seed0", "seed1", "seed2"]
    together = parsed("fit", tmp_path / "seeds", "--pool")
    assert (together["runs"], together["n"]) == (3, 93)
    assert together["a"] == pytest.approx(np.mean([one["least_squares"]["a"] for one in each]), rel=1e-6)


def test_forecast_predicts_the_rest_and_says_how_early_it_could(tmp_path):
    answer = parsed("forecast", write(tmp_path / "run.jsonl"), "--fraction", "0.2")
    assert answer["n"] == math.ceil(0.2 * 31)
    assert len(answer["predictions"]) == 31 - answer["n"]
    errors = [row["predicted"] - row["score"] for row in answer["predictions"]]
    assert answer["rmse_rest"] == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert answer["final_error"] == pytest.approx(errors[-1])
    inside = [row["low"] <= row["score"] <= row["high"] for row in answer["predictions"]]
    assert answer["coverage"] == pytest.approx(np.mean(inside))
    assert answer["coverage"] >= 0.8
    assert [row["n"] for row in answer["how_early"]] == sorted({row["n"] for row in answer["how_early"]})
    assert "RMSE of the rest" in run("forecast", tmp_path / "run.jsonl").output


def test_forecast_ranks_descriptions_and_goes_to_a_later_step(tmp_path):
    log = write(tmp_path / "run.jsonl")
    answer = parsed("forecast", log, "--to-step", "80")
    assert answer["alternatives"][0]["error"] == min(one["error"] for one in answer["alternatives"])
    assert {one["needs"] for one in answer["alternatives"]} == {"entropy", "step"}
    there = answer["to_step"]
    assert there["step"] == 80
    for key in ("score", "entropy", "gain"):
        low, high = there[f"{key}_interval"]
        assert low <= there[key] <= high
    text = run("forecast", log, "--to-step", "80").output
    assert "at step 80 a score of" in text
    assert "predicted this run" in text
    assert "to_step" not in parsed("forecast", log)
    assert "--to-step 3: run: step 3 is not after the last pair" in run("forecast", log, "--to-step", "3").output


def test_fit_tells_the_headline_shares_and_least_squares(tmp_path):
    answer = parsed("fit", write(tmp_path / "run.jsonl"))
    assert [row["fraction"] for row in answer["headline"]] == [1 / 12, 1 / 3]
    assert 0 < answer["headline"][0]["gain_realised"] < answer["headline"][1]["gain_realised"] < 1.1
    assert set(answer["least_squares"]) == {"a", "b", "ceiling", "r2", "rmse"}
    assert "entropy consumed" in run("fit", tmp_path / "run.jsonl").output


def test_compare_tells_one_law_from_two(tmp_path):
    same = [write(tmp_path / f"same{seed}.jsonl", seed=seed) for seed in range(2)]
    other = write(tmp_path / "other.jsonl", a=0.1, b=0.9, seed=7)
    assert parsed("compare", *same)["wald_p"] > 0.01
    answer = parsed("compare", *same, other)
    assert answer["wald_p"] < 1e-6
    assert answer["pair_p_holm"][0][2] < 1e-4 < answer["pair_p_holm"][0][1]
    assert "same0 and other differ" in run("compare", *same, other).output


def test_scale_shows_that_the_papers_own_line_bends():
    answer, real = parsed("scale", "--example"), qwen25_math()[-1]
    assert answer["predicted_ceiling"] - (real.b - real.a) == pytest.approx(0.05, abs=0.01)
    assert "Qwen2.5-32B really has a 0.236" in run("scale", "--example").output


def test_scale_reads_runs_and_tables(tmp_path):
    sizes = (0.5, 1.5, 7, 32)
    runs = [f"{size}={write(tmp_path / f'{size}.jsonl', a=0.1 + 0.02 * math.log(size), noise=0)}" for size in sizes]
    answer = parsed("scale", *reversed(runs), "--predict", "70")
    assert answer["parameters"] == list(sizes)
    assert answer["predicted_a"] == pytest.approx(0.1 + 0.02 * math.log(70), abs=1e-6)
    table = tmp_path / "sizes.csv"
    rows = [f"{size},{0.1 + 0.02 * math.log(size)},{B}" for size in sizes]
    table.write_text("# my models\nparameters,a,b\n" + "\n".join(rows))
    assert parsed("scale", table)["a"]["slope"] == pytest.approx(answer["a"]["slope"], abs=1e-6)


def test_files_are_written_whole_or_not_at_all(tmp_path):
    log = write(tmp_path / "run.jsonl")
    for command, name in (("fit", "fit.png"), ("forecast", "forecast.png"), ("plot", "law.png")):
        assert run(command, log, "-o", tmp_path / name).exit_code == 0
        assert imread(io.BytesIO((tmp_path / name).read_bytes()))[..., :3].std() > 0.02
    assert run("fit", log, "-o", tmp_path / "fit.json").exit_code == 0
    assert json.loads((tmp_path / "fit.json").read_text()) == json.loads(run("fit", log, "--json").stdout)
    assert run("scale", "--example", "-o", tmp_path / "sizes.png").exit_code == 0
    assert run("compare", log, write(tmp_path / "two.jsonl", seed=1), "-o", tmp_path / "compare.png").exit_code == 0
    before = sorted(path.name for path in tmp_path.iterdir())
    for output in ("fit.txt", "none/fit.json", "."):
        result = run("fit", log, "-o", tmp_path / output)
        assert result.exit_code == 2
        assert "tmp" not in result.output.replace(str(tmp_path), "")
    assert run("report", log, "-o", log).exit_code == run("report", log, "-o", tmp_path / "x.csv").exit_code == 2
    assert run("forecast", log, tmp_path / "two.jsonl", "-o", tmp_path / "x.png").exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_report_is_one_page_that_needs_no_other_file(tmp_path):
    write(tmp_path / "runs" / "<b>bold" / "metrics.jsonl")
    write(tmp_path / "runs" / "other" / "metrics.jsonl", a=0.1, seed=3, control=True)
    assert run("report", tmp_path / "runs", "-o", tmp_path / "report.html").exit_code == 0
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;bold" in page
    assert "<b>bold" not in page
    assert page.count("data:image/png;base64,") == 6  # all runs, comparison; curves and forecast of each
    assert not re.search(r'(?:src|href)="(?!data:|#|https://arxiv.org)', page)
    for part in ("Do the runs share one law?", "How early was it predictable?", "not expected to follow", "at H = 0"):
        assert part in page
    for part in ("entropy consumed", "predicted this run", "a sigmoid in compute", "the law with extrapolated entropy"):
        assert page.count(part) >= 2  # each run


@pytest.mark.parametrize("ending", ["pdf", "svg", "PNG"])
def test_pictures_are_written_in_the_format_of_their_name(tmp_path, ending):
    log, two = write(tmp_path / "run.jsonl"), write(tmp_path / "two.jsonl", seed=1)
    for at, arguments in enumerate(
        (["fit", log], ["plot", log], ["forecast", log], ["compare", log, two], ["scale", "--example"], ["watch", log])
    ):
        path = tmp_path / f"{at}.{ending}"
        assert run(*arguments, "-o", path).exit_code == 0
        assert path.read_bytes().startswith({"pdf": b"%PDF", "svg": b"<?xml", "PNG": b"\x89PNG"}[ending])


def test_a_label_names_a_run_wherever_it_was_given(tmp_path, monkeypatch):
    for seed in range(3):
        write(tmp_path / "runs" / f"2026-11-2{seed}_grpo" / "metrics.jsonl", seed=seed)
    monkeypatch.chdir(tmp_path)
    folder, one = "runs", tmp_path / "runs" / "2026-11-21_grpo"

    def names(*arguments):
        return [run["name"] for run in parsed("compare", *arguments)["runs"]]

    assert names("--label", "a=runs/2026-11-20_grpo", "--label", f"b={one}") == ["a", "b"]
    assert names(folder, "--label", f"b={one}") == ["2026-11-20_grpo", "b", "2026-11-22_grpo"]
    assert names("--label", "all=runs") == ["all/2026-11-20_grpo", "all/2026-11-21_grpo", "all/2026-11-22_grpo"]
    assert parsed("fit", "--label", f"b={one}/metrics.jsonl")["name"] == "b"
    assert run("report", folder, "--label", f"our baseline={one}").exit_code == 0
    page = (tmp_path / "report.html").read_text()
    assert page.index(">our baseline</a>") < page.index(">2026-11-20_grpo</a>")  # the baseline first
    assert "our baseline" in run("watch", folder, "--label", f"our baseline={one}", "--once").output
    assert (
        "two runs are called b" in run("fit", folder, "--label", f"b={one}", "--label", "b=runs/2026-11-20_grpo").output
    )
    for label in ("b", "=runs", "b="):
        assert "NAME=RUN" in run("fit", "--label", label).output
    assert "give a RUN" in run("fit").output


def test_the_example_needs_no_log(tmp_path):
    answer = parsed("fit", "--example")
    paper = next(law for law in qwen25_math() if law.model == "Qwen2.5-7B")
    for key in ("a", "b"):
        low, high = answer[f"{key}_interval"]
        assert low < getattr(paper, key) < high
    assert "synthetic" in answer["notes"][0]
    assert "synthetic" in run("fit", "--example").output
    for command, output in (("forecast", "x.pdf"), ("plot", "x.svg"), ("report", "x.html")):
        assert run(command, "--example", "-o", tmp_path / output).exit_code == 0


def test_a_fraction_may_be_in_percent(tmp_path):
    log = write(tmp_path / "run.jsonl")
    assert parsed("forecast", log, "--fraction", "20%") == parsed("forecast", log, "--fraction", "0.2")
    assert parsed("forecast", log, "--fraction", " 20 % ")["fraction"] == 0.2
    for wrong in ("15", "0", "0%", "100%", "nan", "x", "%"):
        result = run("forecast", log, "--fraction", wrong)
        assert result.exit_code == 2
        assert "0.15 or 15%" in result.output
    assert "did you mean 15%?" in run("report", log, "--fraction", "15").output


def test_sizes_may_have_units(tmp_path):
    runs = [write(tmp_path / f"{at}.jsonl", a=0.1 + 0.02 * at, seed=at) for at in range(3)]
    plain, units = (
        parsed("scale", *(f"{size}={log}" for size, log in zip(sizes, runs, strict=True)), "--predict", target)
        for sizes, target in ((("0.5", "1.5", "7"), "32"), (("500M", "1.5b", "7B"), "0.032T"))
    )
    assert units == plain
    table = tmp_path / "sizes.csv"
    table.write_text("parameters,a,b\n0.5B,0.1,0.5\n1.5B,0.15,0.6\n7B,0.2,0.7\n")
    assert parsed("scale", table)["parameters"] == [0.5, 1.5, 7]
    for wrong in ("7Q", "B", "0", "1..5", ""):
        assert "SIZE=RUN" in run("scale", f"{wrong}={runs[0]}").output


def test_the_last_score_is_the_headline_whether_or_not_it_has_an_entropy(tmp_path):
    log = write(tmp_path / "run.jsonl")
    lines = log.read_text().splitlines()[:-1]  # step 60, without the entropy of step 61
    lines[-1] = json.dumps({"step": 60, "data": {"actor/entropy": 0.1, "val-core/task/acc/mean@1": 0.123}})
    log.write_text("\n".join(lines))
    assert "the score is 0.123 at step 60" in run("fit", log).output
    assert run("report", log, "-o", tmp_path / "report.html").exit_code == 0
    assert "<td>0.123 at 60</td>" in (tmp_path / "report.html").read_text()
    assert parsed("fit", log)["last_score"] == 0.123


def test_a_note_of_several_runs_stands_once_and_units_have_tables_of_their_own(tmp_path):
    logs = [write(tmp_path / f"{name}.jsonl", seed=at) for at, name in enumerate("ab")]
    logs.append(write(tmp_path / "c.jsonl", percent=100, steps=40))
    text = run("fit", *logs).output
    assert text.count("31 points: ") == text.count("21 points: ") == 1
    assert "a, b: 31 points" in text
    assert "scores from 0 to 1" in text
    assert "scores in %" in text
    assert run("report", *logs, "-o", tmp_path / "report.html").exit_code == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("31 points: ") == page.count("21 points: ") == 1
    for table in re.findall("<table>.*?</table>", page):
        numbers = [float(number) for number in re.findall(r"<td>([\d.]+) at \d", table)]
        assert all(number < 2 for number in numbers) or all(number > 2 for number in numbers)


def test_runs_that_cannot_be_put_side_by_side_are_refused(tmp_path):
    plain, percent = write(tmp_path / "plain.jsonl"), write(tmp_path / "percent.jsonl", percent=100, seed=1)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(plain.read_bytes())
    other = tmp_path / "other.jsonl"
    other.write_text(plain.read_text().replace("val-core/task", "val-core/elsewhere"))
    for arguments in (["compare"], ["fit", "--pool"]):
        for log, part in ((percent, "different units"), (other, "--score-key")):
            result = run(*arguments, plain, log)
            assert result.exit_code == 2
            assert part in result.output
    result = run("compare", plain, copy)
    assert result.exit_code == 2
    assert "copy.jsonl: it is the same run as plain" in result.output
    assert parsed("fit", "--pool", plain, copy)["runs"] == 1  # one run, said to be one
    assert "--score-key" in run("scale", f"1={plain}", f"3={other}", f"7={plain}").output
    assert run("report", plain, percent, "-o", tmp_path / "report.html").exit_code == 0
    assert "They were not compared" in (tmp_path / "report.html").read_text()
    two = write(tmp_path / "two.jsonl", seed=2)
    assert run("report", plain, percent, two, "-o", tmp_path / "report.html").exit_code == 0
    page = (tmp_path / "report.html").read_text()
    assert "One law for all 2 runs?" in page
    assert "1 of the 3 runs" in page


def test_side_by_side_runs_take_an_entropy_that_all_have(tmp_path):
    plain, ours = write(tmp_path / "plain.jsonl"), tmp_path / "ours.jsonl"
    lines = [json.loads(line) for line in write(tmp_path / "base.jsonl", seed=1).read_text().splitlines()]
    for line in lines:
        if "actor/entropy" in line["data"]:
            line["data"]["actor/cov/entropy"] = 0.5 * line["data"]["actor/entropy"]
    ours.write_text("\n".join(map(json.dumps, lines)))
    assert parsed("fit", ours)["entropy_key"] == "actor/cov/entropy"
    answer = parsed("compare", plain, ours)
    assert answer["entropy_key"] == "actor/entropy"
    assert answer["wald_p"] > 0.01
    assert "the entropy actor/entropy" in run("compare", plain, ours).output


def test_two_runs_one_after_the_other_in_one_log_are_no_run(tmp_path):
    long, short = write(tmp_path / "long.jsonl"), write(tmp_path / "short.jsonl", steps=20, seed=1)
    both = tmp_path / "both.jsonl"
    both.write_text(long.read_text() + short.read_text())
    result = run("fit", both)
    assert result.exit_code == 2
    assert "begins again from its first step" in result.output
    both.write_text(short.read_text() + long.read_text())  # begun anew and gone further: the second counts
    assert parsed("fit", both)["a"] == pytest.approx(parsed("fit", long)["a"])


def test_errors_of_sizes_stand_with_their_run(tmp_path):
    table = tmp_path / "sizes.csv"
    table.write_text("parameters,a,b,model\n1,0.2,0.5,one\n1,0.1,0.6,two\n3,0.2,0.7,three\n7,0.25,0.8,four\n")
    lines = {line.split()[1]: line for line in run("scale", table).output.splitlines() if line[:1].isdigit()}
    line = np.polyfit(np.log([3, 7]), [0.2, 0.25], 1)  # the size is left out whole
    for name, a in (("one", 0.2), ("two", 0.1)):
        assert f"{a:.3f} ({np.polyval(line, 0) - a:+.3f})" in lines[name]


def test_odd_values_and_names_are_no_traceback(tmp_path):
    huge = tmp_path / "huge.csv"
    huge.write_text(
        "step,actor/entropy,val-core/x/mean@1\n" + "\n".join(f"{i},{1 / (i + 1)},{i}e200" for i in range(9))
    )
    assert run("fit", huge).exit_code in (0, 2)
    flat = tmp_path / "flat.csv"
    rows = [f"{i},{1.0 if i < 4 else 1 / i},{0.1 * i}" for i in range(20)]
    flat.write_text("step,actor/entropy,val-core/x/mean@1\n" + "\n".join(rows))
    assert run("forecast", flat, "--fraction", "0.5").exit_code == 0  # its first shares have one entropy
    named = write(tmp_path / "a\\[b] [red] 模型.jsonl")
    assert "a\\[b] [red]" in run("fit", named, "-o", tmp_path / "x.png").output


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["no such file or folder"]),
        ("", ["not a known kind of log"]),
        ('{"step": 1, "data": {"loss": 1.0}}\n', ["no known score"]),
        ('{"step": 1, "data": {"val-core/x/acc/mean@1": 0.5, "policy_H": 1}}\n', ["no known entropy", "--entropy-key"]),
        (
            '{"step": 0, "data": {"val-core/x/acc/mean@1": 0.5}}\n{"step": 1, "data": {"actor/entropy": 1}}\n',
            ["1 point"],
        ),
    ],
)
@pytest.mark.parametrize("command", ["fit", "forecast", "report", "plot"])
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, command, content, parts):
    log = tmp_path / "run.jsonl"
    if content is not None:
        log.write_text(content)
    result = run(command, log, *(["-o", tmp_path / "out.html"] if command == "report" else []))
    assert result.exit_code == 2
    assert result.output.startswith("verl-cov: ")
    assert result.output.count("\n") == 1
    for part in parts:
        assert part in result.output
    assert [path for path in tmp_path.iterdir() if path != log] == []


def test_bad_options_are_one_line_too(tmp_path):
    log = write(tmp_path / "run.jsonl")
    for arguments, part in (
        (["forecast", log, "--fraction", "1.5"], "between 0 and 1"),
        (["compare", log], "at least two runs"),
        (["scale", "seven=run"], "SIZE=RUN"),
        (["scale"], "at least 3 different sizes"),
        (["scale", tmp_path / "none.csv"], "none.csv"),
        (["watch", tmp_path / "none"], "trainer.logger"),
        *((["scale", "--example", "--json", "--predict", size], "above 0") for size in ("-1", "0", "inf")),
        (["report", log, "--fraction", "1.5"], "between 0 and 1"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, arguments
        assert part in result.output
        assert result.output.count("\n") == 1


def with_average(path, sets, **kwargs):
    """As verl-cov logs it since it averages over sets: each set's score, and the average (here the first set's)."""
    lines = [json.loads(line) for line in write(path, **kwargs).read_text().splitlines()]
    for line in lines:
        score = line["data"].pop("val-core/task/acc/mean@1", None)
        if score is not None:
            line["data"] |= {f"val-core/{name}/acc/mean@1": score for name in sets}
            line["data"]["val-cov/acc/sample_weighted"] = score
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_the_average_over_sets_is_the_score_and_only_of_the_same_sets_side_by_side(tmp_path):
    both = with_average(tmp_path / "both.jsonl", ["amc", "task"])
    answer = parsed("fit", both)
    assert answer["score_key"] == "val-cov/acc/sample_weighted"
    assert "The score is the mean over all generations of 2 sets: amc, task." in answer["notes"]
    again = with_average(tmp_path / "again.jsonl", ["amc", "task"], seed=1)
    assert parsed("compare", both, again)["score_key"] == "val-cov/acc/sample_weighted"
    other = with_average(tmp_path / "other.jsonl", ["aime", "task"], seed=1)
    result = run("compare", both, other)
    assert result.exit_code == 2
    assert "averages over different sets (aime, task and amc, task): choose one with --score-key" in result.output
    # A log from before the average: the set that both have.
    old = write(tmp_path / "old.jsonl", seed=2)
    assert parsed("compare", both, old)["score_key"] == "val-core/task/acc/mean@1"
    assert parsed("compare", both, other, "--score-key", "val-core/task/acc/mean@1")["wald_p"] > 0.01


def test_what_cannot_be_used_in_a_folder_is_left_out_and_named(tmp_path):
    write(tmp_path / "runs" / "good" / "metrics.jsonl")
    write(tmp_path / "runs" / "other" / "metrics.jsonl", a=0.1, seed=5)
    write(tmp_path / "runs" / "short" / "metrics.jsonl", steps=2)
    (tmp_path / "runs" / "crashed").mkdir()
    (tmp_path / "runs" / "crashed" / "metrics.jsonl").write_text("")
    (tmp_path / "runs" / "half").mkdir()
    (tmp_path / "runs" / "half" / "metrics.jsonl").write_text('{"step": 1, "da')
    (tmp_path / "runs" / "empty").mkdir()
    runs = tmp_path / "runs"
    for command in ("fit", "forecast", "compare", "plot", "report", "watch"):
        output = {"plot": ["-o", tmp_path / "x.png"], "report": ["-o", tmp_path / "x.html"], "watch": ["--once"]}
        result = run(command, runs, *output.get(command, []))
        assert result.exit_code == 0, result.output
        said = result.output + ((tmp_path / "x.html").read_text() if command == "report" else "")
        for name in ("empty",) if command == "watch" else ("short", "crashed", "half", "empty"):
            assert f"runs/{name}" in said, command
    answer = json.loads(run("fit", runs, "--json").stdout)
    assert [one["name"] for one in answer["runs"]] == ["good", "other"]
    left_out = {one["path"].split("/runs/")[1].split("/")[0]: one["reason"] for one in answer["left_out"]}
    assert set(left_out) == {"short", "crashed", "half", "empty"}
    assert "the law needs 3" in left_out["short"]
    assert "1 damaged line" in left_out["half"]
    assert {one["path"] for one in json.loads(run("compare", runs, "--json").stdout)["left_out"]} == {
        one["path"] for one in answer["left_out"]
    }
    bad = run("fit", runs / "short", runs / "crashed")
    assert bad.exit_code == 2
    assert "none of the 2 runs can be used" in bad.output


def test_the_checkpoints_of_one_run_are_one_run(tmp_path):
    random = np.random.default_rng(0)
    entropy = np.exp(-np.arange(31) / 15)
    history = [
        {"step": n, "entropy": entropy[n], "reward": 0.8 - 0.2 * math.exp(entropy[n]) + 0.01 * random.normal()}
        for n in range(1, 31)
    ]
    states = []
    for steps in (10, 20, 30):
        states.append(tmp_path / "out" / f"checkpoint-{steps}" / "trainer_state.json")
        states[-1].parent.mkdir(parents=True)
        states[-1].write_text(json.dumps({"log_history": history[:steps]}))
    assert (parsed("fit", tmp_path / "out")["n"], parsed("fit", tmp_path / "out")["name"]) == (30, "out")
    assert parsed("fit", states[0].parent)["n"] == 10
    assert (parsed("fit", "--pool", *states)["n"], parsed("fit", "--pool", *states)["runs"]) == (30, 1)
    result = run("compare", *states)
    assert result.exit_code == 2
    assert "an earlier state of checkpoint-30" in result.output


def test_every_command_reads_a_log_as_it_is_told(tmp_path):
    log = tmp_path / "run.csv"
    rows = [(n, 1 / (1 + n / 10) + 0.2 * (n % 2)) for n in range(30)]
    log.write_text("update,H,holdout\n" + "\n".join(f"{n},{h},{0.8 - 0.2 * math.exp(h)}" for n, h in rows))
    options = ["--step-key", "update", "--entropy-key", "H", "--score-key", "holdout", "--join", "same"]
    answer = parsed("fit", log, *options)
    assert (answer["a"], answer["n"]) == (pytest.approx(0.2, abs=1e-6), 30)
    assert "--step-key" in run("fit", log).output
    result = run("watch", log, "--once", *options)
    assert result.exit_code == 0
    assert "0.60 [0.60, 0.60]" in result.output
    assert "--join sometimes: give same, next or auto" in run("fit", log, "--join", "sometimes").output


@pytest.mark.parametrize("value", [1e300, 1e200, -1.7e308])
@pytest.mark.parametrize("key", ["actor/entropy", "val-core/task/acc/mean@1"])
def test_one_absurd_value_leaves_out_its_run_and_no_other(tmp_path, key, value):
    good = write(tmp_path / "good" / "metrics.jsonl")
    bad = write(tmp_path / "bad" / "metrics.jsonl", seed=1)
    lines = [json.loads(line) for line in bad.read_text().splitlines()]
    lines[20]["data"][key] = value
    bad.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = run("fit", bad)
    assert said.exit_code == 2
    assert f"{key} is {value:g} at step 20" in said.stderr
    assert run("fit", bad, good).exit_code == 0
    page = tmp_path / "report.html"
    assert run("report", bad, good, "-o", page).exit_code == 0
    assert run("watch", bad, good, "--once").exit_code == 0


def test_a_constant_score_is_one_sentence(tmp_path):
    log = write(tmp_path / "run" / "metrics.jsonl", a=0, b=0.5, noise=0)
    said = run("fit", log)
    assert said.exit_code == 2
    assert said.stderr.count("\n") == 1
    assert "is 0.5 at every point" in said.stderr
    assert "constant score" in run("watch", log, "--once").stdout


@pytest.mark.parametrize("command", ["fit", "forecast", "plot", "report", "scale"])
def test_runs_and_the_example_are_not_both_given(tmp_path, command):
    log = write(tmp_path / "run" / "metrics.jsonl")
    said = run(command, f"1B={log}" if command == "scale" else log, "--example")
    assert said.exit_code == 2
    assert "give runs or --example, not both" in said.stderr


def test_compare_prints_the_warnings_and_notes_of_each_run(tmp_path):
    logs = [write(tmp_path / name / "metrics.jsonl", seed=at, steps=12) for at, name in enumerate("ab")]
    said = run("compare", *logs).stdout
    assert "Warning: a: Only 7 points" in said
    assert "Warning: b: Only 7 points" in said
    assert "all runs: " in said


@pytest.mark.parametrize("step", ["inf", "nan", "1e10", "40"])
def test_forecast_refuses_an_absurd_step(tmp_path, step):
    said = run("forecast", write(tmp_path / "run" / "metrics.jsonl"), "--to-step", step)
    assert said.exit_code == 2
    assert "last pair of score and entropy, at step 60" in said.stderr


def test_a_table_of_sizes_names_the_missing_column(tmp_path):
    table = tmp_path / "ok.csv"
    table.write_text("step,score\n1,2\n")
    said = run("scale", table)
    assert said.exit_code == 2
    assert "has no parameters" in said.stderr
    assert "KeyError" not in said.stderr


def test_one_degree_of_freedom_is_singular(tmp_path):
    assert "have 1 degree of freedom" in run("fit", write(tmp_path / "run" / "metrics.jsonl", steps=4)).stdout


def test_a_missing_log_is_said_in_three_words_more(tmp_path):
    said = run("fit", tmp_path / "nosuch.log")
    assert said.exit_code == 2
    assert said.stderr.strip().endswith("nosuch.log: no such file or folder")


def test_a_table_of_sizes_as_a_spreadsheet_writes_it(tmp_path):
    table = "parameters,a,b\n0.5B,0.2,0.7\n1.5B,0.2,0.8\n7B,0.2,0.9\n"
    path = tmp_path / "sizes.csv"
    path.write_text(table, encoding="utf-8-sig")
    assert run("scale", path).exit_code == 0
    path.write_text(table, encoding="utf-16")
    refused = run("scale", path)
    assert (refused.exit_code, refused.stderr) == (2, f"verl-cov: {path} is no text in UTF-8: save the table so\n")
