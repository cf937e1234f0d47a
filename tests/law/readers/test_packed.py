"""Logs that gzip has packed, a study's results among them, are read as the logs that they are."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from tests.law.readers.test_find import found, put
from tests.law.readers.test_formats import entropy, json_lines, rows, score
from verl_cov.law import NoPoints, estimate, points, read_metrics

TABLE = "step,entropy,reward\n" + "".join(f"{n},{entropy(n)},{score(n)}\n" for n in range(12))
LOGS = {
    "run.csv": TABLE,
    "study.csv": '{"study": "controls", "steps": 11}\n' + TABLE,
    "marked.csv": "\ufeff" + TABLE.replace("\n", "\r\n"),
    "run.jsonl": json_lines(rows("entropy", "reward", 0)),
    "run.log": "".join(f"step:{n} - actor/entropy:{entropy(n)} - critic/score/mean:{score(n)}\n" for n in range(12)),
    "trainer_state.json": '{"log_history": ' + str(rows("entropy", "reward", 0)).replace("'", '"') + "}",
}


def packed(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))
    return path


@pytest.mark.parametrize("name", LOGS)
def test_a_packed_log_is_the_run_that_it_is_unpacked(tmp_path, name):
    plain, log = put(tmp_path / "run" / name, LOGS[name]), packed(tmp_path / "run" / f"{name}.gz", LOGS[name])
    one, other = read_metrics(plain), read_metrics(log)
    assert (one.steps.tolist(), one.records) == (other.steps.tolist(), other.records)
    assert one.damaged == other.damaged == 0
    joined = points(other, "run")
    law = estimate(joined.entropy, joined.score)
    assert (law.a.value, law.b.value) == pytest.approx((0.2, 0.8), abs=1e-9)
    [(called, _)] = found(plain)
    assert found(log) == [(called, [str(log)])]
    assert found(tmp_path) == [(called, [str(plain)])]  # the packed copy does not count
    plain.unlink()
    assert found(tmp_path) == [(called, [str(log)])]


def test_segments_and_a_folder_of_a_run_may_be_packed(tmp_path):
    for number in (1, 2, 10):
        packed(tmp_path / "run" / f"{number}.jsonl.gz", f'{{"step": {number}, "data": {{"h": {number}}}}}\n')
    [(name, paths)] = found(tmp_path / "run")
    assert (name, [Path(path).name for path in paths]) == ("run", ["1.jsonl.gz", "2.jsonl.gz", "10.jsonl.gz"])
    assert read_metrics(paths).steps.tolist() == [1, 2, 10]
    metrics = packed(tmp_path / "mine" / "metrics.jsonl.gz", '{"step": 1, "data": {"h": 1}}\n')
    assert found(tmp_path / "mine") == [("mine", [str(metrics)])]


def test_of_a_packed_log_that_is_cut_off_the_whole_lines_are_read(tmp_path):
    noise = np.random.default_rng(0).random((2000, 2))
    log = packed(
        tmp_path / "run.csv.gz", "step,entropy,reward\n" + "".join(f"{n},{h},{r}\n" for n, (h, r) in enumerate(noise))
    )
    log.write_bytes(log.read_bytes()[:-5000])
    run = read_metrics(log)
    assert 1000 < run.steps.size < 2000
    assert "is cut off or damaged" in run.damage
    np.testing.assert_array_equal(run.column("reward"), noise[: run.steps.size, 1])


def test_what_cannot_be_read_packed_says_so(tmp_path):
    with pytest.raises(NoPoints, match="gunzip"):
        read_metrics(packed(tmp_path / "events.gz", "\0" * 24 + "brain.Event:2"))
    assert not read_metrics(packed(tmp_path / "a.log.gz", "nothing\n")).steps.size
