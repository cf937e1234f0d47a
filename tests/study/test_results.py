"""Results and verdicts: what comes back is what was written, and what is damaged is told and nothing else is lost."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.study.conftest import keep, trained
from verl_cov.law import points
from verl_cov.law.readers import find_runs, merge, read_metrics
from verl_cov.study import protocol, results, verdicts
from verl_cov.study.result import Result
from verl_cov.study.results import OtherProtocol
from verl_cov.study.statistics import compute


def test_a_run_comes_back_as_it_was_logged(study, tmp_path):
    cell = study.cells[0]
    path = keep(tmp_path, study, cell)
    assert path == tmp_path / "test" / "toy-grpo-none-0.csv.gz"
    assert path.stat().st_size < 2000
    result = results.read(tmp_path, study, cell)
    before = trained(cell)
    assert (result.name, result.levels, result.seconds, result.parameters) == (cell.name, cell.levels, 60.0, 1000)
    assert result.run.steps.tolist() == before.steps.tolist()
    assert "not/kept" not in result.run.known
    for key in result.run.known:
        np.testing.assert_allclose(result.run.column(key), before.column(key), rtol=1e-5)
    assert points(result.run, "x").score_key == points(before, "x").score_key
    same = path.read_bytes()
    keep(tmp_path, study, cell)
    assert path.read_bytes() == same
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_the_law_reads_a_result_as_any_other_log(study, tmp_path):
    paths = [keep(tmp_path, study, cell) for cell in study.cells[:3]]
    found = find_runs(tmp_path)
    assert found == [
        (cell.name, [path]) for cell, path in sorted(zip(study.cells, paths, strict=False), key=lambda one: one[1])
    ]
    for name, [path] in found:
        run, cell = read_metrics(path), next(cell for cell in study.cells if cell.name == name)
        assert run.records == results.read(tmp_path, study, cell).run.records
    assert points(run, "x").score_key == "val-cov/acc/sample_weighted"


def rewritten(path, change):
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()).decode()).encode()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-20]),  # half-written
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"step,a\n1,2\n"),  # not compressed
        lambda path: path.write_bytes(path.read_bytes()[:300] + b"x" + path.read_bytes()[301:]),
        lambda path: rewritten(path, lambda text: text.partition("\n")[2]),  # no head
        lambda path: rewritten(path, lambda text: "[1]\n" + text),
        lambda path: rewritten(path, lambda text: text.rpartition("\n12,")[0] + "\n"),  # its last step is lost
        lambda path: rewritten(path, lambda text: text.rpartition(",")[0]),  # a row is short
        lambda path: rewritten(path, lambda text: text.replace("\n12,", "\ntwelve,")),
        lambda path: rewritten(path, lambda text: text.replace('"levels"', '"level"')),
        lambda path: path.rename(path.with_name("toy-grpo-none-1.csv.gz")),  # of another run
        lambda path: rewritten(path, lambda text: "\xff" + text),
    ],
)
def test_a_damaged_file_is_a_line_and_the_others_are_read(study, tmp_path, damage):
    path = keep(tmp_path, study, study.cells[0])
    keep(tmp_path, study, study.cells[1])
    damage(path)
    found = results.find(tmp_path, study)
    assert list(found.results) == [study.cells[1].name]
    [line] = found.problems
    assert str(path.parent) in line
    assert "`verl-cov study run test` makes it again" in line
    assert "\n" not in line


def test_an_empty_file_is_called_empty(study, tmp_path):
    keep(tmp_path, study, study.cells[0]).write_bytes(b"")
    assert "is damaged (it is empty): " in results.find(tmp_path, study).problems[0]


def test_results_of_another_protocol_are_a_line_and_are_left(study, make, tmp_path):
    paths = [keep(tmp_path, study, cell) for cell in study.cells[:3]]
    before = [path.read_bytes() for path in paths]
    later = protocol.read(make(version=4))
    with pytest.raises(OtherProtocol):
        results.read(tmp_path, later, later.cells[0])
    found = results.find(tmp_path, later)
    assert not found.results
    [line] = found.problems
    assert "version 3" in line
    assert "this is test version 4" in line
    assert "2 more of another protocol" in line
    assert "check out that protocol, or move the file away" in line
    assert [path.read_bytes() for path in paths] == before


def test_a_file_of_no_run_is_told(study, tmp_path):
    keep(tmp_path, study, replace(study.cells[0], name="stranger"))
    [line] = results.find(tmp_path, study).problems
    assert "stranger.csv.gz" in line


def found(study, folder, cells):
    for cell in cells:
        keep(folder, study, cell)
    return results.find(folder, study).results


def test_the_verdict_is_of_the_interval_and_of_pairs(study, tmp_path):
    have = found(study, tmp_path, study.cells)
    collapse = verdicts.judge(study, study.claim("collapse"), have)
    assert collapse.text == verdicts.HOLDS
    assert (len(collapse.values), collapse.wanted, collapse.done, collapse.runs) == (3, 3, 3, 3)
    kept = verdicts.judge(study, study.claim("kept"), have)
    assert kept.values == pytest.approx({"0": 0.10, "1": 0.11, "2": 0.12})
    # The paired t-test of the same numbers, by scipy.
    test = stats.ttest_rel([0.9, 0.91, 0.92], [0.8, 0.8, 0.8])
    low, high = test.confidence_interval(0.95)
    assert (kept.mean, kept.low, kept.high) == pytest.approx((0.11, low, high))
    assert kept.text == verdicts.HOLDS
    other = replace(study.claim("kept"), relation="<", threshold=0.0)
    assert verdicts.judge(study, other, have).text == verdicts.FAILS
    near = replace(study.claim("kept"), threshold=0.11)
    assert verdicts.judge(study, near, have).text == verdicts.OPEN


def test_there_is_no_verdict_while_runs_are_missing(study, tmp_path):
    have = found(study, tmp_path, [cell for cell in study.cells if cell.name != "toy-grpo-none-1"])
    kept = verdicts.judge(study, study.claim("kept"), have)
    assert kept.text == verdicts.WAITS
    assert (kept.done, kept.runs) == (5, 6)
    assert kept.values == pytest.approx({"0": 0.10, "2": 0.12})  # only whole pairs
    nothing = verdicts.judge(study, study.claim("kept"), {})
    assert (nothing.text, nothing.done) == (verdicts.WAITS, 0)
    assert math.isnan(nothing.mean)


def test_one_run_alone_gives_no_verdict(study, make, tmp_path):
    one = protocol.read(make(runs=[{"start": [0], "control": ["none", "kl_cov"]}]))
    have = found(one, tmp_path, one.cells)
    assert verdicts.judge(one, one.claim("collapse"), have).text == verdicts.OPEN


def test_a_number_that_runs_do_not_give_is_a_note(study, tmp_path):
    have = found(study, tmp_path, study.cells)
    verdict = verdicts.judge(study, replace(study.claim("collapse"), statistic="theorem1"), have)
    assert (verdict.text, len(verdict.notes)) == (verdicts.OPEN, 3)
    assert "start 0: toy-grpo-none-0 has no actor/cov/theorem1_correlation" in verdict.notes[0]


def held(entropies, targets, noise=0.02) -> Result:
    records = [
        (step, {"actor/cov/entropy": entropy, "actor/cov/target": target, "actor/cov/entropy_error": noise})
        for step, (entropy, target) in enumerate(zip(entropies, targets, strict=True), 1)
    ]
    return Result("held", {}, 1.0, None, merge(records))


def test_how_well_a_target_is_held_by_hand():
    """Of a target of 0.5: 20 rollouts of which the first 15 settle; then 20 % above, 20 % below, and on it."""
    settling = [1.0, 0.9, 0.8, 0.7, 0.6, 0.55, *[0.5] * 9]
    result = held([*settling, 0.6, 0.4, 0.5, 0.5, 0.5], [0.5] * 20)
    assert compute("target_error", [result]) == pytest.approx((0.2 + 0.2) / 5)
    # Means of five, from the first: 0.8, 0.71, 0.63, 0.57, 0.53.
    assert compute("target_settled", [result]) == 4
    assert compute("target_swings", [result]) == 1
    # Within twice the noise nothing swings; where the target falls too, what counts is the distance.
    assert compute("target_swings", [held([*settling, 0.6, 0.4, 0.5, 0.5, 0.5], [0.5] * 20, noise=0.06)]) == 0
    falling = [1 - 0.02 * step for step in range(20)]
    assert compute("target_error", [held([1.1 * each for each in falling], falling)]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="has no target for more than 15 rollouts"):
        compute("target_error", [held(settling, [0.5] * 15)])
